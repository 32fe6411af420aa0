//! System instructions that the dispatcher executes itself by their semantics in `cpu`: those hot
//! enough that the fall-back engine's way to the same functions shows.

use cpu::{Cpu, Registers, Result, gpr};
use iced_x86::Mnemonic;

/// What became of an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It retired, and RIP is at the next.
    Next,
    /// It retired and set RIP, perhaps the mode too.
    Went,
    /// It is for the fall-back engine: nothing has happened but accessed bits set.
    Declined,
}

fn set_edx_eax(regs: &mut Registers, value: u64) {
    regs.gpr[gpr::RAX] = value & 0xffff_ffff;
    regs.gpr[gpr::RDX] = value >> 32;
}

fn read_time(cpu: &mut Cpu<'_>, with_aux: bool) -> Result<()> {
    let tsc = cpu.read_tsc()?;
    set_edx_eax(&mut cpu.vcpu.regs, tsc);
    if with_aux {
        cpu.vcpu.regs.gpr[gpr::RCX] = cpu.vcpu.msrs.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

/// Executes the instruction of `len` bytes at RIP if it is one of these. What raises an exception
/// is declined, and raises it again in the fall-back engine. In 64-bit mode only.
pub(crate) fn help(cpu: &mut Cpu<'_>, mnemonic: u16, len: u16) -> Outcome {
    let next = cpu.vcpu.regs.rip().wrapping_add(u64::from(len));
    let (done, goes) = match mnemonic {
        m if m == Mnemonic::Rdtsc as u16 => (read_time(cpu, false), false),
        m if m == Mnemonic::Rdtscp as u16 => (read_time(cpu, true), false),
        m if m == Mnemonic::Syscall as u16 => (cpu.syscall(next), true),
        m if m == Mnemonic::Sysretq as u16 => (cpu.sysret(true), true),
        m if m == Mnemonic::Iretq as u16 => (cpu.interrupt_return(8), true),
        _ => return Outcome::Declined,
    };
    match done {
        Err(_) => Outcome::Declined,
        Ok(()) if goes => {
            cpu.vcpu.branches += 1;
            Outcome::Went
        }
        Ok(()) => {
            cpu.vcpu.regs.gpr[gpr::RIP] = next;
            Outcome::Next
        }
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::Code;

    #[test]
    fn what_goes_counts_as_a_branch() {
        for code in [Code::Syscall, Code::Sysretq, Code::Iretq] {
            assert!(cpu::branch::counts(code), "{code:?}");
        }
    }
}
