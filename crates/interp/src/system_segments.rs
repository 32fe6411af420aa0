//! Segment registers and descriptors: MOV Sreg, LDS and the like, LLDT, LTR, LAR, LSL, VERR,
//! VERW, ARPL, RDFSBASE and the like.

use cpu::segment::{Descriptor, system};
use cpu::{Exception, Result, Seg, attr, cr, flag};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::branches::far_pointer;
use crate::data::{get_sized, segment_operand, set_sized};
use crate::insn::{Exec, Handler, Insn};
use crate::system::check_umip;

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let memory = |op| instruction.op_kind(op) == OpKind::Memory;
    let to_segment = !memory(0) && instruction.op0_register().is_segment_register();
    let from_segment = !memory(1) && instruction.op1_register().is_segment_register();
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if to_segment && memory(1) => mov_segment_m,
        Mnemonic::Mov if to_segment => mov_segment_r,
        Mnemonic::Mov if from_segment && memory(0) => store_segment,
        Mnemonic::Mov if from_segment => read_segment,
        Mnemonic::Lds => |exec, insn| load_far(exec, insn, Seg::Ds),
        Mnemonic::Les => |exec, insn| load_far(exec, insn, Seg::Es),
        Mnemonic::Lss => |exec, insn| load_far(exec, insn, Seg::Ss),
        Mnemonic::Lfs => |exec, insn| load_far(exec, insn, Seg::Fs),
        Mnemonic::Lgs => |exec, insn| load_far(exec, insn, Seg::Gs),
        Mnemonic::Lldt => |exec, insn| load_system(exec, insn, false),
        Mnemonic::Ltr => |exec, insn| load_system(exec, insn, true),
        Mnemonic::Sldt => |exec, insn| store_system(exec, insn, false),
        Mnemonic::Str => |exec, insn| store_system(exec, insn, true),
        Mnemonic::Lar => lar,
        Mnemonic::Lsl => lsl,
        Mnemonic::Verr => |exec, insn| verify(exec, insn, false),
        Mnemonic::Verw => |exec, insn| verify(exec, insn, true),
        Mnemonic::Arpl => arpl,
        Mnemonic::Rdfsbase => |exec, insn| read_base(exec, insn, Seg::Fs),
        Mnemonic::Rdgsbase => |exec, insn| read_base(exec, insn, Seg::Gs),
        Mnemonic::Wrfsbase => |exec, insn| write_base(exec, insn, Seg::Fs),
        Mnemonic::Wrgsbase => |exec, insn| write_base(exec, insn, Seg::Gs),
        _ => return None,
    })
}

/// Marks an operand slot that is not a register.
pub const MEMORY: u8 = 0xff;

/// A selector operand: register or 16 bits of memory.
fn selector_operand(exec: &mut Exec<'_, '_>, insn: &Insn, op: usize) -> Result<u16> {
    if insn.reg[op] == MEMORY { exec.load(insn) } else { Ok(exec.get(insn.reg[op])) }
}

fn mov_segment(exec: &mut Exec<'_, '_>, insn: &Insn, selector: u16) -> Result<()> {
    let seg = segment_operand(insn, 0);
    if seg == Seg::Cs {
        return Err(Exception::UD);
    }
    exec.cpu.load_segment(seg, selector)?;
    if seg == Seg::Ss {
        exec.cpu.shadow_after_stack_load();
    }
    Ok(())
}

fn mov_segment_r(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let selector = exec.get(insn.reg[1]);
    mov_segment(exec, insn, selector)
}

fn mov_segment_m(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let selector = exec.load(insn)?;
    mov_segment(exec, insn, selector)
}

fn store_segment(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let selector = exec.cpu.vcpu.seg(segment_operand(insn, 1)).selector;
    exec.store(insn, selector)
}

fn read_segment(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let selector = exec.cpu.vcpu.seg(segment_operand(insn, 1)).selector;
    set_sized(exec, insn.size, insn.reg[0], u64::from(selector));
    Ok(())
}

fn load_far(exec: &mut Exec<'_, '_>, insn: &Insn, seg: Seg) -> Result<()> {
    let pointer = far_pointer(exec, insn)?;
    exec.cpu.load_segment(seg, pointer.selector)?;
    set_sized(exec, insn.size, insn.reg[0], pointer.offset);
    Ok(())
}

fn require_protected(exec: &Exec<'_, '_>) -> Result<()> {
    let mode = &exec.cpu.vcpu.mode;
    if mode.protected && !mode.v86 { Ok(()) } else { Err(Exception::UD) }
}

