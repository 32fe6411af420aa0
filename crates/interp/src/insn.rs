//! A decoded instruction: its handler and its operands in the form handlers want.

use cpu::{Cpu, Registers, Result, Seg, Unit, Word, gpr};
use native::{Operand, Stub, Stubs};

/// Executes one instruction. Unless the instruction is [`Insn::sets_rip`], RIP is advanced by the
/// caller after success.
pub type Handler = fn(&mut Exec<'_, '_>, &Insn) -> Result<()>;

/// What a handler works on.
pub struct Exec<'e, 'c> {
    /// The vCPU and its surroundings.
    pub cpu: &'e mut Cpu<'c>,
    /// Native stubs.
    pub stubs: &'e Stubs,
    /// The stand-in memory operand.
    pub operand: &'e mut Operand,
    /// A repeated string instruction gives control back after one iteration.
    pub single: bool,
}

/// Added to a register number: the register is AH, CH, DH or BH.
pub const HIGH_BYTE: u8 = 0x20;

/// A decoded instruction.
#[derive(Clone)]
pub struct Insn {
    /// Executes it.
    pub run: Handler,
    /// Immediate, sign-extended; branch target or far offset for branches.
    pub imm: u64,
    /// Displacement; for RIP-relative operands it includes the instruction's length.
    pub disp: u64,
    /// For instructions that run natively.
    pub stub: Option<Stub>,
    /// Bytes of the memory operand.
    pub mem_size: u16,
    /// Second immediate, or a far pointer's selector.
    pub imm2: u16,
    /// Bytes of the instruction.
    pub len: u8,
    /// Segment register of the memory operand.
    pub seg: Seg,
    /// Base register of the memory operand, or [`gpr::ZERO`].
    pub base: u8,
    /// Index register of the memory operand, or [`gpr::ZERO`].
    pub index: u8,
    /// log2 of the index scale.
    pub scale: u8,
    /// Address size: 16, 32 or 64.
    pub address_bits: u8,
    /// Operand size in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Register operands in order (see [`HIGH_BYTE`]).
    pub reg: [u8; 3],
    /// Register file it computes on.
    pub unit: Unit,
    /// REP prefixes.
    pub repeat: Repeat,
    /// The handler sets RIP itself.
    pub sets_rip: bool,
    /// Counts as a branch when it retires.
    pub counts: bool,
    /// Nothing follows it in its block.
    pub ends_block: bool,
}

/// Repeat prefix of a string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// None.
    No,
    /// REP or REPE.
    WhileEqual,
    /// REPNE.
    WhileNotEqual,
}

/// The part of an address that an address size uses.
#[inline(always)]
pub const fn address_mask(bits: u8) -> u64 {
    match bits {
        64 => u64::MAX,
        32 => 0xffff_ffff,
        _ => 0xffff,
    }
}

impl Insn {
    /// Offset of the memory operand in its segment.
    #[inline(always)]
    pub fn offset(&self, regs: &Registers) -> u64 {
        let base = regs.gpr[self.base as usize % 18];
        let index = regs.gpr[self.index as usize % 18];
        base.wrapping_add(index << self.scale).wrapping_add(self.disp)
            & address_mask(self.address_bits)
    }
}

/// Reads a general register as a `T`.
#[inline(always)]
pub fn get<T: Word>(regs: &Registers, reg: u8) -> T {
    if T::SIZE == 1 && reg & HIGH_BYTE != 0 {
        return T::from_u64(regs.gpr[reg as usize & 3] >> 8);
    }
    T::from_u64(regs.gpr[reg as usize & 15])
}

/// Writes a general register: 32-bit writes zero the upper half, narrower ones keep the rest.
#[inline(always)]
pub fn set<T: Word>(regs: &mut Registers, reg: u8, value: T) {
    let value = value.to_u64();
    let slot = &mut regs.gpr[reg as usize & 15];
    match T::SIZE {
        8 | 4 => *slot = value,
        2 => *slot = (*slot & !0xffff) | value,
        _ if reg & HIGH_BYTE != 0 => {
            let slot = &mut regs.gpr[reg as usize & 3];
            *slot = (*slot & !0xff00) | (value << 8);
        }
        _ => *slot = (*slot & !0xff) | value,
    }
}

impl Exec<'_, '_> {
    /// Offset of the memory operand.
    #[inline(always)]
    pub fn offset(&self, insn: &Insn) -> u64 {
        insn.offset(&self.cpu.vcpu.regs)
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, insn: &Insn) -> Result<T> {
        let offset = self.offset(insn);
        self.cpu.read(insn.seg, offset)
    }

    /// Stores the memory operand.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, insn: &Insn, value: T) -> Result<()> {
        let offset = self.offset(insn);
        self.cpu.write(insn.seg, offset, value)
    }

    /// The registers.
    #[inline(always)]
    pub fn regs(&mut self) -> &mut Registers {
        &mut self.cpu.vcpu.regs
    }

    /// A general register.
    #[inline(always)]
    pub fn get<T: Word>(&self, reg: u8) -> T {
        get(&self.cpu.vcpu.regs, reg)
    }

    /// Sets a general register.
    #[inline(always)]
    pub fn set<T: Word>(&mut self, reg: u8, value: T) {
        set(&mut self.cpu.vcpu.regs, reg, value);
    }

    /// Offset of the next instruction, wrapped as the code segment's size has it.
    #[inline(always)]
    pub fn next_rip(&self, insn: &Insn) -> u64 {
        let next = self.cpu.vcpu.regs.gpr[gpr::RIP].wrapping_add(u64::from(insn.len));
        next & address_mask(self.cpu.vcpu.mode.bits)
    }

    /// Advances RIP past the instruction.
    #[inline(always)]
    pub fn retire(&mut self, insn: &Insn) {
        let next = self.next_rip(insn);
        self.cpu.vcpu.regs.gpr[gpr::RIP] = next;
    }
}
