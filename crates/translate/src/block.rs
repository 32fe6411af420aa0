//! One block: planned instructions to host code.
//!
//! A block lies in one page and ends at a branch, before an instruction for the fall-back engine
//! after which nothing is known, at the page's end, or at the limit. An instruction that reaches
//! into the next page is a block of its own, which checks what the next page is. A block's first
//! four bytes move the flags from RFLAGS to AX; the entry behind them takes them in AX.

use std::num::NonZeroU32;

use cpu::Access;
use iced_x86::{Encoder, InstructionInfoFactory, Mnemonic};
use memory::VISIT_SIZE;
use types::PAGE_SIZE;

use crate::assembler::{Assembler, Form, Op, condition};
use crate::classify::{Class, Mode, Unit};
use crate::control::Arrival;
use crate::crossing::Gates;
use crate::flags::Redo;
use crate::group::{Group, Member};
use crate::layout::{self, Flags, host};
use crate::mirror::Mirrors;
use crate::options::Options;
use crate::plan::{self, End, Plan, Planned, Source, Variant};
use crate::site::{FaultSite, Site, SiteId, Why};
use crate::trampoline::Trampolines;

/// Bytes before the entry that takes the flags in AX.
pub(crate) const SAVED_ENTRY: u32 = 4;
/// More host code than any block makes.
pub(crate) const BLOCK_BYTES_MAX: usize = 1 << 16;

/// The instruction cannot be translated after all; it is for the fall-back engine.
#[derive(Debug)]
pub(crate) struct Unsupported;

/// What comes of emitting.
pub(crate) type Emitted = Result<(), Unsupported>;

/// Code that is not on the straight path, to be put behind the block.
#[derive(Clone, Copy)]
pub(crate) enum Stub {
    /// Leaves by a site, saving the flags first if they are in RFLAGS.
    Leave { jump: usize, site: Site, flags: Flags },
    /// Branches to another page, `target` from this one's start, by what `site` tells of.
    Far { jump: usize, target: i32, flags: Flags, site: Site, side: u8 },
    /// Leaves a block before its end, by a branch to `target` in the page; `left` others do not
    /// retire.
    Aside { jump: usize, target: u16, left: u8 },
    /// Goes over to the careful block at `offset`, giving back what this one took of the budget.
    Careful { jump: usize, offset: u16, unretired: u8, flags: Flags },
    /// By an indirect branch that the table of linear addresses does not know; `next` is where the
    /// instruction behind it is.
    Arrive { jump: usize, arrival: Arrival, resume: u32, site: Site, next: u16 },
    /// Loads the registers of a unit by a trampoline and comes back.
    Load { jump: usize, back: usize, trampoline: u32 },
}

/// What translations of many blocks share.
pub(crate) struct Workshop {
    pub(crate) encoder: Encoder,
    pub(crate) paper: Paper,
    pub(crate) factory: InstructionInfoFactory,
    pub(crate) trampolines: Trampolines,
    pub(crate) options: Options,
    /// The host has RORX.
    pub(crate) rotates: bool,
    /// Address of the table of indirect branches by side of the TLB, in the mode of the block
    /// being made otherwise.
    pub(crate) tables: [u64; 4],
    pub(crate) gates: Gates,
}

/// Memory for the next block: what the one before was made in.
#[derive(Default)]
pub(crate) struct Paper {
    insns: Vec<Planned>,
    code: Vec<u8>,
    sites: Vec<Site>,
    faults: Vec<FaultSite>,
    stubs: Vec<Stub>,
    redos: Vec<Redo>,
}

/// A block in the making.
pub(crate) struct Emitter<'a> {
    pub(crate) code: Assembler,
    pub(crate) workshop: &'a mut Workshop,
    pub(crate) mode: Mode,
    /// Accesses go by the host's page tables.
    pub(crate) direct: bool,
    /// Offset in code memory of the block's first byte.
    origin: u32,
    first_site: SiteId,
    sites: Vec<Site>,
    pub(crate) faults: Vec<FaultSite>,
    pub(crate) stubs: Vec<Stub>,
    pub(crate) flags: Flags,
    /// Code that makes flags once more, and which of it makes those in RFLAGS.
    redos: Vec<Redo>,
    redo: Option<u8>,
    pub(crate) mirrors: Mirrors,
    /// Branches that were taken off the budget and have not retired yet.
    pub(crate) unretired: u8,
    /// The group whose address RDI holds, and what it held before this instruction.
    held: Option<usize>,
    was_held: Option<usize>,
    /// The lookup being emitted is a string instruction's.
    pub(crate) in_string: bool,
    /// Offset in the page of the instruction being emitted, and of the next.
    pub(crate) offset: u16,
    pub(crate) next: u16,
}

