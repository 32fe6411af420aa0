//! What an instruction does with its operands: asked of the decoder's tables once for each code,
//! of an instruction with other registers than any that the code implies.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::compute::{has_implicit_rax, is_bit_string, may_fault};
use crate::operands::{OPERANDS_MAX, Operands, number};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effects {
    /// The general registers it writes, or may, a bit for each.
    pub(crate) written: u16,
    /// Those that it reads, or may.
    pub(crate) read: u16,
    pub(crate) of_code: OfCode,
}

/// What all instructions of a code have in common, those with a memory operand or those without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OfCode {
    /// What it does with memory, if it accesses one place.
    pub(crate) memory: Option<OpAccess>,
    operands: [OpAccess; OPERANDS_MAX],
    /// As [`has_implicit_rax`], [`may_fault`] and [`is_bit_string`].
    pub(crate) implicit_rax: bool,
    pub(crate) may_fault: bool,
    pub(crate) bit_string: bool,
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
        let of_code = OfCode {
            memory,
            operands,
            implicit_rax: has_implicit_rax(instruction),
            may_fault: may_fault(instruction),
            bit_string: is_bit_string(instruction),
        };
        Effects { written, read, of_code }
    }

    /// What it does with operand `number`.
    pub(crate) fn operand(&self, number: u8) -> OpAccess {
        self.of_code.operands[usize::from(number)]
    }

    /// The general registers it writes, or may, by number.
    pub(crate) fn written(&self) -> impl Iterator<Item = usize> + use<> {
        let mut left = self.written;
        std::iter::from_fn(move || {
            let number = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (number < 16).then_some(number)
        })
    }
}

/// What the effects of the instructions of a code depend on besides their registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    /// General registers that are written and read without being named.
    written: u16,
    read: u16,
    /// Register operands that are written and read, a bit for each.
    operands_written: u8,
    operands_read: u8,
    /// The registers of its address are read.
    addresses: bool,
    of_code: OfCode,
}

/// Registers that no code implies beside operands, one for each operand and one more, by size.
fn stand_in(operand: u8, size: u8) -> Register {
    native::sized(8 + operand, size.into())
}

/// The number of the stand-in for a base, behind those for operands.
const BASE: u8 = OPERANDS_MAX as u8;

/// Whether an instruction's effects depend on more than a [`Pattern`] says. What subtracts a
/// register from itself, or the like, does not read it.
pub(crate) fn is_special(instruction: &Instruction) -> bool {
    let register = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand),
        _ => Register::None,
    };
    let (first, second) = (register(0), register(1));
    let twice = second != Register::None && (second == first || second == register(2));
    twice && instruction.mnemonic() != Mnemonic::Test
        || instruction.is_string_instruction()
        || instruction.has_op_mask()
        || instruction.mnemonic() == Mnemonic::Enter
}

impl Pattern {
    /// That of the code of an instruction that is not special.
    pub(crate) fn of(
        instruction: &Instruction,
        operands: &Operands,
        factory: &mut InstructionInfoFactory,
    ) -> Pattern {
        let mut probe = *instruction;
        for named in operands.named() {
            let operand = u32::from(named.operand);
            probe.set_op_register(operand, stand_in(named.operand, named.size));
        }
        if operands.memory {
            probe.set_memory_base(stand_in(BASE, 8));
        }
        if operands.memory && probe.memory_index().is_gpr() {
            probe.set_memory_index(Register::None);
        }
        let Effects { written, read, of_code } = Effects::of(&probe, factory);
        // Stand-ins are R8 and up.
        let named = operands.named().iter().fold(0, |bits, named| bits | 1u8 << named.operand);
        let (operands_written, operands_read) =
            ((written >> 8) as u8 & named, (read >> 8) as u8 & named);
        let base = u16::from(operands.memory) << BASE;
        let implied = !((u16::from(named) | base) << 8);
        Pattern {
            written: written & implied,
            read: read & implied,
            operands_written,
            operands_read,
            addresses: read >> 8 & base != 0,
            of_code,
        }
    }

    /// The effects of an instruction of the code.
    pub(crate) fn effects(&self, instruction: &Instruction, operands: &Operands) -> Effects {
        let Pattern { mut written, mut read, of_code, .. } = *self;
        for named in operands.named() {
            let bit = |operands: u8| u16::from(operands >> named.operand & 1) << named.guest;
            written |= bit(self.operands_written);
            read |= bit(self.operands_read);
        }
        if self.addresses {
            let address = [instruction.memory_base(), instruction.memory_index()];
            for register in address.into_iter().filter(|register| register.is_gpr()) {
                read |= 1 << number(register);
            }
        }
        Effects { written, read, of_code }
    }
}
