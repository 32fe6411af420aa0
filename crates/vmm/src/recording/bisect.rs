//! The first point of a recording at which something is so.
//!
//! Memory that a predicate names is watched and instructions it names are breakpoints, so that the
//! guest runs at full speed in between. Other registers are looked at after every instruction, but
//! only where all the rest holds. Memory that is not mapped yet is looked at in stretches, and the
//! stretch in which it comes true is searched.

use std::path::PathBuf;
use std::str::FromStr;

use cpu::gpr;
use replay::Target;
use travel::{Halt, Position, Stops, Travel, TravelError};
use types::VirtualTime;

use super::RecordingError;
use super::debug::travel;
use crate::{EngineKind, VmError};

/// Branches between two looks at what is not watched.
const STRETCH: u64 = 100_000;
/// Names of general registers by the numbers that instructions use.
const REGISTERS: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip",
];

/// Something about a machine: conditions that all hold, joined by `&&`.
///
/// A condition is `VALUE OP NUMBER` with OP one of `== != < <= > >=`, and VALUE a register's name
/// or `u8[ADDRESS]`, `u16[..]`, `u32[..]`, `u64[..]`: guest memory at a virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicate(Vec<Condition>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    value: Value,
    operator: Operator,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Register(usize),
    Memory { gva: u64, len: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Longer ones first, so that none is taken for the beginning of another.
const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl FromStr for Predicate {
    type Err = String;

    fn from_str(text: &str) -> Result<Predicate, String> {
        text.split("&&").map(condition).collect::<Result<_, _>>().map(Predicate)
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    let wrong = || format!("{:?}: write for example `u32[0xffffffff82000000] == 5`", text.trim());
    let found = OPERATORS.iter().find_map(|&(sign, operator)| {
        let (value, number) = text.split_once(sign)?;
        Some((value.trim(), operator, number.trim()))
    });
    let (value, operator, number) = found.ok_or_else(wrong)?;
    let number = parse_number(number).ok_or_else(wrong)?;
    let value = match REGISTERS.iter().position(|name| *name == value) {
        Some(index) => Value::Register(index),
        None => memory(value).ok_or_else(wrong)?,
    };
    Ok(Condition { value, operator, number })
}

fn memory(text: &str) -> Option<Value> {
    let (kind, rest) = text.split_once('[')?;
    let gva = parse_number(rest.strip_suffix(']')?.trim())?;
    let len = match kind.trim() {
        "u8" => 1,
        "u16" => 2,
        "u32" => 4,
        "u64" => 8,
        _ => return None,
    };
    Some(Value::Memory { gva, len })
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl Value {
    fn of(self, travel: &Travel) -> Option<u64> {
        match self {
            Value::Register(gpr::RIP) => Some(travel.linear_rip()),
            Value::Register(index) => Some(travel.machine().vcpu().regs.gpr[index]),
            Value::Memory { gva, len } => {
                let mut bytes = [0; 8];
                travel.read(None, gva, &mut bytes[..len]).ok()?;
                Some(u64::from_le_bytes(bytes))
            }
        }
    }
}

impl Condition {
    fn is_watched(&self) -> bool {
        match self.value {
            Value::Memory { .. } => true,
            Value::Register(index) => index == gpr::RIP && self.operator == Operator::Equal,
        }
    }

    fn holds(&self, travel: &Travel) -> bool {
        let Some(value) = self.value.of(travel) else { return false };
        match self.operator {
            Operator::Equal => value == self.number,
            Operator::NotEqual => value != self.number,
            Operator::Less => value < self.number,
            Operator::LessOrEqual => value <= self.number,
            Operator::Greater => value > self.number,
            Operator::GreaterOrEqual => value >= self.number,
        }
    }
}

impl Predicate {
    fn holds(&self, travel: &Travel) -> bool {
        self.0.iter().all(|condition| condition.holds(travel))
    }

    /// Whether nothing but what cannot be watched is missing, so that each instruction counts.
    fn is_near(&self, travel: &Travel) -> bool {
        let (watched, other): (Vec<_>, Vec<_>) = self.0.iter().partition(|it| it.is_watched());
        !other.is_empty() && watched.iter().all(|condition| condition.holds(travel))
    }

    fn stops(&self) -> Stops {
        let mut stops = Stops::default();
        for Condition { value, operator, number } in &self.0 {
            match (value, operator) {
                (Value::Memory { gva, len }, _) => stops.watches.push((*gva, *len as u64)),
                (Value::Register(gpr::RIP), Operator::Equal) => stops.breakpoints.push(*number),
                _ => {}
            }
        }
        stops
    }
}

/// What is to be looked for.
#[derive(Clone, Debug)]
pub struct BisectSpec {
    /// The recording's folder.
    pub dir: PathBuf,
    /// What is to be so.
    pub when: Predicate,
    /// What executes the guest's instructions.
    pub engine: EngineKind,
}

/// A point of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The point.
    pub position: Position,
    /// Guest time there.
    pub time: VirtualTime,
}

/// The first point at which `spec.when` holds; `None` if it never does.
///
/// # Errors
/// [`VmError::Recording`].
pub fn bisect(spec: &BisectSpec) -> Result<Option<Found>, VmError> {
    let mut travel = travel(&spec.dir, spec.engine)?;
    let is_found = first(&mut travel, &spec.when).map_err(RecordingError::from)?;
    let found = Found { position: travel.position(), time: travel.machine().now() };
    Ok(is_found.then_some(found))
}

fn first(travel: &mut Travel, when: &Predicate) -> Result<bool, TravelError> {
    let stops = when.stops();
    loop {
        if when.holds(travel) {
            return Ok(true);
        }
        if when.is_near(travel) {
            if travel.step()? == Halt::End {
                return Ok(false);
            }
            continue;
        }
        let before = travel.position();
        let target = Target::branches(before.branches + STRETCH);
        let halt = travel.go_on_to(&stops, target, &mut || false)?;
        if when.holds(travel) {
            if halt != Halt::Touched(0) && halt != Halt::Breakpoint {
                narrow(travel, when, before)?;
            }
            return Ok(true);
        }
        if halt == Halt::End {
            return Ok(false);
        }
    }
}

/// It holds here and did not at `before`: goes to the first point where it holds.
fn narrow(travel: &mut Travel, when: &Predicate, before: Position) -> Result<(), TravelError> {
    let (mut low, mut high) = (before.branches, travel.position().branches);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        travel.go_to_branch(middle)?;
        if when.holds(travel) { high = middle } else { low = middle }
    }
    if low == before.branches {
        travel.go_to(before)?
    } else {
        travel.go_to_branch(low).map(drop)?
    }
    while !when.holds(travel) && travel.step()? != Halt::End {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicates_are_read() {
        let read = |text: &str| text.parse::<Predicate>();
        let both = read("u32[0xffffffff82000000] >= 5 && rip==0x10").unwrap();
        let (value, operator) =
            (Value::Memory { gva: 0xffff_ffff_8200_0000, len: 4 }, Operator::GreaterOrEqual);
        assert_eq!(both.0[0], Condition { value, operator, number: 5 });
        assert_eq!(both.0[1].value, Value::Register(gpr::RIP));
        assert_eq!(both.stops().breakpoints, [0x10]);
        assert_eq!(both.stops().watches, [(0xffff_ffff_8200_0000, 4)]);
        for text in ["", "rax", "rax = 1", "u24[0] == 1", "u8[0 == 1", "rax == x", "u8[0] == 1 &&"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
