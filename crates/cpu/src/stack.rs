//! Pushes and pops: on the current stack, and on the stack of another privilege level.

use crate::Cpu;
use crate::access::Word;
use crate::exception::{Exception, Result};
use crate::registers::gpr;
use crate::state::{Seg, Segment, attr};
use crate::tlb::{SIDE_SUPERVISOR, SIDE_USER};

/// A stack being built or taken down; RSP is written back only when all of it succeeded.
pub struct Stack {
    segment: Segment,
    bits: u8,
    side: u8,
    /// The stack pointer so far.
    pub rsp: u64,
}

impl Stack {
    /// Bytes of a stack address that count.
    fn mask(&self) -> u64 {
        stack_mask(self.bits)
    }
}

/// The part of RSP that a stack of `bits` uses.
pub const fn stack_mask(bits: u8) -> u64 {
    match bits {
        64 => u64::MAX,
        32 => 0xffff_ffff,
        _ => 0xffff,
    }
}

impl Cpu<'_> {
    /// The current stack.
    pub fn stack(&self) -> Stack {
        Stack {
            segment: *self.vcpu.seg(Seg::Ss),
            bits: self.vcpu.mode.stack_bits,
            side: self.vcpu.mode.walk_side,
            rsp: self.vcpu.regs.gpr[gpr::RSP],
        }
    }

    /// A stack for privilege levels 0 to 2 at `segment:rsp`; `bits` is 64 in long mode.
    pub fn inner_stack(&self, segment: Segment, rsp: u64, long: bool) -> Stack {
        let bits = match () {
            () if long => 64,
            () if segment.has(attr::DB) => 32,
            () => 16,
        };
        Stack { segment, bits, side: SIDE_SUPERVISOR, rsp }
    }

    fn stack_linear(&self, stack: &Stack, offset: u64, size: u64) -> Result<u64> {
        if stack.bits == 64 {
            return Ok(offset);
        }
        let last = offset + (size - 1);
        let limit = u64::from(stack.segment.limit);
        let expand_down = stack.segment.attributes & (attr::CODE | attr::DC) == attr::DC;
        let inside = if expand_down && self.vcpu.mode.protected && !self.vcpu.mode.v86 {
            offset > limit && last <= stack.mask()
        } else {
            last <= limit
        };
        if inside {
            Ok(stack.segment.base.wrapping_add(offset) & 0xffff_ffff)
        } else {
            Err(Exception::SS0)
        }
    }

    /// Pushes `size` bytes (2, 4 or 8) of `value` on `stack`.
    ///
    /// # Errors
    /// #SS(0) or #PF.
    pub fn push_on(&mut self, stack: &mut Stack, value: u64, size: u64) -> Result<()> {
        let mask = stack.mask();
        let offset = stack.rsp.wrapping_sub(size) & mask;
        let gva = self.stack_linear(stack, offset, size)?;
        let bytes = value.to_le_bytes();
        if stack.side == SIDE_USER {
            self.check_aligned(Seg::Ss, gva, size, size)?;
        }
        self.write_linear(stack.side, Seg::Ss, gva, &bytes[..size as usize])?;
        stack.rsp = (stack.rsp & !mask) | offset;
        Ok(())
    }

    /// Pops `size` bytes (2, 4 or 8) from `stack`.
    ///
    /// # Errors
    /// #SS(0) or #PF.
    pub fn pop_from(&mut self, stack: &mut Stack, size: u64) -> Result<u64> {
        let mask = stack.mask();
        let gva = self.stack_linear(stack, stack.rsp & mask, size)?;
        let mut bytes = [0; 8];
        if stack.side == SIDE_USER {
            self.check_aligned(Seg::Ss, gva, size, size)?;
        }
        self.read_linear(stack.side, Seg::Ss, gva, &mut bytes[..size as usize])?;
        stack.rsp = (stack.rsp & !mask) | (stack.rsp.wrapping_add(size) & mask);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Makes `stack` the current one as far as RSP goes.
    pub fn commit_stack(&mut self, stack: &Stack) {
        self.vcpu.regs.gpr[gpr::RSP] = stack.rsp;
    }

    /// `PUSH` of a value on the current stack.
    ///
    /// # Errors
    /// #SS(0), #PF or #AC(0).
    #[inline(always)]
    pub fn push<T: Word>(&mut self, value: T) -> Result<()> {
        let rsp = self.vcpu.regs.gpr[gpr::RSP];
        if self.vcpu.mode.stack_bits == 64 {
            let top = rsp.wrapping_sub(T::SIZE);
            self.write(Seg::Ss, top, value)?;
            self.vcpu.regs.gpr[gpr::RSP] = top;
            return Ok(());
        }
        let mask = stack_mask(self.vcpu.mode.stack_bits);
        let top = rsp.wrapping_sub(T::SIZE) & mask;
        self.write(Seg::Ss, top, value)?;
        self.vcpu.regs.gpr[gpr::RSP] = (rsp & !mask) | top;
        Ok(())
    }

    /// The value at the top of the current stack; [`Cpu::drop_stack`] removes it.
    ///
    /// # Errors
    /// #SS(0), #PF or #AC(0).
    #[inline(always)]
    pub fn top<T: Word>(&mut self) -> Result<T> {
        let mask = stack_mask(self.vcpu.mode.stack_bits);
        self.read(Seg::Ss, self.vcpu.regs.gpr[gpr::RSP] & mask)
    }

    /// Adds `size` bytes to the stack pointer.
    #[inline(always)]
    pub fn drop_stack(&mut self, size: u64) {
        let rsp = self.vcpu.regs.gpr[gpr::RSP];
        let mask = stack_mask(self.vcpu.mode.stack_bits);
        self.vcpu.regs.gpr[gpr::RSP] = (rsp & !mask) | (rsp.wrapping_add(size) & mask);
    }

    /// `POP` of a value.
    ///
    /// # Errors
    /// #SS(0), #PF or #AC(0).
    #[inline(always)]
    pub fn pop<T: Word>(&mut self) -> Result<T> {
        let value = self.top()?;
        self.drop_stack(T::SIZE);
        Ok(value)
    }

    /// Raises what a push of `size` bytes would raise, without pushing.
    ///
    /// # Errors
    /// What the push would raise.
    pub fn probe_push(&mut self, size: u64) -> Result<()> {
        let mask = stack_mask(self.vcpu.mode.stack_bits);
        let top = self.vcpu.regs.gpr[gpr::RSP].wrapping_sub(size) & mask;
        self.probe_write(Seg::Ss, top, size)
    }
}
