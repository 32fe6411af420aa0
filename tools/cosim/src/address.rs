//! Effective addresses of explicit memory operands, for executors without a CPU and for masks.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::Case;

/// The memory operand's index, if there is one.
pub fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&operand| {
        matches!(
            instruction.op_kind(operand),
            OpKind::Memory | OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI
        )
    })
}

/// Bytes of the memory operand; iced does not know those of environments.
pub fn operand_size(instruction: &Instruction) -> usize {
    match instruction.mnemonic() {
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => 16,
        Mnemonic::Maskmovq => 8,
        _ => instruction.memory_size().size(),
    }
}

/// Linear address of the operand: flat segments, address size as the encoding has it.
pub fn address(case: &Case, instruction: &Instruction, operand: u32) -> Option<u64> {
    let address = instruction.virtual_address(operand, 0, |register, _, _| {
        if register.is_segment_register() {
            // FS and GS have host bases.
            return (!matches!(register, Register::FS | Register::GS)).then_some(0);
        }
        let value = case.registers.gpr[register.full_register().number()];
        Some(match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => value & 0xffff,
            _ if matches!(register, Register::AL) => value & 0xff,
            _ => return None,
        })
    })?;
    let moved = address.wrapping_add(bit_offset(case, instruction) as u64);
    Some(if case.bitness == 64 { moved } else { moved & 0xffff_ffff })
}

/// Bytes by which a bit test with a register offset moves its operand (SDM vol. 2A, BT).
fn bit_offset(case: &Case, instruction: &Instruction) -> i64 {
    let is_bit_test = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if !is_bit_test || instruction.op1_kind() != OpKind::Register {
        return 0;
    }
    let register = instruction.op1_register();
    let value = case.registers.gpr[register.full_register().number()] as i64;
    match register.size() {
        8 => (value >> 6) * 8,
        4 => (i64::from(value as i32) >> 5) * 4,
        _ => (i64::from(value as i16) >> 4) * 2,
    }
}
