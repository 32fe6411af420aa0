//! Which accesses of a block share one lookup in the TLB: those at constant distances from each
//! other, by value numbers of the registers in their addresses.

use cpu::gpr::{RBP, RSP};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use smallvec::{SmallVec, smallvec};

use crate::classify::Class;
use crate::control::DROPPED_MAX;
use crate::direct;
use crate::effects::is_read;
use crate::flags;
use crate::operands::number;
use crate::plan::Planned;
use crate::shadow::MARGIN;
use crate::stack::AHEAD_MAX;

/// Bytes from the first to the last of a group.
const SPAN_MAX: i64 = 512;
/// Groups of a block.
pub(crate) const GROUPS_MAX: usize = 8;
/// Number of the value "start of the page", for addresses relative to RIP.
const PAGE: u16 = 16;

/// An access that a group's lookup serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Index of the group.
    pub(crate) group: u8,
    /// Bytes from the group's first.
    pub(crate) at: i32,
}

/// The address of a group's first byte at the place of its lookup: registers by guest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// `None` is the start of the page.
    pub(crate) base: Option<u8>,
    /// With its scale.
    pub(crate) index: Option<(u8, u8)>,
    pub(crate) displacement: i32,
}

/// Accesses with one lookup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Before which instruction it is looked up.
    pub(crate) before: usize,
    pub(crate) address: Address,
    pub(crate) span: u16,
    pub(crate) write: bool,
}

/// Which accesses of an instruction need no check of their address: one near enough was checked
/// earlier in the block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Near {
    /// Its memory operand.
    pub(crate) operand: bool,
    /// What it pushes or pops.
    pub(crate) stack: bool,
    /// The stack pointer is checked after it.
    pub(crate) moves: bool,
}

/// An access without an index that is no further than this from its base register has that checked.
pub(crate) const BESIDE_MAX: i64 = 0x4000;
/// How far from what was checked an access may be, the distance above counted once more.
const NEAR_MAX: i64 = 0x8000;
/// The stack pointer, where nothing checks it once more, is no further than this from what was.
const STACK_MAX: i64 = 8 + DROPPED_MAX as i64 + AHEAD_MAX as i64;
const _: () = assert!(NEAR_MAX + BESIDE_MAX + 64 + STACK_MAX < MARGIN as i64);

/// Notes in a block's instructions which of their accesses are near others. The stack pointer was
/// checked before the block. What pushes or pops moves it no further than it accessed; after
/// anything else it is checked again.
pub(crate) fn find_near(insns: &mut [Planned]) {
    let stack = Key { base: RSP as u16, index: None };
    let mut grouping = Grouping { checked: Some(smallvec![(stack, 0)]), ..Grouping::default() };
    for (index, planned) in insns.iter_mut().enumerate() {
        grouping.operand(index, planned);
        grouping.stack(index, planned);
        grouping.change(planned);
        let near = |access: &Use| access.found == FOUND_NEAR;
        planned.near = Near { moves: moves_stack(planned), ..Near::default() };
        for access in grouping.uses.drain(..).filter(near) {
            *(if access.stack { &mut planned.near.stack } else { &mut planned.near.operand }) =
                true;
        }
        let Value { id, offset } = grouping.values[RSP];
        if let (true, Some(checked)) = (planned.near.moves, &mut grouping.checked) {
            checked.push((Key { base: id, index: None }, offset));
        }
    }
}

/// Whether the instruction may move the stack pointer without an access at every place between.
fn moves_stack(planned: &Planned) -> bool {
    let instruction = &planned.instruction;
    match (planned.class, instruction.mnemonic()) {
        (Class::Branch, _) | (Class::Stack, Mnemonic::Push) => false,
        (Class::Stack, Mnemonic::Pop) => whole(instruction.op0_register()) == Some(RSP),
        _ => planned.effects.written & 1 << RSP != 0,
    }
}

/// Finds the groups of a block and notes in its instructions which they are in.
pub(crate) fn find(insns: &mut [Planned]) -> Vec<Group> {
    Grouping::default().find(insns)
}

/// A value number and a constant distance from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    id: u16,
    offset: i64,
}

/// What makes accesses members of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    base: u16,
    index: Option<(Value, u8)>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    key: Key,
    low: i64,
    high: i64,
    write: bool,
    members: usize,
    /// The first instruction, and the address by registers as they are there.
    first: usize,
    address: Address,
    /// No branch comes before it.
    certain: bool,
    /// Something that closes groups comes before it.
    late: bool,
}

/// One access.
#[derive(Clone, Copy)]
struct Use {
    index: usize,
    stack: bool,
    found: usize,
    low: i64,
}

struct Grouping {
    values: [Value; 16],
    next: u16,
    found: Vec<Found>,
    uses: SmallVec<[Use; 4]>,
    branched: bool,
    /// Groups before this one take no more members.
    closed: usize,
    /// There are closed groups, or could have been.
    passed: bool,
    /// Instead of groups: which values, and what distances from them, were checked.
    checked: Option<SmallVec<[(Key, i64); 8]>>,
}

/// Stands for the group of an access that is near one that was checked.
const FOUND_NEAR: usize = usize::MAX;

