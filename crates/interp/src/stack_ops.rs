//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE.

use cpu::{Exception, Result, Seg, Word, cr, flag, gpr, stack_mask};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::data::segment_operand;
use crate::insn::{Exec, Handler, Insn};

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let size = stack_size(instruction);
    let pick = |handlers: [Handler; 3]| match size {
        2 => handlers[0],
        4 => handlers[1],
        _ => handlers[2],
    };
    let kind = instruction.op0_kind();
    let segment = kind == OpKind::Register && instruction.op0_register().is_segment_register();
    Some(match instruction.mnemonic() {
        Mnemonic::Push if segment => pick([push_s::<u16>, push_s::<u32>, push_s::<u64>]),
        Mnemonic::Push => match kind {
            OpKind::Register => pick([push_r::<u16>, push_r::<u32>, push_r::<u64>]),
            OpKind::Memory => pick([push_m::<u16>, push_m::<u32>, push_m::<u64>]),
            _ => pick([push_i::<u16>, push_i::<u32>, push_i::<u64>]),
        },
        Mnemonic::Pop if segment => pick([pop_s::<u16>, pop_s::<u32>, pop_s::<u64>]),
        Mnemonic::Pop if kind == OpKind::Register => {
            pick([pop_r::<u16>, pop_r::<u32>, pop_r::<u64>])
        }
        Mnemonic::Pop => pick([pop_m::<u16>, pop_m::<u32>, pop_m::<u64>]),
        Mnemonic::Pusha => pusha::<u16>,
        Mnemonic::Pushad => pusha::<u32>,
        Mnemonic::Popa => popa::<u16>,
        Mnemonic::Popad => popa::<u32>,
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            pick([pushf::<u16>, pushf::<u32>, pushf::<u64>])
        }
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            pick([popf::<u16>, popf::<u32>, popf::<u64>])
        }
        Mnemonic::Enter => pick([enter::<u16>, enter::<u32>, enter::<u64>]),
        Mnemonic::Leave => pick([leave::<u16>, leave::<u32>, leave::<u64>]),
        _ => return None,
    })
}

/// Bytes that one push or pop of the instruction moves.
pub fn stack_size(instruction: &Instruction) -> u8 {
    match instruction.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Popf | Mnemonic::Pusha | Mnemonic::Popa => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd | Mnemonic::Pushad | Mnemonic::Popad => 4,
        Mnemonic::Enter | Mnemonic::Leave => match instruction.op_code().operand_size() {
            16 => 2,
            32 => 4,
            _ => 8,
        },
        _ => instruction.stack_pointer_increment().unsigned_abs() as u8,
    }
}

fn push_r<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.get(insn.reg[0]);
    exec.cpu.push(value)
}

fn push_i<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.push(T::from_u64(insn.imm))
}

fn push_m<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.load(insn)?;
    exec.cpu.push(value)
}

/// PUSH of a segment register: the selector zero-extended.
fn push_s<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let selector = exec.cpu.vcpu.seg(segment_operand(insn, 0)).selector;
    exec.cpu.push(T::from_u64(u64::from(selector)))
}

fn pop_r<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.cpu.pop()?;
    exec.set(insn.reg[0], value);
    Ok(())
}

/// POP to memory: an address based on RSP uses RSP after the pop (SDM vol. 2, "POP").
fn pop_m<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value: T = exec.cpu.top()?;
    let rsp = exec.cpu.vcpu.regs.gpr[gpr::RSP];
    exec.cpu.drop_stack(T::SIZE);
    exec.store(insn, value).inspect_err(|_| exec.cpu.vcpu.regs.gpr[gpr::RSP] = rsp)
}

fn pop_s<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let seg = segment_operand(insn, 0);
    let selector: T = exec.cpu.top()?;
    let mask = stack_mask(exec.cpu.vcpu.mode.stack_bits);
    exec.cpu.load_segment(seg, selector.to_u64() as u16)?;
    let rsp = exec.cpu.vcpu.regs.gpr[gpr::RSP];
    let popped = (rsp & !mask) | (rsp.wrapping_add(T::SIZE) & mask);
    exec.cpu.vcpu.regs.gpr[gpr::RSP] = popped;
    if seg == Seg::Ss {
        exec.cpu.shadow_after_stack_load();
    }
    Ok(())
}

