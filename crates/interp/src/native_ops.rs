//! Instructions that only compute: run on the host CPU by a stub, their memory operand stood in.

use cpu::{Access, Exception, Result, Seg, Unit};
use native::NativeFault;

use crate::insn::{Exec, Insn, get};

/// What a native instruction does to its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Has none.
    None,
    /// Reads it.
    Read,
    /// Writes it without reading.
    Write,
    /// Reads and writes it.
    Modify,
}

impl Exec<'_, '_> {
    fn run_stub(&mut self, insn: &Insn) -> Result<()> {
        let stub = insn.stub.expect("decoded with a stub");
        self.stubs
            .run(stub, &mut self.cpu.vcpu.regs, self.operand)
            .map_err(|fault| self.exception_of(fault))
    }

    fn exception_of(&self, fault: NativeFault) -> Exception {
        match fault {
            NativeFault::DivideError => Exception::DE,
            NativeFault::InvalidOpcode => Exception::UD,
            NativeFault::GeneralProtection => Exception::GP0,
            NativeFault::X87 => Exception::MF,
            NativeFault::Simd => self.cpu.simd_exception(),
            NativeFault::AlignmentCheck => Exception::AC0,
        }
    }

    /// Loads `size` bytes at `seg:offset` into the stand-in.
    fn load_operand(&mut self, seg: Seg, offset: u64, size: u16) -> Result<()> {
        match size {
            1 => {
                let value = self.cpu.read(seg, offset)?;
                self.operand.store_u8(value);
            }
            2 => {
                let value = self.cpu.read(seg, offset)?;
                self.operand.store_u16(value);
            }
            4 => {
                let value = self.cpu.read(seg, offset)?;
                self.operand.store_u32(value);
            }
            8 => {
                let value = self.cpu.read(seg, offset)?;
                self.operand.store_u64(value);
            }
            16 => {
                let value = self.cpu.read(seg, offset)?;
                self.operand.store_u128(value);
            }
            _ => self.cpu.read_bytes(seg, offset, self.operand.slice_mut(size as usize))?,
        }
        Ok(())
    }

    /// Stores `size` bytes of the stand-in at `seg:offset`.
    fn store_operand(&mut self, seg: Seg, offset: u64, size: u16) -> Result<()> {
        match size {
            1 => self.cpu.write(seg, offset, self.operand.load_u8()),
            2 => self.cpu.write(seg, offset, self.operand.load_u16()),
            4 => self.cpu.write(seg, offset, self.operand.load_u32()),
            8 => self.cpu.write(seg, offset, self.operand.load_u64()),
            16 => self.cpu.write(seg, offset, self.operand.load_u128()),
            _ => self.cpu.write_bytes(seg, offset, self.operand.slice(size as usize)),
        }
    }

    /// The exception to raise when the access raised `exception`: the #GP of a misaligned vector
    /// operand comes first, and the instruction itself, run on a copy, says whether there is one.
    #[cold]
    fn misalignment_first(&mut self, insn: &Insn, offset: u64, exception: Exception) -> Exception {
        let base = self.cpu.vcpu.mode.bases[insn.seg as usize];
        let stub = insn.stub.expect("decoded with a stub");
        let inside = u64::from(insn.mem_size) - 1;
        if insn.mem_size < 16 || base.wrapping_add(offset) & inside == 0 {
            return exception;
        }
        let mut copy = self.cpu.vcpu.regs.clone();
        match self.stubs.run(stub, &mut copy, self.operand) {
            Err(NativeFault::GeneralProtection) => Exception::GP0,
            _ => exception,
        }
    }