impl Default for Grouping {
    fn default() -> Grouping {
        Grouping {
            values: std::array::from_fn(|id| Value { id: id as u16, offset: 0 }),
            next: PAGE + 1,
            found: Vec::new(),
            uses: SmallVec::new(),
            branched: false,
            closed: 0,
            passed: false,
            checked: None,
        }
    }
}

/// A 64-bit general register's number.
fn whole(register: Register) -> Option<usize> {
    register.is_gpr64().then(|| usize::from(number(register)))
}

impl Grouping {
    fn find(mut self, insns: &mut [Planned]) -> Vec<Group> {
        for (index, planned) in insns.iter_mut().enumerate() {
            (planned.operand, planned.stack) = (None, None);
            self.operand(index, planned);
            self.stack(index, planned);
            self.change(planned);
            self.branched |= planned.class == Class::Branch;
            if matches!(planned.class, Class::Step | Class::String | Class::System) {
                // What was looked up before may not be right after it.
                self.closed = self.found.len();
                self.passed = true;
            }
        }
        let in_chains = flags::in_chains(insns);
        let mut groups = Vec::new();
        let mut places = vec![None; self.found.len()];
        for (index, found) in self.found.iter().enumerate() {
            if groups.len() == GROUPS_MAX {
                break;
            }
            // Looked up at the start, one access does not have to move flags out of the way.
            if found.members > 1 || (in_chains[found.first] && found.is_early()) {
                places[index] = Some(groups.len());
                groups.push(found.group());
            }
        }
        for access in &self.uses {
            let Some(group) = places[access.found] else { continue };
            let at = (access.low - self.found[access.found].low) as i32;
            let member = Some(Member { group: group as u8, at });
            let planned = &mut insns[access.index];
            *(if access.stack { &mut planned.stack } else { &mut planned.operand }) = member;
        }
        groups
    }

    /// The explicit memory operand.
    fn operand(&mut self, index: usize, planned: &Planned) {
        let instruction = &planned.instruction;
        let accesses = matches!(planned.class, Class::Compute { .. })
            || matches!(planned.class, Class::Stack | Class::Branch)
                && instruction.op0_kind() == OpKind::Memory;
        if !accesses
            || !planned.operands.memory
            || planned.effects.of_code.bit_string
            || matches!(instruction.memory_segment(), Register::FS | Register::GS)
        {
            return;
        }
        let write = match planned.class {
            Class::Compute { .. } => match planned.effects.of_code.memory {
                Some(access) => !is_read(access),
                None => return,
            },
            _ => false,
        };
        // What looks in the TLB checks nothing for others.
        if let Class::Compute { unit } = planned.class
            && self.checked.is_some()
            && !direct::may_go(unit, write)
        {
            return;
        }
        let displacement = instruction.memory_displacement64() as i64;
        let (base, register) = match instruction.memory_base() {
            Register::RIP => (Value { id: PAGE, offset: 0 }, None),
            base => match whole(base) {
                Some(base) => (self.values[base], Some(base as u8)),
                None => return,
            },
        };
        let scale = instruction.memory_index_scale() as u8;
        let index_register = match instruction.memory_index() {
            Register::None => None,
            register => match whole(register) {
                Some(register) => Some((register as u8, scale)),
                None => return,
            },
        };
        let index_value =
            index_register.map(|(register, scale)| (self.values[usize::from(register)], scale));
        let size = instruction.memory_size().size() as i64;
        let key = Key { base: base.id, index: index_value };
        let address = (register, index_register, base.offset);
        let low = base.offset.wrapping_add(displacement);
        self.access(Use { index, stack: false, found: 0, low }, key, size, write, address);
    }

    /// What is pushed or popped.
    fn stack(&mut self, index: usize, planned: &Planned) {
        let instruction = &planned.instruction;
        let (register, below, write) = match (planned.class, instruction.mnemonic()) {
            (Class::Stack, Mnemonic::Push) => (RSP, 8, true),
            (Class::Stack, Mnemonic::Pop) => (RSP, 0, false),
            (Class::Stack, Mnemonic::Leave) => (RBP, 0, false),
            (Class::Branch, Mnemonic::Call) => (RSP, 8, true),
            (Class::Branch, Mnemonic::Ret) => (RSP, 0, false),
            _ => return,
        };
        let value = self.values[register];
        let key = Key { base: value.id, index: None };
        let low = value.offset - below;
        let address = (Some(register as u8), None, value.offset);
        self.access(Use { index, stack: true, found: 0, low }, key, 8, write, address);
    }

