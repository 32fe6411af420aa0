//! Data movement: MOV, MOVZX, MOVSX, LEA, XCHG, SETcc, XLAT, and no-operations.

use cpu::{Result, Seg, Word, gpr};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::condition::holds;
use crate::insn::{Exec, Handler, Insn, address_mask, get};

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let memory = |op: u32| instruction.op_kind(op) == OpKind::Memory;
    let size = operand_size(instruction);
    Some(match instruction.mnemonic() {
        Mnemonic::Mov => mov_handler(instruction, size)?,
        Mnemonic::Movzx => extend_handler(size, source_size(instruction), memory(1), false),
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            extend_handler(size, source_size(instruction), memory(1), true)
        }
        Mnemonic::Lea => by_size(size, [lea::<u8>, lea::<u16>, lea::<u32>, lea::<u64>]),
        Mnemonic::Xchg if memory(0) => {
            by_size(size, [xchg_mr::<u8>, xchg_mr::<u16>, xchg_mr::<u32>, xchg_mr::<u64>])
        }
        Mnemonic::Xchg => {
            by_size(size, [xchg_rr::<u8>, xchg_rr::<u16>, xchg_rr::<u32>, xchg_rr::<u64>])
        }
        Mnemonic::Xlatb => xlat,
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote
        | Mnemonic::Reservednop
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Mfence => no_operation,
        _ if is_setcc(instruction) => {
            if memory(0) {
                setcc_m
            } else {
                setcc_r
            }
        }
        _ => return None,
    })
}

fn is_setcc(instruction: &Instruction) -> bool {
    let code = instruction.code() as usize;
    (Code::Seto_rm8 as usize..=Code::Setg_rm8 as usize).contains(&code)
}

/// Bytes of the first operand.
pub fn operand_size(instruction: &Instruction) -> u8 {
    match instruction.op_kind(0) {
        OpKind::Register => instruction.op_register(0).size() as u8,
        _ => instruction.memory_size().size() as u8,
    }
}

fn source_size(instruction: &Instruction) -> u8 {
    match instruction.op_kind(1) {
        OpKind::Register => instruction.op_register(1).size() as u8,
        _ => instruction.memory_size().size() as u8,
    }
}

/// Picks the handler for an operand size of 1, 2, 4 or 8 bytes.
pub fn by_size(size: u8, handlers: [Handler; 4]) -> Handler {
    handlers[size.trailing_zeros() as usize & 3]
}

fn mov_handler(instruction: &Instruction, size: u8) -> Option<Handler> {
    let special = |op: u32| {
        let register = instruction.op_register(op);
        instruction.op_kind(op) == OpKind::Register && !register.is_gpr()
    };
    if special(0) || special(1) {
        return None;
    }
    let immediate = !matches!(instruction.op_kind(1), OpKind::Register | OpKind::Memory);
    let to_memory = instruction.op_kind(0) == OpKind::Memory;
    let from_memory = instruction.op_kind(1) == OpKind::Memory;
    Some(match (to_memory, from_memory, immediate) {
        (true, _, true) => {
            by_size(size, [mov_mi::<u8>, mov_mi::<u16>, mov_mi::<u32>, mov_mi::<u64>])
        }
        (true, _, false) => {
            by_size(size, [mov_mr::<u8>, mov_mr::<u16>, mov_mr::<u32>, mov_mr::<u64>])
        }
        (_, true, _) => by_size(size, [mov_rm::<u8>, mov_rm::<u16>, mov_rm::<u32>, mov_rm::<u64>]),
        (_, _, true) => by_size(size, [mov_ri::<u8>, mov_ri::<u16>, mov_ri::<u32>, mov_ri::<u64>]),
        _ => by_size(size, [mov_rr::<u8>, mov_rr::<u16>, mov_rr::<u32>, mov_rr::<u64>]),
    })
}

fn mov_rr<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.get(insn.reg[1]);
    exec.set(insn.reg[0], value);
    Ok(())
}

fn mov_ri<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.set(insn.reg[0], T::from_u64(insn.imm));
    Ok(())
}

fn mov_rm<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.load(insn)?;
    exec.set(insn.reg[0], value);
    Ok(())
}

fn mov_mr<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.get(insn.reg[1]);
    exec.store(insn, value)
}

fn mov_mi<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.store(insn, T::from_u64(insn.imm))
}

