//! System instructions: interrupts, ports, MSRs, control registers, time, flags.

use cpu::{Activity, Cause, Exception, Result, Shadow, Table, cr, flag, gpr, vector};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::data::{get_sized, set_sized};
use crate::insn::{Exec, Handler, Insn};

const RAX: u8 = gpr::RAX as u8;
const RCX: u8 = gpr::RCX as u8;
const RDX: u8 = gpr::RDX as u8;

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let memory = instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Hlt => hlt,
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Cld => |exec, _| direction(exec, 0),
        Mnemonic::Std => |exec, _| direction(exec, flag::DF),
        Mnemonic::Clac => |exec, _| access_check(exec, 0),
        Mnemonic::Stac => |exec, _| access_check(exec, flag::AC),
        Mnemonic::Int => int,
        Mnemonic::Int3 => |exec, insn| software(exec, insn, vector::BP),
        Mnemonic::Into => into,
        Mnemonic::Int1 => int1,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => iret,
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => sysret(instruction),
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => sysexit(instruction),
        Mnemonic::In => port_in,
        Mnemonic::Out => port_out,
        Mnemonic::Cpuid => cpuid,
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Rdpmc => |_, _| Err(Exception::GP0),
        Mnemonic::Mov if instruction.op0_register().is_cr() => mov_to_cr,
        Mnemonic::Mov if instruction.op1_register().is_cr() => mov_from_cr,
        Mnemonic::Mov if instruction.op0_register().is_dr() => mov_to_dr,
        Mnemonic::Mov if instruction.op1_register().is_dr() => mov_from_dr,
        Mnemonic::Lmsw => lmsw(memory),
        Mnemonic::Smsw => smsw(memory),
        Mnemonic::Clts => clts,
        Mnemonic::Lgdt => |exec, insn| load_table(exec, insn, false),
        Mnemonic::Lidt => |exec, insn| load_table(exec, insn, true),
        Mnemonic::Sgdt => |exec, insn| store_table(exec, insn, false),
        Mnemonic::Sidt => |exec, insn| store_table(exec, insn, true),
        Mnemonic::Invlpg | Mnemonic::Wbinvd | Mnemonic::Invd => privileged_nothing,
        Mnemonic::Invpcid => invpcid,
        Mnemonic::Swapgs => |exec, _| exec.cpu.swap_gs(),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => touch,
        Mnemonic::Bound => bound,
        _ => return None,
    })
}

fn hlt(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    exec.cpu.require_cpl0()?;
    exec.cpu.vcpu.activity = Activity::Halted;
    exec.cpu.vcpu.attention = true;
    Ok(())
}

/// #GP(0) unless IF may be changed.
fn require_if_access(exec: &Exec<'_, '_>) -> Result<()> {
    let vcpu = &exec.cpu.vcpu;
    let allowed = !vcpu.mode.protected || vcpu.cpl <= vcpu.iopl();
    if allowed { Ok(()) } else { Err(Exception::GP0) }
}

fn cli(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    require_if_access(exec)?;
    exec.regs().rflags_other &= !flag::IF;
    Ok(())
}

fn sti(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    require_if_access(exec)?;
    if exec.regs().rflags_other & flag::IF == 0 {
        exec.regs().rflags_other |= flag::IF;
        exec.cpu.vcpu.pending.shadow = Shadow::Sti;
        exec.cpu.vcpu.attention = true;
    }
    Ok(())
}

fn direction(exec: &mut Exec<'_, '_>, value: u64) -> Result<()> {
    let other = exec.regs().rflags_other & !flag::DF;
    exec.regs().rflags_other = other | value;
    Ok(())
}

/// CLAC and STAC.
fn access_check(exec: &mut Exec<'_, '_>, value: u64) -> Result<()> {
    if exec.cpu.vcpu.cpl != 0 || !exec.cpu.vcpu.mode.protected {
        return Err(Exception::UD);
    }
    let other = exec.regs().rflags_other & !flag::AC;
    exec.regs().rflags_other = other | value;
    exec.cpu.vcpu.rederive();
    Ok(())
}

/// Delivers a software interrupt with the next instruction as return address.
fn software(exec: &mut Exec<'_, '_>, insn: &Insn, vector: u8) -> Result<()> {
    let here = exec.regs().gpr[gpr::RIP];
    exec.retire(insn);
    exec.cpu
        .deliver(vector, Cause::Software, None)
        .inspect_err(|_| exec.cpu.vcpu.regs.gpr[gpr::RIP] = here)
}

fn int(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    if exec.cpu.vcpu.mode.v86 && exec.cpu.vcpu.iopl() < 3 {
        return Err(Exception::GP0);
    }
    software(exec, insn, insn.imm as u8)
}

