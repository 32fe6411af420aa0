//! One block: planned instructions to host code.
//!
//! A block lies in one page and ends at a branch, before an instruction for the fall-back engine
//! after which nothing is known, at the page's end, or at the limit. An instruction that reaches
//! into the next page is a block of its own, which checks what the next page is.

use std::num::NonZeroU32;

use cpu::Access;
use iced_x86::Mnemonic;

use crate::assembler::{Assembler, Op};
use crate::classify::{Class, Mode};
use crate::crossing::Gates;
use crate::encode::Encodings;
use crate::entry::Entries;
use crate::flags::Redo;
use crate::group::{Group, Member};
use crate::layout::{self, Budget, Flags, host};
use crate::mirror::{Mirrors, Needs, are_many};
use crate::options::Options;
use crate::plan::{self, End, Extents, Plan, Planned, Source, Variant};
use crate::site::{FaultSite, Faults, Site, SiteId, Why};
use crate::stub::Stub;
use crate::tables::Tables;
use crate::trampoline::Trampolines;

/// More host code than any block makes.
pub(crate) const BLOCK_BYTES_MAX: usize = 1 << 16;

/// The instruction cannot be translated after all; it is for the fall-back engine.
#[derive(Debug)]
pub(crate) struct Unsupported;

/// What comes of emitting.
pub(crate) type Emitted = Result<(), Unsupported>;

/// What translations of many blocks share.
pub(crate) struct Workshop {
    pub(crate) encodings: Encodings,
    pub(crate) paper: Paper,
    pub(crate) tables: Tables,
    pub(crate) trampolines: Trampolines,
    pub(crate) options: Options,
    /// The host has RORX.
    pub(crate) rotates: bool,
    /// Address of the table of indirect branches by side of the TLB, in the mode of the block
    /// being made otherwise.
    pub(crate) branch_tables: [u64; 4],
    pub(crate) gates: Gates,
}

/// Memory for the next block: what the one before was made in.
#[derive(Default)]
pub(crate) struct Paper {
    insns: Vec<Planned>,
    code: Assembler,
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
    pub(crate) budget: Budget,
    pub(crate) entries: Entries,
    /// Code that makes flags once more, and which of it makes those in RFLAGS.
    redos: Vec<Redo>,
    redo: Option<u8>,
    pub(crate) mirrors: Mirrors,
    pub(crate) needs: Needs,
    /// Branches that were taken off the budget and have not retired yet.
    pub(crate) unretired: u8,
    /// The group whose address RDI holds, and what it held before this instruction.
    held: Option<usize>,
    was_held: Option<usize>,
    /// How many bytes guest RSP is above its register ([`crate::stack::find_runs`]).
    pub(crate) ahead: i8,
    /// The lookup being emitted is a string instruction's.
    pub(crate) in_string: bool,
    /// Offset in the page of the instruction being emitted, and of the next.
    pub(crate) offset: u16,
    pub(crate) next: u16,
}