/// A finished block.
pub(crate) struct Block {
    pub(crate) code: Vec<u8>,
    pub(crate) sites: Vec<Site>,
    pub(crate) faults: Vec<FaultSite>,
    /// Guest instructions in it.
    pub(crate) insns: usize,
    /// Guest bytes it depends on, as [`Plan::extents`].
    pub(crate) extents: Vec<(u16, u16)>,
}

/// Where a block is to be put.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) origin: u32,
    pub(crate) first_site: SiteId,
}

/// Translates the block at the start of `source`.
pub(crate) fn translate(
    workshop: &mut Workshop,
    mode: Mode,
    variant: Variant,
    source: &Source<'_>,
    place: Place,
) -> Block {
    let options = workshop.options;
    let insns = emptied(&mut workshop.paper.insns);
    let mut plan = plan::discover(options, mode, variant, source, &mut workshop.factory, insns);
    let fast = variant == Variant::Fast && !options.always_slow && source.next.is_none();
    if fast && mode.direct {
        plan.go_direct();
    } else if fast && options.groups {
        plan.group();
    }
    loop {
        plan.find_flags();
        let mut emitter = Emitter::new(workshop, mode, place);
        emitter.direct = plan.direct;
        match emitter.block(&plan, source) {
            Ok(()) => return emitter.finish(plan),
            Err(index) => plan.step(index),
        }
    }
}

/// The vector, which is left without memory, without what it held.
fn emptied<T>(vector: &mut Vec<T>) -> Vec<T> {
    let mut taken = std::mem::take(vector);
    taken.clear();
    taken
}

impl Workshop {
    /// Takes back the memory of a block that was put into code memory.
    pub(crate) fn recycle(&mut self, block: Block) {
        let Block { code, sites, faults, .. } = block;
        (self.paper.code, self.paper.sites, self.paper.faults) = (code, sites, faults);
    }
}