fn into(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    if exec.regs().status.overflow != 0 {
        return software(exec, insn, vector::OF);
    }
    exec.retire(insn);
    Ok(())
}

/// INT1 (ICEBP): a debug trap without a privilege check.
fn int1(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.retire(insn);
    exec.cpu.raise(Exception::db(0));
    Ok(())
}

fn iret(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.interrupt_return(u64::from(insn.size))
}

fn syscall(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let next = exec.next_rip(insn);
    exec.cpu.syscall(next)
}

fn sysret(instruction: &Instruction) -> Handler {
    if instruction.code() == Code::Sysretq {
        |exec, _| exec.cpu.sysret(true)
    } else {
        |exec, _| exec.cpu.sysret(false)
    }
}

fn sysenter(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    exec.cpu.sysenter()
}

fn sysexit(instruction: &Instruction) -> Handler {
    if instruction.code() == Code::Sysexitq {
        |exec, _| exec.cpu.sysexit(true)
    } else {
        |exec, _| exec.cpu.sysexit(false)
    }
}

/// The port of IN and OUT: immediate, or DX (then `reg[1]` of IN, `reg[0]` of OUT is DX).
fn port_number(exec: &Exec<'_, '_>, insn: &Insn) -> u16 {
    if insn.imm2 != 0 { insn.imm as u8 as u16 } else { exec.get(RDX) }
}

fn port_in(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let port = port_number(exec, insn);
    exec.cpu.check_port(port, u64::from(insn.size))?;
    let value = exec.cpu.port_in(port, insn.size);
    match insn.size {
        1 => exec.set(RAX, value as u8),
        2 => exec.set(RAX, value as u16),
        _ => exec.set(RAX, value),
    }
    Ok(())
}

fn port_out(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let port = port_number(exec, insn);
    exec.cpu.check_port(port, u64::from(insn.size))?;
    let value = get_sized(exec, insn.size, RAX) as u32;
    exec.cpu.port_out(port, insn.size, value);
    Ok(())
}

fn cpuid(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    exec.cpu.cpuid();
    Ok(())
}

/// Splits a 64-bit value over EDX:EAX.
fn set_edx_eax(exec: &mut Exec<'_, '_>, value: u64) {
    exec.set(RAX, value as u32);
    exec.set(RDX, (value >> 32) as u32);
}

/// EDX:EAX as one value.
pub fn edx_eax(exec: &Exec<'_, '_>) -> u64 {
    let (low, high): (u32, u32) = (exec.get(RAX), exec.get(RDX));
    u64::from(low) | u64::from(high) << 32
}

fn rdtsc(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let tsc = exec.cpu.read_tsc()?;
    set_edx_eax(exec, tsc);
    Ok(())
}

fn rdtscp(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    rdtsc(exec, insn)?;
    let aux = exec.cpu.vcpu.msrs.tsc_aux as u32;
    exec.set(RCX, aux);
    Ok(())
}

fn rdmsr(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let msr = exec.get(RCX);
    let value = exec.cpu.read_msr(msr)?;
    set_edx_eax(exec, value);
    Ok(())
}

fn wrmsr(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    let (msr, value) = (exec.get(RCX), edx_eax(exec));
    exec.cpu.write_msr(msr, value)
}

/// Bytes of a control- or debug-register move: the whole register.
fn wide(exec: &Exec<'_, '_>) -> u8 {
    if exec.cpu.vcpu.mode.bits == 64 { 8 } else { 4 }
}

fn mov_to_cr(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value = get_sized(exec, wide(exec), insn.reg[1]);
    exec.cpu.write_cr(insn.reg[0], value)
}

fn mov_from_cr(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value = exec.cpu.read_cr(insn.reg[1])?;
    set_sized(exec, wide(exec), insn.reg[0], value);
    Ok(())
}

fn mov_to_dr(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value = get_sized(exec, wide(exec), insn.reg[1]);
    exec.cpu.write_dr(insn.reg[0], value)
}

fn mov_from_dr(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let value = exec.cpu.read_dr(insn.reg[1])?;
    set_sized(exec, wide(exec), insn.reg[0], value);
    Ok(())
}

/// LMSW changes PE (set only), MP, EM and TS.
fn machine_status(exec: &mut Exec<'_, '_>, value: u16) -> Result<()> {
    exec.cpu.require_cpl0()?;
    let changeable = cr::CR0_PE | cr::CR0_MP | cr::CR0_EM | cr::CR0_TS;
    let old = exec.cpu.vcpu.cr0;
    let new = (old & !changeable) | (u64::from(value) & changeable) | (old & cr::CR0_PE);
    exec.cpu.write_cr0(new)
}

