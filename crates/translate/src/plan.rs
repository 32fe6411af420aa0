//! What a block consists of: guest bytes to instructions in the order they run.
//!
//! A fast block runs on past conditional branches (taken, they leave it by the side) and through
//! jumps, and looks up accesses in groups. A careful block is a plain basic block in which each
//! access is looked up by itself; a fast block goes over to it where a lookup for a group fails
//! or the budget does not last for all its branches.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use smallvec::SmallVec;

use crate::classify::{Class, FlagUse, Mode};
use crate::crossing::is_crossing;
use crate::effects::Effects;
use crate::group::{self, Group, Member, Near};
use crate::mirror::{self, Reads};
use crate::operands::Operands;
use crate::options::Options;
use crate::stack;
use crate::tables::Tables;

/// Instructions of a block, whatever the options say; their numbers fit a byte.
const INSNS_MAX: usize = REPEATED_ALONE;
/// Branches of a fast block.
const BRANCHES_MAX: usize = 8;
/// A fast block runs past no branch after so many instructions.
const LONG: usize = 40;
/// Nor does it repeat a loop that is longer than this with one more copy of it.
const REPEATED: usize = 32;
/// But if there are no other branches in it up to this: what is checked for the first copy serves
/// the others as well.
const REPEATED_ALONE: usize = 200;
/// Bytes that instructions in a row are looked for in at once.
const WINDOW: usize = 1024;
/// Which translation of some code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    /// The one that runs.
    #[default]
    Fast,
    /// The one that takes over where the other cannot go on.
    Careful,
}

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
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
    /// Copies bytes of the page from an offset on.
    pub(crate) read: &'a dyn Fn(u16, &mut [u8]),
    /// Offset of the block.
    pub(crate) start: u16,
    /// The page behind it, if the instruction at `start` reaches into it.
    pub(crate) next: Option<NextPage>,
    /// Where the page's marks of executed code are, if it is to make any.
    pub(crate) marks: Option<u64>,
    /// SYSCALL and SYSRET are translated.
    pub(crate) crosses: bool,
    /// Offsets of instructions in the page that are not to be translated.
    pub(crate) breakpoints: Vec<u16>,
    /// Who wants it comes with flags in RFLAGS.
    pub(crate) from_flags: bool,
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

/// One instruction.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) instruction: Instruction,
    pub(crate) class: Class,
    /// Offset in the page.
    pub(crate) offset: u16,
    /// A branch after which the block goes on.
    pub(crate) inside: bool,
    /// One that goes back to the block's start: the block goes on with another copy of it.
    pub(crate) again: bool,
    /// Its memory operand, if in a group.
    pub(crate) operand: Option<Member>,
    /// What it pushes or pops, if in a group.
    pub(crate) stack: Option<Member>,
    /// Which accesses are near others, in a block whose accesses go by the host's page tables.
    pub(crate) near: Near,
    /// The stack pointer's register need not follow what it does to that ([`stack::find_runs`]).
    pub(crate) lags: bool,
    /// Who reads the guest registers that are kept in words next, from this one on.
    pub(crate) reads: Reads,
    pub(crate) operands: Operands,
    /// What it does with its operands.
    pub(crate) effects: Effects,
    /// What it does to flags, and whether anybody needs them as they are before and after it.
    pub(crate) flags: FlagUse,
    pub(crate) flags_before: bool,
    pub(crate) flags_after: bool,
    /// Its flags are not kept: who leaves does it again.
    pub(crate) redone: bool,
}

impl Planned {
    #[inline(always)]
    fn new(
        instruction: Instruction,
        operands: Operands,
        class: Class,
        offset: u16,
        tables: &mut Tables,
    ) -> Planned {
        let effects = tables.effects(&instruction, &operands);
        let flags = tables.flag_use(&instruction);
        let (inside, again, lags, operand, stack) = (false, false, false, None, None);
        let (flags_before, flags_after, redone) = (true, true, false);
        Planned {
            instruction,
            class,
            offset,
            inside,
            again,
            operand,
            stack,
            near: Near::default(),
            lags,
            reads: Reads::default(),
            operands,
            effects,
            flags,
            flags_before,
            flags_after,
            redone,
        }
    }
}

/// Offsets of some first bytes, and of what follows some last ones.
pub(crate) type Extents = SmallVec<[(u16, u16); 4]>;

