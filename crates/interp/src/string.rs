//! String instructions and their repetition: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS.

use cpu::{Result, Seg, StatusFlags, Word, flag, gpr};
use iced_x86::{Instruction, Mnemonic};

use crate::data::by_size;
use crate::insn::{Exec, Handler, Insn, Repeat, address_mask};
use crate::string_bulk;

/// Iterations after which the engine looks up from a repeated instruction.
const ITERATIONS_MAX: u64 = 1 << 16;

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let pick = |handlers: [Handler; 4]| by_size(element_size(instruction), handlers);
    Some(match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => {
            pick([movs::<u8>, movs::<u16>, movs::<u32>, movs::<u64>])
        }
        Mnemonic::Movsd if instruction.is_string_instruction() => movs::<u32>,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            pick([stos::<u8>, stos::<u16>, stos::<u32>, stos::<u64>])
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            pick([lods::<u8>, lods::<u16>, lods::<u32>, lods::<u64>])
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            pick([scas::<u8>, scas::<u16>, scas::<u32>, scas::<u64>])
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsq => {
            pick([cmps::<u8>, cmps::<u16>, cmps::<u32>, cmps::<u64>])
        }
        Mnemonic::Cmpsd if instruction.is_string_instruction() => cmps::<u32>,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            pick([ins::<u8>, ins::<u16>, ins::<u32>, ins::<u32>])
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            pick([outs::<u8>, outs::<u16>, outs::<u32>, outs::<u32>])
        }
        _ => return None,
    })
}

/// Bytes of one element.
pub fn element_size(instruction: &Instruction) -> u8 {
    instruction.memory_size().size() as u8
}

/// Register value with the address size's part replaced.
fn merge(old: u64, new: u64, bits: u8) -> u64 {
    if bits == 16 { (old & !0xffff) | (new & 0xffff) } else { new & address_mask(bits) }
}

/// A string instruction in progress.
pub struct Strings<'x, 'e, 'c, 'i> {
    /// Where it executes.
    pub exec: &'x mut Exec<'e, 'c>,
    /// The instruction.
    pub insn: &'i Insn,
}

impl Strings<'_, '_, '_, '_> {
    /// RSI or RDI, cut to the address size.
    pub fn pointer(&self, reg: usize) -> u64 {
        self.exec.cpu.vcpu.regs.gpr[reg] & address_mask(self.insn.address_bits)
    }

    /// RCX, cut to the address size.
    pub fn count(&self) -> u64 {
        self.pointer(gpr::RCX)
    }

    /// Whether DF is clear.
    pub fn is_forward(&self) -> bool {
        self.exec.cpu.vcpu.regs.rflags_other & flag::DF == 0
    }

    /// Moves RSI or RDI on by `bytes` in the direction of DF.
    pub fn advance(&mut self, reg: usize, bytes: u64) {
        let step = if self.is_forward() { bytes } else { bytes.wrapping_neg() };
        let old = self.exec.regs().gpr[reg];
        self.exec.regs().gpr[reg] = merge(old, old.wrapping_add(step), self.insn.address_bits);
    }

    /// Takes `elements` off RCX.
    pub fn count_down(&mut self, elements: u64) {
        let old = self.exec.regs().gpr[gpr::RCX];
        let new = old.wrapping_sub(elements);
        self.exec.regs().gpr[gpr::RCX] = merge(old, new, self.insn.address_bits);
        self.exec.cpu.vcpu.iterations += elements;
    }

    fn finish(&mut self) {
        self.exec.cpu.vcpu.iterations = 0;
        self.exec.retire(self.insn);
    }
}

/// Runs the instruction once, or as its prefix says. `bulk` may do many iterations at once and
/// says how many; `one` does one and says whether the repetition goes on.
fn repeat(
    exec: &mut Exec<'_, '_>,
    insn: &Insn,
    bulk: fn(&mut Strings<'_, '_, '_, '_>) -> u64,
    one: fn(&mut Strings<'_, '_, '_, '_>) -> Result<bool>,
) -> Result<()> {
    let single = exec.single;
    let mut strings = Strings { exec, insn };
    if insn.repeat == Repeat::No {
        one(&mut strings)?;
        strings.finish();
        return Ok(());
    }
    let mut iterations = 0;
    while iterations < ITERATIONS_MAX {
        if strings.count() == 0 {
            strings.finish();
            return Ok(());
        }
        if !single {
            let done = bulk(&mut strings);
            strings.count_down(done);
            iterations += done;
            if done != 0 {
                continue;
            }
        }
        let goes_on = one(&mut strings)?;
        strings.count_down(1);
        iterations += 1;
        if !goes_on || strings.count() == 0 {
            strings.finish();
            return Ok(());
        }
        if single || strings.exec.cpu.vcpu.attention {
            return Ok(());
        }
    }
    strings.exec.cpu.vcpu.attention = true;
    Ok(())
}