impl<'a> Emitter<'a> {
    fn new(workshop: &'a mut Workshop, mode: Mode, place: Place) -> Emitter<'a> {
        let paper = &mut workshop.paper;
        let (sites, faults) = (emptied(&mut paper.sites), emptied(&mut paper.faults));
        let (stubs, redos) = (emptied(&mut paper.stubs), emptied(&mut paper.redos));
        Emitter {
            code: Assembler { bytes: emptied(&mut paper.code) },
            workshop,
            mode,
            direct: false,
            origin: place.origin,
            first_site: place.first_site,
            sites,
            faults,
            stubs,
            flags: Flags::Saved,
            redos,
            redo: None,
            mirrors: Mirrors::default(),
            unretired: 0,
            held: None,
            was_held: None,
            in_string: false,
            offset: 0,
            next: 0,
        }
    }

    fn block(&mut self, plan: &Plan, source: &Source<'_>) -> Result<(), usize> {
        self.unretired = plan.branches();
        self.offset = source.start;
        self.next = source.start;
        self.prologue(plan);
        self.mark(plan, source);
        if let Some(next) = &source.next
            && !plan.insns.is_empty()
        {
            self.check_next_page(next.host);
        }
        for (index, planned) in plan.insns.iter().enumerate() {
            self.offset = planned.offset;
            self.next = self.offset + planned.instruction.len() as u16;
            for (number, group) in plan.groups.iter().enumerate() {
                if group.before == index {
                    self.look_up_group(number, group);
                }
            }
            self.was_held = self.held.take();
            self.instruction(planned).map_err(|Unsupported| index)?;
        }
        self.end_mirrors();
        if plan.end != End::Branch {
            self.offset = plan.stop;
        }
        match plan.end {
            End::Branch => {}
            End::Step { mnemonic, len } => {
                self.leave_here(Why::Step { mnemonic, len, then: None });
            }
            End::Limit | End::Page => {
                self.link(None, i64::from(plan.stop)).expect("near enough");
            }
        }
        self.emit_stubs();
        Ok(())
    }

    fn prologue(&mut self, plan: &Plan) {
        self.code.save_flags();
        let (form, jump) = match (self.unretired, plan.end) {
            (0, _) => (Form::Cmp, condition::EQUAL),
            (_, End::Branch) => (Form::Sub, condition::BELOW),
            // Nothing may follow the last branch of the budget.
            _ => (Form::Sub, condition::BELOW_OR_EQUAL),
        };
        self.code.word_immediate(form, layout::BUDGET, self.unretired as i8);
        let jump = self.code.jump_if(jump);
        if plan.insns.iter().any(|planned| planned.inside) {
            self.careful_if(jump);
        } else {
            self.leave_if(jump, Why::Budget);
        }
        let insns = &plan.insns;
        if self.workshop.options.count_instructions {
            let count = insns.iter().filter(|planned| planned.class != Class::Step).count();
            self.code.word_immediate(Form::Add, layout::INSTRUCTIONS, count.min(127) as i8);
        }
        let Trampolines { vectors, x87, .. } = self.workshop.trampolines;
        for (unit, word, trampoline) in
            [(Unit::Vectors, layout::VECTORS, vectors), (Unit::X87, layout::X87, x87)]
        {
            if !insns.iter().any(|planned| planned.class == Class::Compute { unit }) {
                continue;
            }
            self.code.is_zero(word);
            let jump = self.code.jump_if(condition::EQUAL);
            let back = self.code.here();
            self.stubs.push(Stub::Load { jump, back, trampoline });
        }
    }

    /// Marks the block's code as executed, where that is asked for.
    fn mark(&mut self, plan: &Plan, source: &Source<'_>) {
        let Some(marks) = source.marks else { return };
        self.code.constant(host::RDI, marks);
        for &(first, end) in &plan.extents {
            let end = u64::from(end).min(PAGE_SIZE).div_ceil(VISIT_SIZE) as i32;
            let mut mark = i32::from(first) / VISIT_SIZE as i32;
            while mark < end {
                let size = [8, 4, 2, 1].into_iter().find(|size| mark + size <= end).unwrap_or(1);
                self.code.fill_ones(mark, size as usize);
                mark += size;
            }
        }
    }

    fn instruction(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        match planned.class {
            Class::Nothing | Class::Compute { .. } | Class::Address => {}
            Class::Branch if planned.inside => self.store_mirrors(),
            _ => self.end_mirrors(),
        }
        match planned.class {
            Class::Nothing => {
                self.held = self.was_held;
                Ok(())
            }
            Class::Branch if planned.inside => self.branch_inside(planned),
            Class::Branch => self.branch(planned),
            Class::Stack => self.stack(planned),
            Class::Address => self.load_address(instruction),
            Class::System => self.system(instruction),
            Class::String => self.string(instruction),
            Class::Compute { unit } => self.compute(planned, unit),
            Class::Step => {
                self.step(instruction.mnemonic());
                Ok(())
            }
        }
    }

    /// A branch after which the block goes on: through a jump, or past a conditional one.
    fn branch_inside(&mut self, planned: &Planned) -> Emitted {
        self.held = self.was_held;
        if planned.instruction.mnemonic() != Mnemonic::Jmp {
            self.branch_aside(planned)?;
        }
        self.unretired -= 1;
        Ok(())
    }

    /// To `target` if `condition` holds, before the block's end.
    pub(crate) fn leave_aside(&mut self, condition: u8, target: i64) -> Emitted {
        let left = self.unretired - 1;
        if left == 0 {
            return self.link(Some(condition), target);
        }
        let far = i32::try_from(target).map_err(|_| Unsupported)?;
        assert!(self.flags == Flags::Host);
        let jump = self.code.jump_if(condition);
        self.stubs.push(match u16::try_from(target) {
            Ok(target) if target < 4096 => Stub::Aside { jump, target, left },
            _ => self.far(jump, far),
        });
        Ok(())
    }

    /// Looks up where a group is and keeps its host address; goes over to the careful block at this
    /// instruction if it is not all in one page that may be accessed.
    fn look_up_group(&mut self, number: usize, group: &Group) {
        self.save_flags();
        self.end_mirrors();
        self.group_address(&group.address);
        let access = if group.write { Access::Write } else { Access::Read };
        let jump = self.compare_tag(access, group.span);
        self.careful_if(jump);
        self.add_page();
        self.code.op_word(Op::Store, host::RDI, layout::group(number));
        self.held = Some(number);
    }

    /// Host address of a group's first byte to RDI; keeps flags.
    pub(crate) fn member(&mut self, member: Member) -> i32 {
        self.free(host::RDI);
        if self.was_held != Some(member.group) {
            self.code.op_word(Op::Load, host::RDI, layout::group(member.group));
        }
        self.held = Some(member.group);
        member.at
    }

    /// RDI is what it was before this instruction.
    pub(crate) fn kept_rdi(&mut self) {
        self.held = self.was_held;
    }

    /// Whether RDI held a group's address before this instruction.
    pub(crate) fn holds_group(&self) -> bool {
        self.was_held.is_some()
    }

    /// RDI holds no group's address.
    pub(crate) fn forget_rdi(&mut self) {
        self.held = None;
    }

    /// RFLAGS is for other use: flags to AX, unless they are made once more where they are needed.
    pub(crate) fn save_flags(&mut self) {
        if self.flags == Flags::Host {
            self.flags = match self.redo {
                Some(redo) => Flags::Redo(redo),
                None => {
                    self.code.save_flags();
                    Flags::Saved
                }
            };
        }
    }

    /// Flags to AX, on the way out.
    pub(crate) fn keep_flags(&mut self) {
        if let Flags::Redo(redo) = self.flags {
            self.code.put(&self.redos[usize::from(redo)]);
            self.flags = Flags::Host;
        }
        if self.flags == Flags::Host {
            self.code.save_flags();
            self.flags = Flags::Saved;
        }
    }

    /// Flags to RFLAGS.
    pub(crate) fn restore_flags(&mut self) {
        match self.flags {
            Flags::Host => return,
            Flags::Saved => self.code.restore_flags(),
            Flags::Redo(redo) => self.code.put(&self.redos[usize::from(redo)]),
        }
        self.flags = Flags::Host;
    }

    /// Flags are in RFLAGS now; `redo` makes them once more, for who leaves.
    pub(crate) fn made_flags(&mut self, redo: Option<Redo>) {
        self.flags = Flags::Host;
        self.redo = redo.and_then(|redo| {
            let number = u8::try_from(self.redos.len()).ok()?;
            self.redos.push(redo);
            Some(number)
        });
    }

    /// Goes over to the careful block at this instruction when the jump at `jump` is taken.
    pub(crate) fn careful_if(&mut self, jump: usize) {
        let (offset, unretired, flags) = (self.offset, self.unretired, self.flags);
        self.stubs.push(Stub::Careful { jump, offset, unretired, flags });
    }

    /// A site at the instruction being emitted.
    pub(crate) fn site(&self, why: Why) -> Site {
        let Emitter { offset, unretired, in_string, .. } = *self;
        Site { why, offset, unretired, in_string }
    }

    /// Offset in code memory of what is emitted next.
    pub(crate) fn place(&self) -> u32 {
        self.origin + self.code.here() as u32
    }

    /// Where a miss comes back to: flags are in AX then, and RDI and RSI hold nothing, so what
    /// follows does not rely on a group's address in RDI.
    pub(crate) fn resume_place(&mut self) -> u32 {
        self.save_flags();
        self.end_mirrors();
        self.was_held = None;
        self.place()
    }

    /// Offset in code memory of the block's entry with flags in AX.
    pub(crate) fn entry_place(&self) -> u32 {
        self.origin + SAVED_ENTRY
    }

    /// Leaves by a site when the jump at `jump` is taken.
    pub(crate) fn leave_if(&mut self, jump: usize, why: Why) {
        let site = self.site(why);
        self.stubs.push(Stub::Leave { jump, site, flags: self.flags });
    }

    /// Has the fall-back engine execute the instruction, and comes back.
    fn step(&mut self, mnemonic: Mnemonic) {
        self.save_flags();
        let jump = self.code.jump();
        let (len, then) = (self.next - self.offset, NonZeroU32::new(self.place()));
        self.leave_if(jump, Why::Step { mnemonic: mnemonic as u16, len, then });
    }

    /// Leaves at the end of a block that ends in no branch.
    fn leave_here(&mut self, why: Why) {
        let jump = self.code.jump();
        self.leave_if(jump, why);
    }

    /// Continues at `target` from the page's start, if `condition` holds: by a jump that can be
    /// linked when that is in the page.
    pub(crate) fn link(&mut self, condition: Option<u8>, target: i64) -> Emitted {
        let far = i32::try_from(target).map_err(|_| Unsupported)?;
        let jump = match condition {
            Some(condition) => self.code.jump_if(condition),
            None => self.code.jump(),
        };
        let flags = self.flags;
        self.stubs.push(match u16::try_from(target) {
            Ok(offset) if offset < 4096 => {
                let why = Why::Link { patch: self.origin + jump as u32, stub: 0, flags };
                let site = Site { why, offset, unretired: 0, in_string: false };
                Stub::Leave { jump, site, flags }
            }
            _ => self.far(jump, far),
        });
        Ok(())
    }

    fn far(&self, jump: usize, target: i32) -> Stub {
        let (flags, site, side) = (self.flags, self.site(Why::Goto), self.mode.side);
        Stub::Far { jump, target, flags, site, side }
    }

    /// Jumps from `at`, a displacement in this block, to a trampoline.
    pub(crate) fn bind_outside(&mut self, at: usize, trampoline: u32) {
        let target = i64::from(trampoline) - i64::from(self.origin);
        let displacement = target - (at as i64 + 4);
        self.code.bytes[at..at + 4].copy_from_slice(&(displacement as i32).to_le_bytes());
    }

    /// Stubs may have stubs.
    fn emit_stubs(&mut self) {
        let mut done = 0;
        while let Some(&stub) = self.stubs.get(done) {
            self.emit_stub(stub);
            done += 1;
        }
    }

    fn emit_stub(&mut self, stub: Stub) {
        let here = self.code.here();
        match stub {
            Stub::Leave { jump, mut site, flags } => {
                self.code.bind(jump, here);
                if let Why::Far { stub, .. } | Why::Link { stub, .. } | Why::Careful { stub, .. } =
                    &mut site.why
                {
                    *stub = self.origin + here as u32;
                }
                self.flags = flags;
                self.keep_flags();
                let id = self.first_site + self.sites.len() as SiteId;
                self.sites.push(site);
                self.code.put(&[0x68]);
                self.code.put(&id.to_le_bytes());
                let at = self.code.jump();
                self.bind_outside(at, self.workshop.trampolines.exit);
            }
            Stub::Far { jump, target, flags, site, side } => {
                self.code.bind(jump, here);
                self.flags = flags;
                self.mode.side = side;
                self.offset = site.offset;
                self.keep_flags();
                self.give_back(site.unretired.saturating_sub(1));
                self.unretired = site.unretired.min(1);
                self.go_far(target);
            }
            Stub::Aside { jump, target, left } => {
                self.code.bind(jump, here);
                self.flags = Flags::Host;
                self.keep_flags();
                self.give_back(left);
                self.link(None, i64::from(target)).expect("in the page");
            }
            Stub::Careful { jump, offset, unretired, flags } => {
                self.code.bind(jump, here);
                self.flags = flags;
                self.keep_flags();
                self.give_back(unretired);
                let jump = self.code.jump();
                let why = Why::Careful { patch: self.origin + jump as u32, stub: 0 };
                let site = Site { why, offset, unretired: 0, in_string: false };
                self.stubs.push(Stub::Leave { jump, site, flags: Flags::Saved });
            }
            Stub::Arrive { jump, arrival, resume, site, next } => {
                self.code.bind(jump, here);
                self.flags = Flags::Saved;
                (self.offset, self.next, self.unretired) = (site.offset, next, site.unretired);
                self.arrive_slowly(arrival, resume);
            }
            Stub::Load { jump, back, trampoline } => {
                self.code.bind(jump, here);
                self.code.put(&[0xe8, 0, 0, 0, 0]);
                let at = self.code.here() - 4;
                self.bind_outside(at, trampoline);
                let at = self.code.jump();
                self.code.bind(at, back);
            }
        }
    }

    /// Makes `branches` of the budget available again. Clobbers RFLAGS.
    fn give_back(&mut self, branches: u8) {
        assert!(self.flags == Flags::Saved);
        if branches != 0 {
            self.code.word_immediate(Form::Add, layout::BUDGET, branches as i8);
        }
    }

    fn finish(self, plan: Plan) -> Block {
        assert!(self.code.bytes.len() <= BLOCK_BYTES_MAX);
        let Emitter { code, workshop, sites, faults, stubs, redos, .. } = self;
        let Plan { insns, extents, .. } = plan;
        let count = insns.len();
        let paper = &mut workshop.paper;
        (paper.insns, paper.stubs, paper.redos) = (insns, stubs, redos);
        Block { code: code.bytes, sites, faults, insns: count, extents }
    }
}
