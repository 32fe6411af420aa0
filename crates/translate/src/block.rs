//! One basic block: guest bytes to instructions, instructions to host code.
//!
//! A block lies in one page and ends at its first branch, before its first instruction that is
//! for the fall-back engine, at the page's end, or at the limit. An instruction that reaches into
//! the next page is a block of its own, which checks what the next page is. A block's first four
//! bytes move the flags from RFLAGS to AX; the entry behind them takes them in AX.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, Encoder, FlowControl, Instruction,
    InstructionInfoFactory, Mnemonic,
};

use crate::assembler::{Assembler, condition};
use crate::classify::{Class, Mode, Unit, classify};
use crate::layout::{self, Flags};
use crate::options::Options;
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

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With a branch, its last instruction.
    Branch,
    /// Before an instruction for the fall-back engine after which nothing is known.
    Step { mnemonic: u16, len: u16 },
    /// Before an instruction of the same page.
    Limit,
    /// At the page's end, or past it.
    Page,
}

impl End {
    fn step(instruction: &Instruction) -> End {
        End::Step { mnemonic: instruction.mnemonic() as u16, len: instruction.len() as u16 }
    }
}

/// Guest code to be translated.
pub(crate) struct Source<'a> {
    pub(crate) page: &'a [u8; 4096],
    /// Offset of the block.
    pub(crate) start: u16,
    /// The page behind it, if the instruction at `start` reaches into it.
    pub(crate) next: Option<NextPage>,
}

/// What an instruction on two pages needs to know of the second.
#[derive(Clone, Copy)]
pub(crate) struct NextPage {
    /// Its address in the host.
    pub(crate) host: u64,
    /// Its first bytes.
    pub(crate) bytes: [u8; INSTRUCTION_SIZE_MAX - 1],
}

/// Longest instruction in bytes (SDM vol. 2, 2.3.11).
pub(crate) const INSTRUCTION_SIZE_MAX: usize = 15;

/// Code that is not on the straight path, to be put behind the block.
pub(crate) enum Stub {
    /// Leaves by a site, saving the flags first if they are in RFLAGS.
    Leave { jump: usize, site: Site, flags: Flags },
    /// Branches to another page, `target` from this one's start.
    Far { jump: usize, target: i32, flags: Flags, site: Site, side: u8 },
    /// Loads the registers of a unit by a trampoline and comes back.
    Load { jump: usize, back: usize, trampoline: u32 },
}

/// What translations of many blocks share.
pub(crate) struct Workshop {
    pub(crate) encoder: Encoder,
    pub(crate) factory: InstructionInfoFactory,
    pub(crate) trampolines: Trampolines,
    pub(crate) options: Options,
    /// Address of the table of indirect branches by side of the TLB, in the mode of the block
    /// being made otherwise.
    pub(crate) tables: [u64; 4],
}

/// A block in the making.
pub(crate) struct Emitter<'a> {
    pub(crate) code: Assembler,
    pub(crate) workshop: &'a mut Workshop,
    pub(crate) mode: Mode,
    /// Offset in code memory of the block's first byte.
    origin: u32,
    first_site: SiteId,
    sites: Vec<Site>,
    pub(crate) faults: Vec<FaultSite>,
    stubs: Vec<Stub>,
    pub(crate) flags: Flags,
    pub(crate) unretired: bool,
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
    /// Guest bytes it depends on; those past the page's end are in the next.
    pub(crate) guest_len: u64,
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
    source: &Source<'_>,
    place: Place,
) -> Block {
    let (mut insns, mut end, guest_end) = match &source.next {
        None => discover(workshop.options, mode, source),
        Some(next) => discover_on_two(mode, source, next),
    };
    loop {
        let mut emitter = Emitter::new(workshop, mode, place);
        match emitter.block(&insns, end, source) {
            Ok(()) => {
                let guest_len = (guest_end - u64::from(source.start)).max(1);
                return emitter.finish(insns.len(), guest_len);
            }
            Err(index) if ends_block(&insns[index].0) => {
                end = End::step(&insns[index].0);
                insns.truncate(index);
            }
            Err(index) => insns[index].1 = Class::Step,
        }
    }
}