fn lmsw(memory: bool) -> Handler {
    if memory {
        |exec, insn| {
            exec.cpu.require_cpl0()?;
            let value = exec.load(insn)?;
            machine_status(exec, value)
        }
    } else {
        |exec, insn| {
            let value = exec.get(insn.reg[0]);
            machine_status(exec, value)
        }
    }
}

/// #GP(0) where UMIP keeps user code from reading system state.
pub fn check_umip(exec: &Exec<'_, '_>) -> Result<()> {
    let vcpu = &exec.cpu.vcpu;
    if vcpu.cr4 & cr::CR4_UMIP != 0 && vcpu.cpl != 0 { Err(Exception::GP0) } else { Ok(()) }
}

fn smsw(memory: bool) -> Handler {
    if memory {
        |exec, insn| {
            check_umip(exec)?;
            let value = exec.cpu.vcpu.cr0 as u16;
            exec.store(insn, value)
        }
    } else {
        |exec, insn| {
            check_umip(exec)?;
            let value = exec.cpu.vcpu.cr0;
            set_sized(exec, insn.size, insn.reg[0], value);
            Ok(())
        }
    }
}

fn clts(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    exec.cpu.require_cpl0()?;
    exec.cpu.vcpu.cr0 &= !cr::CR0_TS;
    Ok(())
}

/// LGDT and LIDT: limit, then base of 24, 32 or 64 bits.
fn load_table(exec: &mut Exec<'_, '_>, insn: &Insn, interrupts: bool) -> Result<()> {
    exec.cpu.require_cpl0()?;
    let offset = exec.offset(insn);
    let mut bytes = [0; 10];
    let size = if exec.cpu.vcpu.mode.bits == 64 { 10 } else { 6 };
    exec.cpu.read_bytes(insn.seg, offset, &mut bytes[..size])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = u64::from_le_bytes(bytes[2..].try_into().expect("eight bytes"));
    if size == 6 && insn.size == 2 {
        base &= 0xff_ffff;
    }
    if !exec.cpu.is_valid_linear(base) {
        return Err(Exception::GP0);
    }
    let table = Table { base, limit };
    if interrupts {
        exec.cpu.load_idt(table)
    } else {
        exec.cpu.load_gdt(table)
    }
    Ok(())
}

fn store_table(exec: &mut Exec<'_, '_>, insn: &Insn, interrupts: bool) -> Result<()> {
    check_umip(exec)?;
    let table = if interrupts { exec.cpu.vcpu.idtr } else { exec.cpu.vcpu.gdtr };
    let offset = exec.offset(insn);
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let size = if exec.cpu.vcpu.mode.bits == 64 { 10 } else { 6 };
    exec.cpu.write_bytes(insn.seg, offset, &bytes[..size])
}

/// INVLPG, WBINVD, INVD: cached walks are never stale, and there are no caches to flush.
fn privileged_nothing(exec: &mut Exec<'_, '_>, _insn: &Insn) -> Result<()> {
    exec.cpu.require_cpl0()
}

fn invpcid(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.require_cpl0()?;
    let kind = get_sized(exec, wide(exec), insn.reg[0]);
    let offset = exec.offset(insn);
    let descriptor: u128 = exec.cpu.read(insn.seg, offset)?;
    let (pcid, gva) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid_off = exec.cpu.vcpu.cr4 & cr::CR4_PCIDE == 0;
    let bad = kind > 3
        || pcid >> 12 != 0
        || (kind == 0 && !exec.cpu.is_valid_linear(gva))
        || (kind <= 1 && pcid_off && pcid != 0);
    if bad { Err(Exception::GP0) } else { Ok(()) }
}

/// CLFLUSH and the like: checked as a load, without effect.
fn touch(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.load::<u8>(insn).map(|_| ())
}

fn bound(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = exec.offset(insn);
    let (lower, upper, index) = if insn.size == 2 {
        let lower: u16 = exec.cpu.read(insn.seg, offset)?;
        let upper: u16 = exec.cpu.read(insn.seg, offset.wrapping_add(2))?;
        let index: u16 = exec.get(insn.reg[0]);
        (i32::from(lower as i16), i32::from(upper as i16), i32::from(index as i16))
    } else {
        let lower: u32 = exec.cpu.read(insn.seg, offset)?;
        let upper: u32 = exec.cpu.read(insn.seg, offset.wrapping_add(4))?;
        let index: u32 = exec.get(insn.reg[0]);
        (lower as i32, upper as i32, index as i32)
    };
    if index < lower || index > upper { Err(Exception::BR) } else { Ok(()) }
}