fn load_system(exec: &mut Exec<'_, '_>, insn: &Insn, task: bool) -> Result<()> {
    require_protected(exec)?;
    exec.cpu.require_cpl0()?;
    let selector = selector_operand(exec, insn, 0)?;
    if task { exec.cpu.load_task_register(selector) } else { exec.cpu.load_ldt(selector) }
}

fn store_system(exec: &mut Exec<'_, '_>, insn: &Insn, task: bool) -> Result<()> {
    require_protected(exec)?;
    check_umip(exec)?;
    let vcpu = &exec.cpu.vcpu;
    let selector = if task { vcpu.tr.selector } else { vcpu.ldtr.selector };
    if insn.reg[0] == MEMORY {
        return exec.store(insn, selector);
    }
    set_sized(exec, insn.size, insn.reg[0], u64::from(selector));
    Ok(())
}

fn set_zf(exec: &mut Exec<'_, '_>, on: bool) {
    let zf = flag::ZF as u8;
    let low = &mut exec.regs().status.low;
    *low = (*low & !zf) | if on { zf } else { 0 };
}

/// Whether LAR (or LSL with `limit`) sees a system descriptor of this type.
fn is_visible_system(exec: &Exec<'_, '_>, kind: u32, limit: bool) -> bool {
    let long = exec.cpu.vcpu.mode.long;
    match kind {
        system::TSS | system::TSS_BUSY | system::LDT => true,
        system::TSS16 | system::TSS16_BUSY => !long,
        system::CALL_GATE => !limit,
        system::CALL_GATE16 | system::TASK_GATE => !limit && !long,
        _ => false,
    }
}

fn visible(exec: &mut Exec<'_, '_>, insn: &Insn, limit: bool) -> Result<Option<Descriptor>> {
    require_protected(exec)?;
    let selector = selector_operand(exec, insn, 1)?;
    let found = exec.cpu.visible_descriptor(selector)?;
    Ok(found.filter(|d| d.has(attr::S) || is_visible_system(exec, d.kind(), limit)))
}

fn lar(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let found = visible(exec, insn, false)?;
    set_zf(exec, found.is_some());
    if let Some(descriptor) = found {
        let rights = (descriptor.low >> 32) & 0x00ff_ff00;
        set_sized(exec, insn.size, insn.reg[0], rights);
    }
    Ok(())
}

fn lsl(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let found = visible(exec, insn, true)?;
    set_zf(exec, found.is_some());
    if let Some(descriptor) = found {
        set_sized(exec, insn.size, insn.reg[0], u64::from(descriptor.limit()));
    }
    Ok(())
}

fn verify(exec: &mut Exec<'_, '_>, insn: &Insn, write: bool) -> Result<()> {
    require_protected(exec)?;
    let selector = selector_operand(exec, insn, 0)?;
    let found = exec.cpu.visible_descriptor(selector)?;
    let passes = found.is_some_and(|d| {
        let rw = d.has(attr::RW);
        d.has(attr::S) && if write { !d.is_code() && rw } else { !d.is_code() || rw }
    });
    set_zf(exec, passes);
    Ok(())
}

fn arpl(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    require_protected(exec)?;
    let target = selector_operand(exec, insn, 0)?;
    let source = get_sized(exec, 2, insn.reg[1]) as u16;
    let lower = target & 3 < source & 3;
    let adjusted = (target & !3) | (source & 3);
    if insn.reg[0] == MEMORY {
        if lower {
            exec.store(insn, adjusted)?;
        }
    } else if lower {
        exec.set(insn.reg[0], adjusted);
    }
    set_zf(exec, lower);
    Ok(())
}

fn check_fsgsbase(exec: &Exec<'_, '_>) -> Result<()> {
    let vcpu = &exec.cpu.vcpu;
    let on = vcpu.mode.bits == 64 && vcpu.cr4 & cr::CR4_FSGSBASE != 0;
    if on { Ok(()) } else { Err(Exception::UD) }
}

fn read_base(exec: &mut Exec<'_, '_>, insn: &Insn, seg: Seg) -> Result<()> {
    check_fsgsbase(exec)?;
    let base = exec.cpu.vcpu.seg(seg).base;
    set_sized(exec, insn.size, insn.reg[0], base);
    Ok(())
}

fn write_base(exec: &mut Exec<'_, '_>, insn: &Insn, seg: Seg) -> Result<()> {
    check_fsgsbase(exec)?;
    let base = get_sized(exec, insn.size, insn.reg[0]);
    if !types::Gva(base).is_canonical() {
        return Err(Exception::GP0);
    }
    exec.cpu.set_segment_base(seg, base);
    Ok(())
}