fn extend_handler(to: u8, from: u8, memory: bool, signed: bool) -> Handler {
    macro_rules! pick {
        ($from:ty, $signed:ty) => {
            match (memory, signed) {
                (false, false) => by_size(
                    to,
                    [
                        extend_r::<u8, $from, $from>,
                        extend_r::<u16, $from, $from>,
                        extend_r::<u32, $from, $from>,
                        extend_r::<u64, $from, $from>,
                    ],
                ),
                (false, true) => by_size(
                    to,
                    [
                        extend_r::<u8, $from, $signed>,
                        extend_r::<u16, $from, $signed>,
                        extend_r::<u32, $from, $signed>,
                        extend_r::<u64, $from, $signed>,
                    ],
                ),
                (true, false) => by_size(
                    to,
                    [
                        extend_m::<u8, $from, $from>,
                        extend_m::<u16, $from, $from>,
                        extend_m::<u32, $from, $from>,
                        extend_m::<u64, $from, $from>,
                    ],
                ),
                (true, true) => by_size(
                    to,
                    [
                        extend_m::<u8, $from, $signed>,
                        extend_m::<u16, $from, $signed>,
                        extend_m::<u32, $from, $signed>,
                        extend_m::<u64, $from, $signed>,
                    ],
                ),
            }
        };
    }
    match from {
        1 => pick!(u8, i8),
        2 => pick!(u16, i16),
        _ => pick!(u32, i32),
    }
}

/// Extends a value: zero-extension for unsigned types, sign-extension for signed ones.
trait Extend {
    fn extend(value: u64) -> u64;
}

macro_rules! extend {
    ($($type:ty),*) => {$(
        impl Extend for $type {
            #[inline(always)]
            fn extend(value: u64) -> u64 {
                value as $type as i64 as u64
            }
        }
    )*};
}

extend!(i8, i16, i32, u8, u16, u32);

fn extend_r<T: Word, F: Word, S: Extend>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: F = exec.get(insn.reg[1]);
    exec.set(insn.reg[0], T::from_u64(S::extend(value.to_u64())));
    Ok(())
}

fn extend_m<T: Word, F: Word, S: Extend>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: F = exec.load(insn)?;
    exec.set(insn.reg[0], T::from_u64(S::extend(value.to_u64())));
    Ok(())
}

fn lea<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = exec.offset(insn);
    exec.set(insn.reg[0], T::from_u64(offset));
    Ok(())
}

fn xchg_rr<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let (a, b): (T, T) = (exec.get(insn.reg[0]), exec.get(insn.reg[1]));
    exec.set(insn.reg[0], b);
    exec.set(insn.reg[1], a);
    Ok(())
}

fn xchg_mr<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = exec.offset(insn);
    exec.cpu.probe_write(insn.seg, offset, T::SIZE)?;
    let old: T = exec.cpu.read(insn.seg, offset)?;
    let new: T = exec.get(insn.reg[1]);
    exec.cpu.write(insn.seg, offset, new)?;
    exec.set(insn.reg[1], old);
    Ok(())
}

fn xlat(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let al: u8 = exec.get(gpr::RAX as u8);
    let base = exec.regs().gpr[gpr::RBX];
    let offset = base.wrapping_add(u64::from(al)) & address_mask(insn.address_bits);
    let value: u8 = exec.cpu.read(insn.seg, offset)?;
    exec.set(gpr::RAX as u8, value);
    Ok(())
}

fn no_operation(_exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    Ok(())
}

fn setcc_r(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value = u8::from(holds(exec.regs().status, insn.imm2 as u8));
    exec.set(insn.reg[0], value);
    Ok(())
}

fn setcc_m(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value = u8::from(holds(exec.regs().status, insn.imm2 as u8));
    exec.store(insn, value)
}

/// MOV of a segment register's selector and the like use this to write a 16-bit value to a
/// register of the operand size, zero-extended.
pub fn set_sized(exec: &mut Exec<'_, '_>, size: u8, reg: u8, value: u64) {
    match size {
        2 => exec.set(reg, value as u16),
        4 => exec.set(reg, value as u32),
        _ => exec.set(reg, value),
    }
}

/// Reads a general register of `size` bytes, zero-extended.
pub fn get_sized(exec: &Exec<'_, '_>, size: u8, reg: u8) -> u64 {
    let regs = &exec.cpu.vcpu.regs;
    match size {
        1 => u64::from(get::<u8>(regs, reg)),
        2 => u64::from(get::<u16>(regs, reg)),
        4 => u64::from(get::<u32>(regs, reg)),
        _ => get::<u64>(regs, reg),
    }
}

/// Segment register operand number `op`.
pub fn segment_operand(insn: &Insn, op: usize) -> Seg {
    Seg::from_index(insn.reg[op]).unwrap_or(Seg::Ds)
}