fn no_bulk(_strings: &mut Strings<'_, '_, '_, '_>) -> u64 {
    0
}

fn movs<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    repeat(exec, insn, string_bulk::movs::<T>, |s| {
        let value: T = s.exec.cpu.read(s.insn.seg, s.pointer(gpr::RSI))?;
        s.exec.cpu.write(Seg::Es, s.pointer(gpr::RDI), value)?;
        s.advance(gpr::RSI, T::SIZE);
        s.advance(gpr::RDI, T::SIZE);
        Ok(true)
    })
}

fn stos<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    repeat(exec, insn, string_bulk::stos::<T>, |s| {
        let value: T = s.exec.get(gpr::RAX as u8);
        s.exec.cpu.write(Seg::Es, s.pointer(gpr::RDI), value)?;
        s.advance(gpr::RDI, T::SIZE);
        Ok(true)
    })
}

fn lods<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    repeat(exec, insn, no_bulk, |s| {
        let value: T = s.exec.cpu.read(s.insn.seg, s.pointer(gpr::RSI))?;
        s.exec.set(gpr::RAX as u8, value);
        s.advance(gpr::RSI, T::SIZE);
        Ok(true)
    })
}

/// Flags of `a - b`, as CMP sets them.
fn compare<T: Word>(a: T, b: T) -> StatusFlags {
    let bits = T::SIZE * 8;
    let sign = 1u64 << (bits - 1);
    let mask = sign | (sign - 1);
    let (a, b) = (a.to_u64(), b.to_u64());
    let result = a.wrapping_sub(b) & mask;
    let mut flags = 0;
    flags |= if a < b { flag::CF } else { 0 };
    flags |= if result == 0 { flag::ZF } else { 0 };
    flags |= if result & sign != 0 { flag::SF } else { 0 };
    flags |= if (a ^ b) & (a ^ result) & sign != 0 { flag::OF } else { 0 };
    flags |= (a ^ b ^ result) & flag::AF;
    flags |= if (result as u8).count_ones().is_multiple_of(2) { flag::PF } else { 0 };
    StatusFlags::from_rflags(flags)
}

/// Sets the flags of a comparison and says whether the repetition goes on.
fn compared<T: Word>(s: &mut Strings<'_, '_, '_, '_>, a: T, b: T) -> bool {
    s.exec.regs().status = compare(a, b);
    (a.to_u64() == b.to_u64()) == (s.insn.repeat == Repeat::WhileEqual)
}

fn scas<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    repeat(exec, insn, no_bulk, |s| {
        let value: T = s.exec.cpu.read(Seg::Es, s.pointer(gpr::RDI))?;
        let wanted: T = s.exec.get(gpr::RAX as u8);
        s.advance(gpr::RDI, T::SIZE);
        Ok(compared(s, wanted, value))
    })
}

fn cmps<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    repeat(exec, insn, no_bulk, |s| {
        let first: T = s.exec.cpu.read(s.insn.seg, s.pointer(gpr::RSI))?;
        let second: T = s.exec.cpu.read(Seg::Es, s.pointer(gpr::RDI))?;
        s.advance(gpr::RSI, T::SIZE);
        s.advance(gpr::RDI, T::SIZE);
        Ok(compared(s, first, second))
    })
}

fn ins<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_port(exec.get(gpr::RDX as u8), T::SIZE)?;
    repeat(exec, insn, no_bulk, |s| {
        let port: u16 = s.exec.get(gpr::RDX as u8);
        s.exec.cpu.probe_write(Seg::Es, s.pointer(gpr::RDI), T::SIZE)?;
        let value = s.exec.cpu.port_in(port, T::SIZE as u8);
        s.exec.cpu.write(Seg::Es, s.pointer(gpr::RDI), T::from_u64(u64::from(value)))?;
        s.advance(gpr::RDI, T::SIZE);
        Ok(true)
    })
}

fn outs<T: Word>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_port(exec.get(gpr::RDX as u8), T::SIZE)?;
    repeat(exec, insn, no_bulk, |s| {
        let port: u16 = s.exec.get(gpr::RDX as u8);
        let value: T = s.exec.cpu.read(s.insn.seg, s.pointer(gpr::RSI))?;
        s.exec.cpu.port_out(port, T::SIZE as u8, value.to_u64() as u32);
        s.advance(gpr::RSI, T::SIZE);
        Ok(true)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_sets_flags_as_cmp() {
        for (a, b, expected) in [
            (0u8, 0u8, flag::ZF | flag::PF),
            (0, 1, flag::CF | flag::SF | flag::AF | flag::PF),
            (0x80, 1, flag::OF | flag::AF),
            (5, 3, 0),
        ] {
            assert_eq!(compare(a, b), StatusFlags::from_rflags(expected), "{a} - {b}");
        }
    }
}