/// A finished block.
pub(crate) struct Block {
    pub(crate) code: Assembler,
    pub(crate) sites: Vec<Site>,
    pub(crate) faults: Vec<FaultSite>,
    pub(crate) entries: Entries,
    /// Guest instructions in it.
    pub(crate) insns: usize,
    /// Guest bytes it depends on, as [`Plan::extents`].
    pub(crate) extents: Extents,
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
    let mut plan = plan::discover(options, mode, variant, source, &mut workshop.tables, insns);
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
            code: std::mem::take(&mut paper.code).emptied(),
            workshop,
            mode,
            direct: false,
            origin: place.origin,
            first_site: place.first_site,
            sites,
            faults,
            stubs,
            flags: Flags::Saved,
            budget: Budget::Word,
            entries: Entries::default(),
            redos,
            redo: None,
            mirrors: Mirrors::default(),
            needs: Needs::default(),
            unretired: 0,
            held: None,
            was_held: None,
            ahead: 0,
            in_string: false,
            offset: 0,
            next: 0,
        }
    }

    fn block(&mut self, plan: &Plan, source: &Source<'_>) -> Result<(), usize> {
        self.unretired = plan.branches();
        self.offset = source.start;
        self.next = source.start;
        self.prologue(plan, source.from_flags);
        self.mark(plan, source);
        let many = self.direct && are_many(&plan.insns);
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
            self.needs = Needs::at(&plan.insns, index, self.direct, many);
            self.instruction(planned).map_err(|Unsupported| index)?;
            if self.direct && planned.near.moves {
                self.offset = self.next;
                self.check_stack_pointer(Faults::Moved);
            }
        }
        self.drop_mirrors();
        if plan.end != End::Branch {
            self.offset = plan.stop;
        }
        match plan.end {
            End::Branch => {}
            End::Step { mnemonic, len } => {
                self.leave_here(Why::Step { mnemonic, len, then: None });
            }
            End::Limit | End::Page => {
                self.note_fall();
                self.link(None, i64::from(plan.stop)).expect("near enough");
            }
        }
        self.emit_stubs();
        Ok(())
    }

    fn instruction(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        match planned.class {
            Class::Nothing | Class::Compute { .. } | Class::Address => {}
            Class::Branch if planned.inside => {}
            Class::Branch => self.drop_mirrors(),
            Class::Stack if self.direct => {}
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
        let group = usize::from(member.group);
        if self.was_held != Some(group) {
            self.code.op_word(Op::Load, host::RDI, layout::group(group));
        }
        self.held = Some(group);
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
                    self.flags_to_ax();
                    Flags::Saved
                }
            };
        }
    }

    /// Flags to AX, on the way out.
    pub(crate) fn keep_flags(&mut self) {
        self.redo_flags();
        if self.flags == Flags::Host {
            self.flags_to_ax();
            self.flags = Flags::Saved;
        }
    }

    /// Flags are made once more if they were not kept.
    pub(crate) fn redo_flags(&mut self) {
        if let Flags::Redo(redo) = self.flags {
            self.code.put_slice(&self.redos[usize::from(redo)]);
            self.flags = Flags::Host;
        }
    }

    fn flags_to_ax(&mut self) {
        self.free(host::RAX);
        self.code.save_flags();
    }

    /// Flags to RFLAGS.
    pub(crate) fn restore_flags(&mut self) {
        self.redo_flags();
        if self.flags == Flags::Saved {
            self.code.restore_flags();
            self.flags = Flags::Host;
        }
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

    /// Offset in code memory of what is emitted next.
    pub(crate) fn place(&self) -> u32 {
        self.outside(self.code.here())
    }

    /// Offset in code memory of what is at `at` in the block.
    pub(crate) fn outside(&self, at: usize) -> u32 {
        self.origin + at as u32
    }

    /// Where a miss comes back to: flags are in AX then, and RDI and RSI hold nothing, so what
    /// follows does not rely on a group's address in RDI.
    pub(crate) fn resume_place(&mut self) -> u32 {
        self.save_flags();
        self.end_mirrors();
        self.settle_stack();
        self.was_held = None;
        self.place()
    }

    /// Offset in code memory of the block's entry with flags in AX.
    pub(crate) fn entry_place(&self) -> u32 {
        self.origin + self.entries.saved
    }

    /// Gives a site its number.
    pub(crate) fn add_site(&mut self, site: Site) -> SiteId {
        let id = self.first_site + self.sites.len() as SiteId;
        self.sites.push(site);
        id
    }

    /// Jumps from `at`, a displacement in this block, to a trampoline.
    pub(crate) fn bind_outside(&mut self, at: usize, trampoline: u32) {
        let target = i64::from(trampoline) - i64::from(self.origin);
        let displacement = target - (at as i64 + 4);
        self.code.bytes_at(at, 4).copy_from_slice(&(displacement as i32).to_le_bytes());
    }

    /// Has the fall-back engine execute the instruction, and comes back.
    fn step(&mut self, mnemonic: Mnemonic) {
        self.save_flags();
        self.spill_budget();
        let jump = self.code.jump();
        let (len, then) = (self.next - self.offset, NonZeroU32::new(self.place()));
        self.leave_if(jump, Why::Step { mnemonic: mnemonic as u16, len, then });
    }

    fn finish(self, plan: Plan) -> Block {
        assert!(self.code.here() <= BLOCK_BYTES_MAX);
        let Emitter { code, workshop, sites, faults, stubs, redos, entries, .. } = self;
        let Plan { insns, extents, .. } = plan;
        let count = insns.len();
        let paper = &mut workshop.paper;
        (paper.insns, paper.stubs, paper.redos) = (insns, stubs, redos);
        Block { code, sites, faults, entries, insns: count, extents }
    }
}