/// Whether the instruction at `start` reaches into the next page.
pub(crate) fn is_on_two_pages(page: &[u8; 4096], start: u16) -> bool {
    let window = &page[usize::from(start)..];
    if window.len() >= INSTRUCTION_SIZE_MAX {
        return false;
    }
    let mut decoder = Decoder::new(64, window, DecoderOptions::NONE);
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

/// The instructions of the block, how it ends, and where the bytes it depends on end.
type Discovered = (Vec<(Instruction, Class)>, End, u64);

/// As [`discover`], for one instruction that reaches into the next page.
fn discover_on_two(mode: Mode, source: &Source<'_>, next: &NextPage) -> Discovered {
    let mut bytes = source.page[usize::from(source.start)..].to_vec();
    bytes.extend(next.bytes);
    let start = u64::from(source.start);
    let instruction = Decoder::with_ip(64, &bytes, start, DecoderOptions::NONE).decode();
    let class = classify(&instruction, mode);
    let end = start + instruction.len().max(1) as u64;
    match class {
        Class::Step if ends_block(&instruction) => (Vec::new(), End::step(&instruction), end),
        Class::Branch => (vec![(instruction, class)], End::Branch, end),
        _ => (vec![(instruction, class)], End::Page, end),
    }
}

/// Whether an instruction for the fall-back engine does not lead to the next one.
fn ends_block(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
        || instruction.is_invalid()
        || instruction.mnemonic() == Mnemonic::Hlt
}

fn discover(options: Options, mode: Mode, source: &Source<'_>) -> Discovered {
    let start = source.start;
    let window = &source.page[usize::from(start)..];
    let mut decoder = Decoder::with_ip(64, window, u64::from(start), DecoderOptions::NONE);
    let mut insns = Vec::new();
    loop {
        if decoder.ip() == 4096 {
            return (insns, End::Page, 4096);
        }
        if insns.len() >= options.block_insns_max {
            return (insns, End::Limit, decoder.ip());
        }
        let at = decoder.ip();
        let instruction = decoder.decode();
        if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            assert!(!insns.is_empty(), "a block of its own");
            return (insns, End::Limit, at);
        }
        let class = classify(&instruction, mode);
        if class == Class::Step && ends_block(&instruction) {
            return (insns, End::step(&instruction), decoder.ip());
        }
        insns.push((instruction, class));
        if class == Class::Branch {
            return (insns, End::Branch, decoder.ip());
        }
    }
}

