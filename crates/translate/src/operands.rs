//! The general registers and the memory operand that an instruction names, read out of it once.

use iced_x86::{Instruction, OpKind, Register};

/// Most operands of an instruction.
pub(crate) const OPERANDS_MAX: usize = 5;

/// A general register among an instruction's operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Which operand it is.
    pub(crate) operand: u8,
    /// The register's number.
    pub(crate) guest: u8,
    /// Bytes of it.
    pub(crate) size: u8,
    /// It is AH, CH, DH or BH.
    pub(crate) high: bool,
}

/// Those from AL to R15.
const REGISTERS: usize = 68;
static NAMED: [Named; REGISTERS] = named_registers();

const fn named_registers() -> [Named; REGISTERS] {
    let mut all = [Named { operand: 0, guest: 0, size: 1, high: false }; REGISTERS];
    let mut index = 0;
    while index < REGISTERS {
        all[index].guest = match index {
            0..8 => index as u8 & 3,
            8..20 => index as u8 - 4,
            _ => (index - 20) as u8 & 15,
        };
        all[index].high = 4 <= index && index < 8;
        all[index].size = match index {
            0..20 => 1,
            20..36 => 2,
            36..52 => 4,
            _ => 8,
        };
        index += 1;
    }
    all
}

/// What is known of a general register.
fn general(register: Register) -> Option<&'static Named> {
    NAMED.get((register as usize).wrapping_sub(Register::AL as usize))
}

/// The guest number of a general register.
pub(crate) fn number(register: Register) -> u8 {
    general(register).map_or_else(|| register.number() as u8, |named| named.guest)
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Operands {
    named: [Named; OPERANDS_MAX],
    count: u8,
    /// There is a memory operand: ModRM's, or a fixed offset.
    pub(crate) memory: bool,
}

impl Operands {
    pub(crate) fn of(instruction: &Instruction) -> Operands {
        let mut operands = Operands::default();
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::Register => {
                    if let Some(named) = general(instruction.op_register(operand)) {
                        let next = usize::from(operands.count);
                        operands.named[next] = Named { operand: operand as u8, ..*named };
                        operands.count += 1;
                    }
                }
                OpKind::Memory => operands.memory = true,
                _ => {}
            }
        }
        operands
    }

    /// The general registers.
    pub(crate) fn named(&self) -> &[Named] {
        &self.named[..usize::from(self.count)]
    }

    /// Whether one of them is AH, CH, DH or BH.
    pub(crate) fn has_high_byte(&self) -> bool {
        self.named().iter().any(|named| named.high)
    }

    /// A bit for each of them.
    pub(crate) fn bits(&self) -> u16 {
        self.named().iter().fold(0, |bits, named| bits | 1 << named.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_known_as_the_decoder_knows_them() {
        for register in Register::values() {
            let known = general(register);
            assert_eq!(known.is_some(), register.is_gpr(), "{register:?}");
            let Some(known) = known else { continue };
            assert_eq!(usize::from(known.guest), register.full_register().number(), "{register:?}");
            assert_eq!(usize::from(known.size), register.size(), "{register:?}");
            let high =
                matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
            assert_eq!(known.high, high, "{register:?}");
        }
    }
}