fn pusha<T: Word>(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let mut stack = exec.cpu.stack();
    for reg in 0..8u8 {
        let value = exec.regs().gpr[usize::from(reg)];
        exec.cpu.push_on(&mut stack, value, T::SIZE)?;
    }
    exec.cpu.commit_stack(&stack);
    Ok(())
}

fn popa<T: Word>(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let mut stack = exec.cpu.stack();
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = exec.cpu.pop_from(&mut stack, T::SIZE)?;
    }
    for (reg, value) in values.into_iter().enumerate() {
        if reg != gpr::RSP {
            exec.set(reg as u8, T::from_u64(value));
        }
    }
    exec.cpu.commit_stack(&stack);
    Ok(())
}

fn require_v86_iopl3(exec: &Exec<'_, '_>) -> Result<()> {
    if exec.cpu.vcpu.mode.v86 && exec.cpu.vcpu.iopl() < 3 {
        return Err(Exception::GP0);
    }
    Ok(())
}

fn pushf<T: Word>(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    require_v86_iopl3(exec)?;
    let flags = exec.regs().rflags() & !(flag::VM | flag::RF);
    exec.cpu.push(T::from_u64(flags))
}

fn popf<T: Word>(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    require_v86_iopl3(exec)?;
    let value: T = exec.cpu.pop()?;
    let protected = exec.cpu.vcpu.cr0 & cr::CR0_PE != 0;
    let cpl = if protected { exec.cpu.vcpu.cpl } else { 0 };
    let mut changeable = flag::STATUS | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID;
    if cpl == 0 {
        changeable |= flag::IOPL;
    }
    if cpl <= exec.cpu.vcpu.iopl() {
        changeable |= flag::IF;
    }
    if T::SIZE == 2 {
        changeable &= 0xffff;
    }
    let old = exec.regs().rflags();
    let new = (old & !(changeable | flag::RF)) | (value.to_u64() & changeable);
    exec.regs().set_rflags(new);
    let derived = flag::AC | flag::TF | flag::IF | flag::RF;
    if (old ^ new) & derived != 0 {
        exec.cpu.vcpu.rederive();
        exec.cpu.vcpu.attention = true;
    }
    Ok(())
}

/// ENTER (SDM vol. 2): `imm` is the frame's size, `imm2` the nesting level.
fn enter<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let level = insn.imm2 & 31;
    let mut stack = exec.cpu.stack();
    let rbp = exec.regs().gpr[gpr::RBP];
    exec.cpu.push_on(&mut stack, rbp, T::SIZE)?;
    let frame = stack.rsp;
    let mask = stack_mask(exec.cpu.vcpu.mode.stack_bits);
    let mut display = rbp;
    for _ in 1..level.max(1) {
        display = display.wrapping_sub(T::SIZE);
        let value: T = exec.cpu.read(Seg::Ss, display & mask)?;
        exec.cpu.push_on(&mut stack, value.to_u64(), T::SIZE)?;
    }
    if level > 0 {
        exec.cpu.push_on(&mut stack, frame, T::SIZE)?;
    }
    let size = insn.imm & 0xffff;
    stack.rsp = (stack.rsp & !mask) | (stack.rsp.wrapping_sub(size) & mask);
    // The new top must be writable (SDM vol. 2: a write check without a write).
    exec.cpu.probe_write(Seg::Ss, stack.rsp & mask, T::SIZE)?;
    exec.set(gpr::RBP as u8, T::from_u64(frame));
    exec.cpu.commit_stack(&stack);
    Ok(())
}

fn leave<T: Word>(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let mask = stack_mask(exec.cpu.vcpu.mode.stack_bits);
    let rbp = exec.regs().gpr[gpr::RBP];
    let value: T = exec.cpu.read(Seg::Ss, rbp & mask)?;
    let rsp = exec.regs().gpr[gpr::RSP];
    exec.regs().gpr[gpr::RSP] = (rsp & !mask) | (rbp.wrapping_add(T::SIZE) & mask);
    exec.set(gpr::RBP as u8, value);
    Ok(())
}