impl<'a> Emitter<'a> {
    fn new(workshop: &'a mut Workshop, mode: Mode, place: Place) -> Emitter<'a> {
        Emitter {
            code: Assembler::default(),
            workshop,
            mode,
            origin: place.origin,
            first_site: place.first_site,
            sites: Vec::new(),
            faults: Vec::new(),
            stubs: Vec::new(),
            flags: Flags::Saved,
            unretired: false,
            in_string: false,
            offset: 0,
            next: 0,
        }
    }

    fn block(
        &mut self,
        insns: &[(Instruction, Class)],
        end: End,
        source: &Source<'_>,
    ) -> Result<(), usize> {
        self.unretired = end == End::Branch;
        self.offset = source.start;
        self.next = source.start;
        self.prologue(insns);
        if let Some(next) = &source.next
            && !insns.is_empty()
        {
            self.check_next_page(next.host);
        }
        for (index, (instruction, class)) in insns.iter().enumerate() {
            self.offset = self.next;
            self.next = self.offset + instruction.len() as u16;
            self.instruction(instruction, *class).map_err(|Unsupported| index)?;
        }
        match end {
            End::Branch => {}
            End::Step { mnemonic, len } => {
                self.leave_here(Why::Step { mnemonic, len, then: None });
            }
            End::Limit => self.link(None, i64::from(self.next)).expect("in the page"),
            End::Page => {
                self.offset = self.next;
                self.link(None, i64::from(self.next)).expect("near enough");
            }
        }
        self.emit_stubs();
        Ok(())
    }

    fn prologue(&mut self, insns: &[(Instruction, Class)]) {
        self.code.save_flags();
        // sub or cmp qword gs:[BUDGET], 1 or 0
        let (form, amount, jump) = match self.unretired {
            true => (0x2c, 1, condition::BELOW),
            false => (0x3c, 0, condition::EQUAL),
        };
        self.code.put(&[0x65, 0x48, 0x83, form, 0x25]);
        self.code.put(&layout::BUDGET.to_le_bytes());
        self.code.put(&[amount]);
        let jump = self.code.jump_if(jump);
        let site = self.site(Why::Budget);
        self.stubs.push(Stub::Leave { jump, site, flags: Flags::Saved });
        if self.workshop.options.count_instructions {
            self.code.put(&[0x65, 0x48, 0x83, 0x04, 0x25]); // add qword gs:[..], n
            self.code.put(&layout::INSTRUCTIONS.to_le_bytes());
            let count = insns.iter().filter(|(_, class)| *class != Class::Step).count();
            self.code.put(&[count.min(127) as u8]);
        }
        let Trampolines { vectors, x87, .. } = self.workshop.trampolines;
        for (unit, word, trampoline) in
            [(Unit::Vectors, layout::VECTORS, vectors), (Unit::X87, layout::X87, x87)]
        {
            if !insns.iter().any(|(_, class)| *class == Class::Compute { unit }) {
                continue;
            }
            self.code.put(&[0x65, 0x80, 0x3c, 0x25]); // cmp byte gs:[word], 0
            self.code.put(&word.to_le_bytes());
            self.code.put(&[0]);
            let jump = self.code.jump_if(condition::EQUAL);
            let back = self.code.here();
            self.stubs.push(Stub::Load { jump, back, trampoline });
        }
    }

    fn instruction(&mut self, instruction: &Instruction, class: Class) -> Emitted {
        match class {
            Class::Nothing => Ok(()),
            Class::Branch => self.branch(instruction),
            Class::Stack => self.stack(instruction),
            Class::Address => self.load_address(instruction),
            Class::System => self.system(instruction),
            Class::String => self.string(instruction),
            Class::Compute { unit } => self.compute(instruction, unit),
            Class::Step => {
                self.step(instruction.mnemonic());
                Ok(())
            }
        }
    }

    /// Flags to AX.
    pub(crate) fn save_flags(&mut self) {
        if self.flags == Flags::Host {
            self.code.save_flags();
            self.flags = Flags::Saved;
        }
    }

    /// Flags to RFLAGS.
    pub(crate) fn restore_flags(&mut self) {
        if self.flags == Flags::Saved {
            self.code.restore_flags();
            self.flags = Flags::Host;
        }
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
        let (len, then) = (self.next - self.offset, Some(self.place()));
        self.leave_if(jump, Why::Step { mnemonic: mnemonic as u16, len, then });
    }

    /// Leaves at the end of a block that ends in no branch.
    fn leave_here(&mut self, why: Why) {
        self.offset = self.next;
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
                let site = Site { why, offset, unretired: false, in_string: false };
                Stub::Leave { jump, site, flags }
            }
            _ => {
                let (site, side) = (self.site(Why::Goto), self.mode.side);
                Stub::Far { jump, target: far, flags, site, side }
            }
        });
        Ok(())
    }

    /// Jumps from `at`, a displacement in this block, to a trampoline.
    pub(crate) fn bind_outside(&mut self, at: usize, trampoline: u32) {
        let target = i64::from(trampoline) - i64::from(self.origin);
        let displacement = target - (at as i64 + 4);
        self.code.bytes[at..at + 4].copy_from_slice(&(displacement as i32).to_le_bytes());
    }

    fn emit_stubs(&mut self) {
        let mut done = 0;
        while done < self.stubs.len() {
            let stubs = std::mem::take(&mut self.stubs);
            done = 0;
            for stub in stubs {
                self.emit_stub(stub);
            }
        }
    }

    fn emit_stub(&mut self, stub: Stub) {
        let here = self.code.here();
        match stub {
            Stub::Leave { jump, mut site, flags } => {
                self.code.bind(jump, here);
                if let Why::Far { stub, .. } | Why::Link { stub, .. } = &mut site.why {
                    *stub = self.origin + here as u32;
                }
                self.flags = flags;
                self.save_flags();
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
                self.save_flags();
                self.go_far(target);
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

    fn finish(self, insns: usize, guest_len: u64) -> Block {
        assert!(self.code.bytes.len() <= BLOCK_BYTES_MAX);
        let Emitter { code, sites, faults, .. } = self;
        Block { code: code.bytes, sites, faults, insns, guest_len }
    }
}