    fn access(
        &mut self,
        mut access: Use,
        key: Key,
        size: i64,
        write: bool,
        address: (Option<u8>, Option<(u8, u8)>, i64),
    ) {
        let (low, high) = (access.low, access.low.wrapping_add(size));
        if !(1..=64).contains(&size) || low.unsigned_abs() > 1 << 30 {
            return;
        }
        if let Some(checked) = &mut self.checked {
            let near = |&(other, point): &(Key, i64)| {
                other == key && low.abs_diff(point) <= NEAR_MAX as u64
            };
            if checked.iter().any(near) {
                access.found = FOUND_NEAR;
            } else {
                let (base, index, offset) = address;
                let beside = base.is_some() && index.is_none();
                let beside = beside && low.abs_diff(offset) <= BESIDE_MAX as u64;
                checked.push((key, if beside { offset } else { low }));
            }
            self.uses.push(access);
            return;
        }
        let fits = |found: &Found| {
            found.key == key && found.high.max(high) - found.low.min(low) <= SPAN_MAX
        };
        access.found = match self.found[self.closed..].iter().rposition(fits) {
            Some(at) => {
                let at = self.closed + at;
                let found = &mut self.found[at];
                (found.low, found.high) = (found.low.min(low), found.high.max(high));
                found.write |= write;
                found.members += 1;
                at
            }
            None => {
                let (base, index, offset) = address;
                self.found.push(Found {
                    key,
                    low,
                    high,
                    write,
                    members: 1,
                    first: access.index,
                    address: Address { base, index, displacement: -offset as i32 },
                    certain: !self.branched,
                    late: self.passed,
                });
                self.found.len() - 1
            }
        };
        self.uses.push(access);
    }

    /// What the instruction does to the registers' values.
    fn change(&mut self, planned: &Planned) {
        let instruction = &planned.instruction;
        let target = (instruction.op0_kind() == OpKind::Register)
            .then(|| whole(instruction.op0_register()))
            .flatten();
        match (planned.class, instruction.mnemonic(), target) {
            (Class::Stack, Mnemonic::Push, _) => self.values[RSP].offset -= 8,
            (Class::Stack, Mnemonic::Pop, _) => {
                self.values[RSP].offset += 8;
                self.forget(usize::from(number(instruction.op0_register())));
            }
            (Class::Stack, Mnemonic::Leave, _) => {
                self.values[RSP] = self.values[RBP];
                self.values[RSP].offset += 8;
                self.forget(RBP);
            }
            (Class::Nothing, ..) => {}
            (_, Mnemonic::Mov, Some(to)) if instruction.op1_kind() == OpKind::Register => {
                match whole(instruction.op1_register()) {
                    Some(from) => self.values[to] = self.values[from],
                    None => self.forget(to),
                }
            }
            (Class::Address, _, Some(to))
                if instruction.memory_index() == Register::None
                    && whole(instruction.memory_base()).is_some() =>
            {
                let base = usize::from(number(instruction.memory_base()));
                let displacement = instruction.memory_displacement64() as i64;
                self.values[to] = self.values[base];
                self.move_by(to, displacement);
            }
            (_, Mnemonic::Add | Mnemonic::Sub, Some(to)) if immediate(instruction).is_some() => {
                let by = immediate(instruction).unwrap_or(0);
                let down = instruction.mnemonic() == Mnemonic::Sub;
                self.move_by(to, if down { by.wrapping_neg() } else { by });
            }
            (_, Mnemonic::Inc, Some(to)) => self.move_by(to, 1),
            (_, Mnemonic::Dec, Some(to)) => self.move_by(to, -1),
            _ => {
                for register in planned.effects.written() {
                    self.forget(register);
                }
            }
        }
    }

    fn forget(&mut self, register: usize) {
        self.values[register] = Value { id: self.next, offset: 0 };
        self.next += 1;
    }

    fn move_by(&mut self, register: usize, by: i64) {
        let value = &mut self.values[register];
        value.offset = value.offset.wrapping_add(by);
        if value.offset.unsigned_abs() > 1 << 30 {
            *value = Value { id: self.next, offset: 0 };
            self.next += 1;
        }
    }
}

/// The immediate of an addition or subtraction.
fn immediate(instruction: &Instruction) -> Option<i64> {
    let kind = instruction.op1_kind();
    let known = matches!(kind, OpKind::Immediate8to64 | OpKind::Immediate32to64);
    known.then(|| instruction.immediate(1) as i64)
}

impl Found {
    /// Whether it is looked up at the start: if all of its registers have their first values, and
    /// it is certain or likely to be accessed.
    fn is_early(&self) -> bool {
        let base = self.key.base;
        let entry = base <= PAGE && self.key.index.is_none_or(|(value, _)| value.id < PAGE);
        let likely = self.key.index.is_none()
            && (base == PAGE || usize::from(base) == RSP || usize::from(base) == RBP);
        entry && !self.late && (self.certain || likely)
    }

    /// Looked up at the start, or where it is accessed first.
    fn group(&self) -> Group {
        let (base, early) = (self.key.base, self.is_early());
        let mut address = self.address;
        if early {
            let first = |(value, scale): (Value, u8)| (value.id as u8, scale);
            let moved = self.key.index.map_or(0, |(value, scale)| value.offset * i64::from(scale));
            address = Address {
                base: (base != PAGE).then_some(base as u8),
                index: self.key.index.map(first),
                displacement: moved as i32,
            };
        }
        address.displacement = address.displacement.wrapping_add(self.low as i32);
        Group {
            before: if early { 0 } else { self.first },
            address,
            span: (self.high - self.low) as u16,
            write: self.write,
        }
    }
}