/// A block to be emitted.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) insns: Vec<Planned>,
    pub(crate) end: End,
    /// Offset in the page of what would be next, if it does not end with a branch.
    pub(crate) stop: u16,
    /// Guest bytes it depends on: offsets in the page of the first, and after the last.
    pub(crate) extents: Extents,
    pub(crate) groups: Vec<Group>,
    /// Its accesses go by the host's page tables.
    pub(crate) direct: bool,
}

impl Plan {
    /// Branches that retire if it runs to its end.
    pub(crate) fn branches(&self) -> u8 {
        self.insns.iter().filter(|planned| planned.class == Class::Branch).count() as u8
    }

    /// Whether a branch leads back to its start.
    pub(crate) fn loops(&self) -> bool {
        let Some(start) = self.insns.first().map(|first| u64::from(first.offset)) else {
            return false;
        };
        let branches = self.insns.iter().filter(|planned| planned.class == Class::Branch);
        let near = |insn: &Instruction| insn.op0_kind() == OpKind::NearBranch64;
        branches
            .map(|planned| &planned.instruction)
            .any(|insn| near(insn) && insn.near_branch_target() == start)
    }

    /// Leaves the instruction at `index` to the fall-back engine.
    pub(crate) fn step(&mut self, index: usize) {
        let instruction = self.insns[index].instruction;
        if ends_block(&instruction) {
            self.end = End::step(&instruction);
            self.stop = self.insns[index].offset;
            self.insns.truncate(index);
        } else {
            self.insns[index].class = Class::Step;
        }
        if self.direct {
            self.go_direct();
        } else if !self.groups.is_empty() {
            self.group();
        }
    }

    /// Has its accesses go by the host's page tables.
    pub(crate) fn go_direct(&mut self) {
        self.direct = true;
        group::find_near(&mut self.insns);
        mirror::find_needs(&mut self.insns);
        stack::find_runs(&mut self.insns);
    }

    /// Finds the groups anew.
    pub(crate) fn group(&mut self) {
        self.groups = group::find(&mut self.insns);
    }
}

/// Whether the instruction at `start` reaches into the next page.
pub(crate) fn is_on_two_pages(read: &dyn Fn(u16, &mut [u8]), start: u16) -> bool {
    let left = 4096 - usize::from(start);
    if left >= INSTRUCTION_SIZE_MAX {
        return false;
    }
    let mut window = [0; INSTRUCTION_SIZE_MAX];
    let window = &mut window[..left];
    read(start, window);
    let mut decoder = Decoder::new(64, window, DecoderOptions::NONE);
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

/// Whether an instruction for the fall-back engine does not lead to the next one.
fn ends_block(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
        || instruction.is_invalid()
        || instruction.mnemonic() == Mnemonic::Hlt
}

/// The block at the start of `source`, its instructions in `insns`, which is empty.
pub(crate) fn discover(
    options: Options,
    mode: Mode,
    variant: Variant,
    source: &Source<'_>,
    tables: &mut Tables,
    insns: Vec<Planned>,
) -> Plan {
    if let Some(next) = &source.next {
        return discover_on_two(mode, source, next, tables);
    }
    let limit = options.block_insns_max.min(INSNS_MAX);
    // Short blocks are asked for by tests.
    let most = if limit < REPEATED { limit } else { REPEATED_ALONE };
    let mut discovery = Discovery {
        limit,
        most,
        tables,
        insns,
        extents: Extents::new(),
        branches: 0,
        stop: source.start,
        long: options.traces && variant == Variant::Fast,
    };
    let mut from = source.start;
    let end = loop {
        match discovery.run(mode, source, from) {
            Ok(end) => break end,
            Err(target) => from = target,
        }
    };
    let Discovery { insns, mut extents, stop, .. } = discovery;
    // Rounds of a loop have the same.
    extents.sort_unstable();
    extents.dedup();
    Plan { insns, end, stop, extents, groups: Vec::new(), direct: false }
}

/// As [`discover`], for one instruction that reaches into the next page.
fn discover_on_two(mode: Mode, source: &Source<'_>, next: &NextPage, tables: &mut Tables) -> Plan {
    let mut bytes = vec![0; 4096 - usize::from(source.start)];
    (source.read)(source.start, &mut bytes);
    bytes.extend(next.bytes);
    let start = source.start;
    let instruction = Decoder::with_ip(64, &bytes, u64::from(start), DecoderOptions::NONE).decode();
    let operands = Operands::of(&instruction);
    let class = tables.class(&instruction, operands.memory, mode);
    let stop = start + instruction.len().max(1) as u16;
    let one = Planned::new(instruction, operands, class, start, tables);
    let (insns, end) = match class {
        Class::Step if ends_block(&instruction) => (Vec::new(), End::step(&instruction)),
        Class::Branch => (vec![one], End::Branch),
        _ => (vec![one], End::Page),
    };
    let extents = Extents::from_slice(&[(start, stop)]);
    let stop = if insns.is_empty() { start } else { stop };
    Plan { insns, end, stop, extents, groups: Vec::new(), direct: false }
}

/// Whether the instruction is a conditional branch back to `start`, with something behind it.
fn is_loop(instruction: &Instruction, start: u16) -> bool {
    instruction.is_jcc_short_or_near()
        && instruction.near_branch_target() == u64::from(start)
        && instruction.next_ip() < 4096
}

struct Discovery<'a> {
    /// Most instructions of the block.
    limit: usize,
    /// The same if it repeats a loop without other branches.
    most: usize,
    tables: &'a mut Tables,
    insns: Vec<Planned>,
    extents: Extents,
    branches: usize,
    stop: u16,
    /// May run on past branches.
    long: bool,
}

