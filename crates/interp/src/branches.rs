//! Near control transfers: JMP, Jcc, CALL, RET, LOOP, JCXZ; far ones hand over to `cpu`.

use cpu::{Exception, FarPointer, Result, Word, gpr};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::condition::holds;
use crate::insn::{Exec, Handler, Insn, address_mask, get};

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let kind = instruction.op0_kind();
    let near = matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let far = matches!(kind, OpKind::FarBranch16 | OpKind::FarBranch32);
    let memory = kind == OpKind::Memory;
    let far_memory = instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect();
    Some(match instruction.mnemonic() {
        Mnemonic::Jmp if near => jmp,
        Mnemonic::Jmp if far => far_jmp_immediate,
        Mnemonic::Jmp if far_memory => far_jmp_memory,
        Mnemonic::Jmp => jmp_indirect(memory),
        Mnemonic::Call if near => by_operand(instruction, [call::<u16>, call::<u32>, call::<u64>]),
        Mnemonic::Call if far => far_call_immediate,
        Mnemonic::Call if far_memory => far_call_memory,
        Mnemonic::Call if memory => {
            by_operand(instruction, [call_m::<u16>, call_m::<u32>, call_m::<u64>])
        }
        Mnemonic::Call => by_operand(instruction, [call_r::<u16>, call_r::<u32>, call_r::<u64>]),
        Mnemonic::Ret => by_operand(instruction, [ret::<u16>, ret::<u32>, ret::<u64>]),
        Mnemonic::Retf => far_ret,
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => loop_handler(instruction.mnemonic()),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => jcxz,
        _ if instruction.is_jcc_short_or_near() => jcc,
        _ => return None,
    })
}

/// Bytes of the offset a near transfer moves: what the stack holds and RIP is cut to.
pub fn offset_size(instruction: &Instruction) -> u8 {
    let code = instruction.op_code();
    match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::FarBranch16 => 2,
        OpKind::NearBranch32 | OpKind::FarBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => match code.operand_size() {
            16 => 2,
            32 => 4,
            64 => 8,
            _ => near_size_by_mode(instruction),
        },
    }
}

fn near_size_by_mode(instruction: &Instruction) -> u8 {
    use iced_x86::CodeSize;
    match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() as u8,
        OpKind::Memory if !instruction.is_call_far_indirect() => {
            instruction.memory_size().size() as u8
        }
        _ => match instruction.code_size() {
            CodeSize::Code16 => 2,
            CodeSize::Code32 => 4,
            _ => 8,
        },
    }
}

fn by_operand(instruction: &Instruction, handlers: [Handler; 3]) -> Handler {
    match offset_size(instruction) {
        2 => handlers[0],
        4 => handlers[1],
        _ => handlers[2],
    }
}

/// The target cut to the operand size and checked.
#[inline(always)]
fn go(exec: &mut Exec<'_, '_>, target: u64) -> Result<()> {
    exec.cpu.jump(target)
}

fn jmp(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target = relative(exec, insn);
    go(exec, target)
}

/// Target of a direct near transfer: `imm` is relative to the next instruction, so that a block
/// serves every linear address its page is mapped at.
#[inline(always)]
fn relative(exec: &Exec<'_, '_>, insn: &Insn) -> u64 {
    let next = exec.cpu.vcpu.regs.gpr[gpr::RIP].wrapping_add(u64::from(insn.len));
    let mask = match insn.size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    next.wrapping_add(insn.imm) & mask
}

fn jcc(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    if holds(exec.cpu.vcpu.regs.status, insn.imm2 as u8) {
        let target = relative(exec, insn);
        return go(exec, target);
    }
    exec.retire(insn);
    Ok(())
}

fn jmp_indirect(memory: bool) -> Handler {
    if memory { jmp_m } else { jmp_r }
}

fn jmp_r(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target = crate::data::get_sized(exec, insn.size, insn.reg[0]);
    go(exec, target)
}

