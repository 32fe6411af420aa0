//! Decimal adjustment, which exists in 16- and 32-bit code only (SDM vol. 2).

use cpu::{Exception, Result, StatusFlags, flag, gpr};
use iced_x86::{Instruction, Mnemonic};

use crate::insn::{Exec, Handler, Insn};

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Aaa => |exec, _| ascii_adjust(exec, 0x106),
        Mnemonic::Aas => |exec, _| ascii_adjust(exec, 0x106u16.wrapping_neg()),
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        Mnemonic::Daa => |exec, _| decimal_adjust(exec, false),
        Mnemonic::Das => |exec, _| decimal_adjust(exec, true),
        Mnemonic::Salc => salc,
        _ => return None,
    })
}

const AX: u8 = gpr::RAX as u8;

/// SF, ZF and PF of a byte result.
fn result_flags(al: u8) -> u64 {
    let sign = if al & 0x80 != 0 { flag::SF } else { 0 };
    let zero = if al == 0 { flag::ZF } else { 0 };
    let parity = if al.count_ones().is_multiple_of(2) { flag::PF } else { 0 };
    sign | zero | parity
}

fn carry_flags(on: bool) -> u64 {
    if on { flag::CF | flag::AF } else { 0 }
}

/// AAA and AAS. Undefined flags follow the result as on current processors.
fn ascii_adjust(exec: &mut Exec<'_, '_>, delta: u16) -> Result<()> {
    let ax: u16 = exec.get(AX);
    let adjust = ax & 0xf > 9 || u64::from(exec.regs().status.low) & flag::AF != 0;
    let sum = if adjust { ax.wrapping_add(delta) } else { ax };
    exec.set(AX, sum & 0xff0f);
    let flags = carry_flags(adjust) | result_flags((sum & 0xf) as u8);
    exec.regs().status = StatusFlags::from_rflags(flags);
    Ok(())
}

fn aam(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let base = insn.imm as u8;
    let al: u8 = exec.get(AX);
    if base == 0 {
        return Err(Exception::DE);
    }
    exec.set(AX, u16::from(al / base) << 8 | u16::from(al % base));
    exec.regs().status = StatusFlags::from_rflags(result_flags(al % base));
    Ok(())
}

fn aad(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let ax: u16 = exec.get(AX);
    let al = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(insn.imm as u8));
    exec.set(AX, u16::from(al));
    exec.regs().status = StatusFlags::from_rflags(result_flags(al));
    Ok(())
}

/// DAA and DAS.
fn decimal_adjust(exec: &mut Exec<'_, '_>, subtract: bool) -> Result<()> {
    let old: u8 = exec.get(AX);
    let flags = u64::from(exec.regs().status.low);
    let low = old & 0xf > 9 || flags & flag::AF != 0;
    let high = old > 0x99 || flags & flag::CF != 0;
    let delta = if low { 6u8 } else { 0 } + if high { 0x60 } else { 0 };
    let al = if subtract { old.wrapping_sub(delta) } else { old.wrapping_add(delta) };
    let borrow = subtract && low && old < 6;
    exec.set(AX, al);
    let carry = if high || borrow { flag::CF } else { 0 };
    let auxiliary = if low { flag::AF } else { 0 };
    exec.regs().status = StatusFlags::from_rflags(carry | auxiliary | result_flags(al));
    Ok(())
}

/// SALC: AL is all ones if CF, else zero.
fn salc(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let carry = u64::from(exec.regs().status.low) & flag::CF != 0;
    exec.set(AX, if carry { 0xffu8 } else { 0 });
    Ok(())
}