impl Discovery<'_> {
    /// Whether another copy of a loop is to follow, if it is one and the instruction ends it.
    fn may_repeat(&self, instruction: &Instruction, start: u16) -> bool {
        let offset = instruction.ip() as u16;
        let copies = 1 + self.insns.iter().filter(|planned| planned.offset == offset).count();
        let length = self.insns.len() + 1;
        let whole = length + length / copies;
        let most = if self.branches == copies { self.most } else { REPEATED };
        is_loop(instruction, start) && whole <= most
    }

    /// Instructions from `from` on; where they go on, or how they end.
    fn run(&mut self, mode: Mode, source: &Source<'_>, from: u16) -> Result<End, u16> {
        let mut window = [0; WINDOW];
        let end = usize::from(from).saturating_add(WINDOW).min(4096);
        let window = &mut window[..end - usize::from(from)];
        (source.read)(from, window);
        let mut decoder = Decoder::with_ip(64, window, u64::from(from), DecoderOptions::NONE);
        let extent = |end: u64| (from, (end as u16).max(from + 1));
        loop {
            let offset = decoder.ip();
            self.stop = offset as u16;
            let breaks = source.breakpoints.contains(&self.stop);
            if offset == 4096 || breaks || self.insns.len() >= self.limit {
                self.extents.push(extent(offset));
                return Ok(if offset == 4096 { End::Page } else { End::Limit });
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
                // It will begin a block, or be one of its own; a jump may have led to it.
                self.extents.push(extent(if end == 4096 { 4096 } else { offset }));
                return Ok(End::Limit);
            }
            let operands = Operands::of(&instruction);
            let class = match self.tables.class(&instruction, operands.memory, mode) {
                Class::Step if source.crosses && is_crossing(&instruction, mode) => Class::Branch,
                class => class,
            };
            if class == Class::Step && ends_block(&instruction) {
                self.extents.push(extent(decoder.ip()));
                return Ok(End::step(&instruction));
            }
            let mut planned =
                Planned::new(instruction, operands, class, offset as u16, self.tables);
            if class != Class::Branch {
                self.insns.push(planned);
                continue;
            }
            self.branches += 1;
            let goes_on = self.long && self.branches < BRANCHES_MAX;
            let room = goes_on && self.insns.len() < LONG;
            let target = instruction.near_branch_target();
            let covered = |at: u64| {
                let from = u64::from(from);
                (from..=offset).contains(&at)
                    || self.extents.iter().any(|&(a, b)| (u64::from(a)..u64::from(b)).contains(&at))
            };
            let direct = instruction.op0_kind() == OpKind::NearBranch64 && target < 4096;
            let jumps = direct
                && instruction.mnemonic() == Mnemonic::Jmp
                && !covered(target)
                && !source.breakpoints.contains(&(target as u16));
            let passes = instruction.is_jcc_short_or_near()
                && decoder.ip() < 4096
                && !(direct && (target <= offset || covered(target)));
            planned.again = goes_on && self.may_repeat(&instruction, source.start);
            planned.inside = planned.again || room && (jumps || passes);
            let (again, inside) = (planned.again, planned.inside);
            self.insns.push(planned);
            if again {
                self.limit = self.limit.max(self.most);
                self.extents.push((from, decoder.ip() as u16));
                return Err(source.start);
            }
            if !inside {
                self.extents.push((from, decoder.ip() as u16));
                return Ok(End::Branch);
            }
            if jumps {
                self.extents.push((from, decoder.ip() as u16));
                return Err(target as u16);
            }
        }
    }
}