fn jmp_m(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target = match insn.size {
        2 => u64::from(exec.load::<u16>(insn)?),
        4 => u64::from(exec.load::<u32>(insn)?),
        _ => exec.load::<u64>(insn)?,
    };
    go(exec, target)
}

/// Pushes the return address and jumps; nothing is pushed if the target is refused, but a push
/// that would fault comes first.
#[inline(always)]
fn call_to<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn, target: u64) -> Result<()> {
    let return_to = exec.next_rip(insn);
    if let Err(refused) = exec.cpu.check_jump(target) {
        exec.cpu.probe_push(T::SIZE)?;
        return Err(refused);
    }
    exec.cpu.push(T::from_u64(return_to))?;
    go(exec, target)
}

fn call<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target = relative(exec, insn);
    call_to::<T>(exec, insn, target)
}

fn call_r<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target: T = exec.get(insn.reg[0]);
    call_to::<T>(exec, insn, target.to_u64())
}

fn call_m<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target: T = exec.load(insn)?;
    call_to::<T>(exec, insn, target.to_u64())
}

fn ret<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target: T = exec.cpu.top()?;
    go(exec, target.to_u64())?;
    exec.cpu.drop_stack(T::SIZE + (insn.imm & 0xffff));
    Ok(())
}

fn far_ret(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.far_return(u64::from(insn.size), insn.imm & 0xffff)
}

fn immediate_pointer(insn: &Insn) -> FarPointer {
    FarPointer { selector: insn.imm2, offset: insn.imm }
}

/// A far pointer in memory: offset, then selector.
pub fn far_pointer(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<FarPointer> {
    let at = exec.offset(insn);
    let mut bytes = [0; 10];
    let size = usize::from(insn.size);
    exec.cpu.read_bytes(insn.seg, at, &mut bytes[..size + 2])?;
    let selector = u16::from_le_bytes([bytes[size], bytes[size + 1]]);
    let mut offset = [0; 8];
    offset[..size].copy_from_slice(&bytes[..size]);
    Ok(FarPointer { selector, offset: u64::from_le_bytes(offset) })
}

fn far_jmp_immediate(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.far_jump(immediate_pointer(insn))
}

fn far_jmp_memory(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target = far_pointer(exec, insn)?;
    exec.cpu.far_jump(target)
}

fn far_call_immediate(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let next = exec.next_rip(insn);
    exec.cpu.far_call(immediate_pointer(insn), u64::from(insn.size), next)
}

fn far_call_memory(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let target = far_pointer(exec, insn)?;
    let next = exec.next_rip(insn);
    exec.cpu.far_call(target, u64::from(insn.size), next)
}

fn loop_handler(mnemonic: Mnemonic) -> Handler {
    match mnemonic {
        Mnemonic::Loope => loop_if::<1>,
        Mnemonic::Loopne => loop_if::<0>,
        _ => loop_if::<2>,
    }
}

/// LOOP (2), LOOPE (1: while ZF), LOOPNE (0: while not ZF).
fn loop_if<const WANT: u8>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let mask = address_mask(insn.address_bits);
    let rcx = exec.regs().gpr[gpr::RCX];
    let count = rcx.wrapping_sub(1) & mask;
    let zero = holds(exec.regs().status, 4);
    if count != 0 && (WANT == 2 || zero == (WANT == 1)) {
        let target = relative(exec, insn);
        go(exec, target)?;
    } else {
        exec.retire(insn);
    }
    // A 32-bit count register zero-extends; a 16-bit one keeps the rest.
    let kept = if insn.address_bits == 16 { rcx & !0xffff } else { 0 };
    exec.regs().gpr[gpr::RCX] = kept | count;
    Ok(())
}

fn jcxz(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let count: u64 = get::<u64>(exec.regs(), gpr::RCX as u8) & address_mask(insn.address_bits);
    if count == 0 {
        let target = relative(exec, insn);
        return go(exec, target);
    }
    exec.retire(insn);
    Ok(())
}

/// #UD for an instruction that does not exist in this mode or model.
pub fn undefined(_exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    Err(Exception::UD)
}