    /// #AC(0) of x87 operands whose alignment is not their size (SDM vol. 3, table 6-7).
    fn check_x87_alignment(&self, insn: &Insn, offset: u64, access: Access) -> Result<()> {
        if !self.cpu.vcpu.mode.checks_alignment {
            return Ok(());
        }
        let alignment = match (insn.unit, insn.mem_size) {
            (Unit::X87 | Unit::X87Control, 10) => 8,
            (Unit::X87 | Unit::X87Control, 14 | 94) => 2,
            (Unit::X87 | Unit::X87Control, 28 | 108) => 4,
            _ => return Ok(()),
        };
        let size = u64::from(insn.mem_size);
        let gva = self.cpu.linear(insn.seg, offset, size, access)?;
        self.cpu.check_aligned(insn.seg, gva, size, alignment)
    }

    /// Places the stand-in as the guest's linear address lies within its 64 bytes.
    fn align_operand(&mut self, seg: Seg, offset: u64) {
        let base = self.cpu.vcpu.mode.bases[seg as usize];
        self.operand.align(base.wrapping_add(offset));
    }
}

/// Integer instruction without memory operand.
pub fn native_register(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.run_stub(insn)
}

/// Instruction of another unit without memory operand.
pub fn native_unit(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    exec.run_stub(insn)
}

fn read_at(exec: &mut Exec<'_, '_>, insn: &Insn, offset: u64) -> Result<()> {
    exec.align_operand(insn.seg, offset);
    exec.check_x87_alignment(insn, offset, Access::Read)?;
    exec.load_operand(insn.seg, offset, insn.mem_size)
        .map_err(|exception| exec.misalignment_first(insn, offset, exception))?;
    exec.run_stub(insn)
}

fn modify_at(exec: &mut Exec<'_, '_>, insn: &Insn, offset: u64) -> Result<()> {
    exec.align_operand(insn.seg, offset);
    exec.check_x87_alignment(insn, offset, Access::Write)?;
    exec.cpu
        .probe_write(insn.seg, offset, u64::from(insn.mem_size))
        .and_then(|()| exec.load_operand(insn.seg, offset, insn.mem_size))
        .map_err(|exception| exec.misalignment_first(insn, offset, exception))?;
    exec.run_stub(insn)?;
    exec.store_operand(insn.seg, offset, insn.mem_size)
}

/// Instruction that reads its memory operand.
pub fn native_read(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let offset = exec.offset(insn);
    read_at(exec, insn, offset)
}

/// Instruction that writes its memory operand without reading it.
pub fn native_write(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let offset = exec.offset(insn);
    exec.align_operand(insn.seg, offset);
    exec.check_x87_alignment(insn, offset, Access::Write)?;
    exec.cpu
        .probe_write(insn.seg, offset, u64::from(insn.mem_size))
        .map_err(|exception| exec.misalignment_first(insn, offset, exception))?;
    exec.run_stub(insn)?;
    exec.store_operand(insn.seg, offset, insn.mem_size)
}

/// Instruction that reads and writes its memory operand.
pub fn native_modify(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let offset = exec.offset(insn);
    modify_at(exec, insn, offset)
}

/// Offset of the operand that holds the bit a BT of memory with register offset names
/// (SDM vol. 2, "BT").
fn bit_offset(exec: &Exec<'_, '_>, insn: &Insn) -> u64 {
    let regs = &exec.cpu.vcpu.regs;
    let bit = match insn.mem_size {
        2 => i64::from(get::<u16>(regs, insn.reg[1]) as i16) >> 4 << 1,
        4 => i64::from(get::<u32>(regs, insn.reg[1]) as i32) >> 5 << 2,
        _ => (get::<u64>(regs, insn.reg[1]) as i64) >> 6 << 3,
    };
    exec.offset(insn).wrapping_add(bit as u64) & crate::insn::address_mask(insn.address_bits)
}

/// BT of memory with a register offset.
pub fn bit_test_read(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = bit_offset(exec, insn);
    read_at(exec, insn, offset)
}

/// BTS, BTR and BTC of memory with a register offset.
pub fn bit_test_modify(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    let offset = bit_offset(exec, insn);
    modify_at(exec, insn, offset)
}
