//! What an instruction does with its operands, asked of the decoder's tables once for each.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess};

use crate::address::number;

/// Most operands of an instruction.
const OPERANDS_MAX: usize = 5;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effects {
    /// The general registers it writes, or may, a bit for each.
    pub(crate) written: u16,
    /// Those that it reads, or may.
    pub(crate) read: u16,
    /// What it does with memory, if it accesses one place.
    pub(crate) memory: Option<OpAccess>,
    operands: [OpAccess; OPERANDS_MAX],
}

/// Whether the access leaves what it accesses as it was.
pub(crate) fn is_read(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead)
}

impl Effects {
    pub(crate) fn of(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Effects {
        let info = factory.info(instruction);
        let (mut written, mut read) = (0, 0);
        for used in info.used_registers().iter().filter(|used| used.register().is_gpr()) {
            let (register, access) = (used.register(), used.access());
            let bit = 1 << number(register);
            if !is_read(access) {
                written |= bit;
            }
            if access != OpAccess::Write || register.size() < 4 {
                read |= bit;
            }
        }
        let memory = match info.used_memory() {
            [used] => Some(used.access()),
            _ => None,
        };
        let operands = std::array::from_fn(|operand| info.op_access(operand as u32));
        Effects { written, read, memory, operands }
    }

    /// What it does with operand `number`.
    pub(crate) fn operand(&self, number: u32) -> OpAccess {
        self.operands[number as usize]
    }

    /// The general registers it writes, or may, by number.
    pub(crate) fn written(&self) -> impl Iterator<Item = usize> + use<> {
        let written = self.written;
        (0..16).filter(move |number| written & 1 << number != 0)
    }
}
