//! FXSAVE, the XSAVE family, XGETBV and XSETBV; and the approximations, which are computed the
//! same on every host.

use cpu::{Result, SaveForm, gpr};
use iced_x86::{Instruction, Mnemonic};
use native::approx;

use crate::insn::{Exec, Handler, Insn};
use crate::system::edx_eax;

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fxsave,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fxrstor,
        Mnemonic::Xsave | Mnemonic::Xsave64 => |exec, insn| xsave(exec, insn, SaveForm::Standard),
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
            |exec, insn| xsave(exec, insn, SaveForm::Optimized)
        }
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => |exec, insn| xsave(exec, insn, SaveForm::Compact),
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => |exec, insn| {
            exec.cpu.require_cpl0()?;
            xsave(exec, insn, SaveForm::Compact)
        },
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => |exec, insn| xrstor(exec, insn, false),
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => |exec, insn| {
            exec.cpu.require_cpl0()?;
            xrstor(exec, insn, true)
        },
        Mnemonic::Xgetbv => xgetbv,
        Mnemonic::Xsetbv => xsetbv,
        Mnemonic::Rcpps | Mnemonic::Vrcpps => |exec, insn| packed(exec, insn, approx::rcp),
        Mnemonic::Rsqrtps | Mnemonic::Vrsqrtps => |exec, insn| packed(exec, insn, approx::rsqrt),
        Mnemonic::Rcpss | Mnemonic::Vrcpss => |exec, insn| scalar(exec, insn, approx::rcp),
        Mnemonic::Rsqrtss | Mnemonic::Vrsqrtss => |exec, insn| scalar(exec, insn, approx::rsqrt),
        _ => return None,
    })
}

fn fxsave(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = exec.offset(insn);
    exec.cpu.fxsave(insn.seg, offset)
}

fn fxrstor(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = exec.offset(insn);
    exec.cpu.fxrstor(insn.seg, offset)
}

fn xsave(exec: &mut Exec<'_, '_>, insn: &Insn, form: SaveForm) -> Result<()> {
    let offset = exec.offset(insn);
    exec.cpu.xsave(form, edx_eax(exec), insn.seg, offset)
}

fn xrstor(exec: &mut Exec<'_, '_>, insn: &Insn, compact_only: bool) -> Result<()> {
    let offset = exec.offset(insn);
    exec.cpu.xrstor(compact_only, edx_eax(exec), insn.seg, offset)
}

fn xgetbv(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let value = exec.cpu.read_xcr(exec.get(gpr::RCX as u8))?;
    exec.set(gpr::RAX as u8, value as u32);
    exec.set(gpr::RDX as u8, (value >> 32) as u32);
    Ok(())
}

fn xsetbv(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let (index, value) = (exec.get(gpr::RCX as u8), edx_eax(exec));
    // OSXSAVE off is #UD, as for XGETBV.
    exec.cpu.read_xcr(0)?;
    exec.cpu.write_xcr(index, value)
}

/// Marks a VEX encoding in [`Insn::imm2`] of an approximation.
pub const VEX: u16 = 1;

/// The operand shape of an approximation: `imm2` says whether it is VEX-encoded.
pub fn is_approximation(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Rcpps
            | Mnemonic::Vrcpps
            | Mnemonic::Rcpss
            | Mnemonic::Vrcpss
            | Mnemonic::Rsqrtps
            | Mnemonic::Vrsqrtps
            | Mnemonic::Rsqrtss
            | Mnemonic::Vrsqrtss
    )
}

/// Number of the operand that is the source: the last.
fn source(insn: &Insn) -> Option<usize> {
    let last = insn.reg.iter().rposition(|&r| r != crate::decode::NO_REGISTER)?;
    (insn.reg[last] != crate::system_segments::MEMORY).then(|| usize::from(insn.reg[last] & 15))
}

fn to_lanes(register: [u64; 4]) -> [u32; 8] {
    std::array::from_fn(|i| (register[i / 2] >> (32 * (i % 2))) as u32)
}

fn from_lanes(lanes: [u32; 8]) -> [u64; 4] {
    std::array::from_fn(|i| u64::from(lanes[2 * i]) | u64::from(lanes[2 * i + 1]) << 32)
}

fn packed(exec: &mut Exec<'_, '_>, insn: &Insn, f: fn(u32) -> u32) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let count = usize::from(insn.size) / 4;
    let lanes = match source(insn) {
        Some(register) => to_lanes(exec.regs().ymm[register]),
        None => {
            let offset = exec.offset(insn);
            if insn.imm2 != VEX && offset_misaligned(exec, insn, offset) {
                return Err(cpu::Exception::GP0);
            }
            let mut bytes = [0; 32];
            exec.cpu.read_bytes(insn.seg, offset, &mut bytes[..count * 4])?;
            std::array::from_fn(|i| {
                u32::from_le_bytes(bytes[i * 4..i * 4 + 4].try_into().expect("four bytes"))
            })
        }
    };
    let target = usize::from(insn.reg[0] & 15);
    let mut result = to_lanes(exec.regs().ymm[target]);
    for (lane, value) in result.iter_mut().enumerate() {
        if lane < count {
            *value = f(lanes[lane]);
        } else if insn.imm2 == VEX {
            *value = 0;
        }
    }
    exec.regs().ymm[target] = from_lanes(result);
    Ok(())
}

fn offset_misaligned(exec: &Exec<'_, '_>, insn: &Insn, offset: u64) -> bool {
    let base = exec.cpu.vcpu.mode.bases[insn.seg as usize];
    base.wrapping_add(offset) & 15 != 0
}

fn scalar(exec: &mut Exec<'_, '_>, insn: &Insn, f: fn(u32) -> u32) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let value = match source(insn) {
        Some(register) => exec.regs().ymm[register][0] as u32,
        None => exec.load::<u32>(insn)?,
    };
    let target = usize::from(insn.reg[0] & 15);
    let mut lanes = to_lanes(exec.regs().ymm[target]);
    if insn.imm2 == VEX {
        lanes = to_lanes(exec.regs().ymm[usize::from(insn.reg[1] & 15)]);
        lanes[4..].fill(0);
    }
    lanes[0] = f(value);
    exec.regs().ymm[target] = from_lanes(lanes);
    Ok(())
}
