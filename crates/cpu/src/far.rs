//! Far transfers: JMP, CALL, RET and IRET across segments and privilege levels (SDM vol. 2).
//!
//! Hardware task switches are not part of the model: a transfer to a TSS or task gate raises #GP.

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::registers::{flag, gpr};
use crate::segment::{Descriptor, is_null, rpl, selector_code, system, v86_segment};
use crate::stack::Stack;
use crate::state::{Seg, Segment, attr, cr};

/// A far pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarPointer {
    /// Target selector.
    pub selector: u16,
    /// Target offset.
    pub offset: u64,
}

impl Cpu<'_> {
    /// Sets RIP after checking it against CS (legacy) or for canonicality (64-bit).
    ///
    /// # Errors
    /// #GP(0).
    #[inline]
    pub fn jump(&mut self, rip: u64) -> Result<()> {
        self.check_jump(rip)?;
        self.vcpu.regs.gpr[gpr::RIP] = rip;
        Ok(())
    }

    /// Checks a near target against CS (legacy) or for canonicality (64-bit).
    ///
    /// # Errors
    /// #GP(0).
    #[inline]
    pub fn check_jump(&self, rip: u64) -> Result<()> {
        if self.vcpu.mode.bits == 64 {
            if !types::Gva(rip).is_canonical() {
                return Err(Exception::GP0);
            }
        } else if rip > u64::from(self.vcpu.seg(Seg::Cs).limit) {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    fn is_segmented_like_8086(&self) -> bool {
        !self.vcpu.mode.protected || self.vcpu.mode.v86
    }

    fn load_real_cs(&mut self, target: FarPointer) -> Result<()> {
        if target.offset > u64::from(self.vcpu.seg(Seg::Cs).limit) {
            return Err(Exception::GP0);
        }
        let cs = &mut self.vcpu.segments[Seg::Cs as usize];
        cs.selector = target.selector;
        cs.base = u64::from(target.selector) << 4;
        self.vcpu.regs.gpr[gpr::RIP] = target.offset;
        self.vcpu.rederive();
        Ok(())
    }

    /// Commits a code segment at privilege `cpl` and an offset already checked.
    fn load_cs(&mut self, selector: u16, code: Descriptor, cpl: u8, rip: u64) {
        let segment = code.segment((selector & !3) | u16::from(cpl));
        self.vcpu.segments[Seg::Cs as usize] = segment;
        self.vcpu.cpl = cpl;
        self.vcpu.regs.gpr[gpr::RIP] = rip;
        self.vcpu.rederive();
    }

    /// The offset fits the code segment it would run in.
    fn check_target(&self, code: Descriptor, rip: u64) -> Result<()> {
        let to_64 = self.vcpu.mode.long && code.has(attr::L);
        let fits =
            if to_64 { types::Gva(rip).is_canonical() } else { rip <= u64::from(code.limit()) };
        if fits { Ok(()) } else { Err(Exception::GP0) }
    }

    /// A code descriptor reached directly by far JMP or CALL: no change of privilege.
    fn check_direct_code(&self, selector: u16, code: Descriptor) -> Result<()> {
        let fault = Exception::gp(selector_code(selector));
        let cpl = self.vcpu.cpl;
        let allowed = if code.has(attr::DC) {
            code.dpl() <= cpl
        } else {
            rpl(selector) <= cpl && code.dpl() == cpl
        };
        if !allowed || (self.vcpu.mode.long && code.has(attr::L | attr::DB)) {
            return Err(fault);
        }
        if !code.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        Ok(())
    }

    /// `JMP FAR`.
    ///
    /// # Errors
    /// As SDM vol. 2 "JMP" has it.
    pub fn far_jump(&mut self, target: FarPointer) -> Result<()> {
        if self.is_segmented_like_8086() {
            return self.load_real_cs(target);
        }
        let descriptor = self.far_target(target.selector)?;
        if !descriptor.is_code() {
            let (selector, code, offset, _) = self.call_gate(target.selector, descriptor)?;
            if !code.has(attr::DC) && code.dpl() != self.vcpu.cpl {
                return Err(Exception::gp(selector_code(selector)));
            }
            self.check_target(code, offset)?;
            let code = self.mark_accessed(selector, code)?;
            self.load_cs(selector, code, self.vcpu.cpl, offset);
            return Ok(());
        }
        self.check_direct_code(target.selector, descriptor)?;
        self.check_target(descriptor, target.offset)?;
        let code = self.mark_accessed(target.selector, descriptor)?;
        self.load_cs(target.selector, code, self.vcpu.cpl, target.offset);
        Ok(())
    }

    fn far_target(&mut self, selector: u16) -> Result<Descriptor> {
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let fault = Exception::gp(selector_code(selector));
        let descriptor = self.read_descriptor(selector, fault)?;
        if descriptor.has(attr::S) && !descriptor.is_code() {
            return Err(fault);
        }
        Ok(descriptor)
    }

    /// Resolves a call gate to its code segment, offset and operand size in bytes.
    fn call_gate(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
    ) -> Result<(u16, Descriptor, u64, u64)> {
        let fault = Exception::gp(selector_code(selector));
        let long = self.vcpu.mode.long;
        let wide = descriptor.kind() == system::CALL_GATE;
        if !wide && (long || descriptor.kind() != system::CALL_GATE16) {
            return Err(fault);
        }
        if descriptor.dpl() < self.vcpu.cpl || descriptor.dpl() < rpl(selector) {
            return Err(fault);
        }
        let gate = self.read_system_descriptor(selector, fault)?;
        if !gate.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        let target = gate.gate_selector();
        if is_null(target) {
            return Err(Exception::GP0);
        }
        let fault = Exception::gp(selector_code(target));
        let code = self.read_descriptor(target, fault)?;
        let wrong_size = long && (!code.has(attr::L) || code.has(attr::DB));
        if !code.is_code() || code.dpl() > self.vcpu.cpl || wrong_size {
            return Err(fault);
        }
        if !code.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(target)));
        }
        let mask = if wide { u64::MAX } else { 0xffff };
        let size = if long {
            8
        } else if wide {
            4
        } else {
            2
        };
        Ok((target, code, gate.gate_offset() & mask, size))
    }

    /// `CALL FAR` with operand size `size` bytes; `return_to` is the next instruction's offset.
    ///
    /// # Errors
    /// As SDM vol. 2 "CALL" has it.
    pub fn far_call(&mut self, target: FarPointer, size: u64, return_to: u64) -> Result<()> {
        let cs = u64::from(self.vcpu.seg(Seg::Cs).selector);
        let mut stack = self.stack();
        if self.is_segmented_like_8086() {
            self.push_on(&mut stack, cs, size)?;
            self.push_on(&mut stack, return_to, size)?;
            self.load_real_cs(target)?;
            self.commit_stack(&stack);
            return Ok(());
        }
        let descriptor = self.far_target(target.selector)?;
        if !descriptor.is_code() {
            return self.call_through_gate(target.selector, descriptor, return_to);
        }
        self.check_direct_code(target.selector, descriptor)?;
        self.check_target(descriptor, target.offset)?;
        self.push_on(&mut stack, cs, size)?;
        self.push_on(&mut stack, return_to, size)?;
        let code = self.mark_accessed(target.selector, descriptor)?;
        self.load_cs(target.selector, code, self.vcpu.cpl, target.offset);
        self.commit_stack(&stack);
        Ok(())
    }

    fn call_through_gate(
        &mut self,
        gate_selector: u16,
        gate: Descriptor,
        return_to: u64,
    ) -> Result<()> {
        let (selector, code, offset, size) = self.call_gate(gate_selector, gate)?;
        let cs = u64::from(self.vcpu.seg(Seg::Cs).selector);
        let cpl = if code.has(attr::DC) { self.vcpu.cpl } else { code.dpl() };
        let old_ss = *self.vcpu.seg(Seg::Ss);
        let old_rsp = self.vcpu.regs.gpr[gpr::RSP];
        let (mut stack, ss) = self.stack_of_level(cpl)?;
        if cpl != self.vcpu.cpl {
            self.push_on(&mut stack, u64::from(old_ss.selector), size)?;
            self.push_on(&mut stack, old_rsp, size)?;
            let count = if size == 8 { 0 } else { (gate.low >> 32) & 31 };
            let mut source = self.stack();
            let mut parameters = Vec::with_capacity(count as usize);
            for _ in 0..count {
                parameters.push(self.pop_from(&mut source, size)?);
            }
            for parameter in parameters.into_iter().rev() {
                self.push_on(&mut stack, parameter, size)?;
            }
        }
        self.push_on(&mut stack, cs, size)?;
        self.push_on(&mut stack, return_to, size)?;
        self.check_target(code, offset)?;
        let code = self.mark_accessed(selector, code)?;
        self.vcpu.segments[Seg::Ss as usize] = ss;
        self.load_cs(selector, code, cpl, offset);
        self.commit_stack(&stack);
        Ok(())
    }

    fn stack_of_level(&mut self, cpl: u8) -> Result<(Stack, Segment)> {
        if cpl == self.vcpu.cpl {
            return Ok((self.stack(), *self.vcpu.seg(Seg::Ss)));
        }
        if !self.vcpu.mode.long {
            return self.tss_stack_protected(cpl);
        }
        let rsp = self.tss_stack_long(4 + u64::from(cpl) * 8)?;
        let ss = Segment::null(u16::from(cpl));
        Ok((self.inner_stack(ss, rsp, true), ss))
    }

    /// `RET FAR` with operand size `size` bytes, dropping `extra` bytes of parameters.
    ///
    /// # Errors
    /// As SDM vol. 2 "RET" has it.
    pub fn far_return(&mut self, size: u64, extra: u64) -> Result<()> {
        let mut stack = self.stack();
        let rip = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        if self.is_segmented_like_8086() {
            self.load_real_cs(FarPointer { selector, offset: rip })?;
            self.commit_stack(&stack);
            self.drop_stack(extra);
            return Ok(());
        }
        let code = self.return_code_segment(selector)?;
        self.check_target(code, rip)?;
        let cpl = rpl(selector);
        if cpl == self.vcpu.cpl {
            let code = self.mark_accessed(selector, code)?;
            self.load_cs(selector, code, cpl, rip);
            self.commit_stack(&stack);
            self.drop_stack(extra);
            return Ok(());
        }
        self.skip(&mut stack, extra);
        let rsp = self.pop_from(&mut stack, size)?;
        let ss = self.pop_from(&mut stack, size)? as u16;
        self.return_to_outer(selector, code, rip, ss, rsp)?;
        self.drop_stack(extra);
        Ok(())
    }

    fn skip(&self, stack: &mut Stack, bytes: u64) {
        stack.rsp = stack.rsp.wrapping_add(bytes);
    }

    /// Checks a code segment that RET or IRET returns to.
    fn return_code_segment(&mut self, selector: u16) -> Result<Descriptor> {
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let fault = Exception::gp(selector_code(selector));
        let code = self.read_descriptor(selector, fault)?;
        let cpl = rpl(selector);
        let dpl_ok = if code.has(attr::DC) { code.dpl() <= cpl } else { code.dpl() == cpl };
        let wrong_size = self.vcpu.mode.long && code.has(attr::L | attr::DB);
        if !code.is_code() || cpl < self.vcpu.cpl || !dpl_ok || wrong_size {
            return Err(fault);
        }
        if !code.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        Ok(code)
    }

    /// Loads SS:RSP and CS:RIP of an outer (or, for IRET in 64-bit mode, the same) level.
    fn return_to_outer(
        &mut self,
        selector: u16,
        code: Descriptor,
        rip: u64,
        ss_selector: u16,
        rsp: u64,
    ) -> Result<()> {
        let cpl = rpl(selector);
        let to_64 = self.vcpu.mode.long && code.has(attr::L);
        let ss = if is_null(ss_selector) && to_64 && cpl < 3 && rpl(ss_selector) == cpl {
            Segment::null(ss_selector)
        } else {
            self.stack_segment(ss_selector, cpl, Exception::gp)?
        };
        let code = self.mark_accessed(selector, code)?;
        let outward = cpl != self.vcpu.cpl;
        self.vcpu.segments[Seg::Ss as usize] = ss;
        self.load_cs(selector, code, cpl, rip);
        let mask = crate::stack::stack_mask(self.vcpu.mode.stack_bits);
        let old = self.vcpu.regs.gpr[gpr::RSP];
        self.vcpu.regs.gpr[gpr::RSP] = (old & !mask) | (rsp & mask);
        if outward {
            self.drop_privileged_segments();
        }
        Ok(())
    }

    /// `IRET` with operand size `size` bytes.
    ///
    /// # Errors
    /// As SDM vol. 2 "IRET" has it.
    pub fn interrupt_return(&mut self, size: u64) -> Result<()> {
        if self.vcpu.mode.v86 && self.vcpu.iopl() < 3 {
            return Err(Exception::GP0);
        }
        if self.vcpu.mode.protected
            && !self.vcpu.mode.v86
            && self.vcpu.regs.rflags_other & flag::NT != 0
        {
            // A return to the previous task: #GP in long mode, and task switches are not modelled.
            return Err(Exception::GP0);
        }
        let mut stack = self.stack();
        let rip = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        let flags = self.pop_from(&mut stack, size)?;
        if self.is_segmented_like_8086() {
            self.load_real_cs(FarPointer { selector, offset: rip })?;
            self.commit_stack(&stack);
            self.load_iret_flags(flags, size, 0);
        } else if flags & flag::VM != 0 && self.vcpu.cpl == 0 && !self.vcpu.mode.long {
            self.return_to_v86(&mut stack, selector, rip, flags)?;
        } else {
            self.return_protected(&mut stack, selector, rip, flags, size)?;
        }
        self.vcpu.pending.nmi_blocked = false;
        self.vcpu.attention |= self.interrupt_waits();
        Ok(())
    }

    fn return_protected(
        &mut self,
        stack: &mut Stack,
        selector: u16,
        rip: u64,
        flags: u64,
        size: u64,
    ) -> Result<()> {
        let code = self.return_code_segment(selector)?;
        self.check_target(code, rip)?;
        let old_cpl = self.vcpu.cpl;
        if rpl(selector) != old_cpl || self.vcpu.mode.bits == 64 {
            let rsp = self.pop_from(stack, size)?;
            let ss = self.pop_from(stack, size)? as u16;
            self.return_to_outer(selector, code, rip, ss, rsp)?;
        } else {
            let code = self.mark_accessed(selector, code)?;
            self.load_cs(selector, code, old_cpl, rip);
            self.commit_stack(stack);
        }
        self.load_iret_flags(flags, size, old_cpl);
        Ok(())
    }

    /// RFLAGS as IRET loads them from privilege level `cpl`.
    fn load_iret_flags(&mut self, flags: u64, size: u64, cpl: u8) {
        let mut changeable =
            flag::STATUS | flag::TF | flag::DF | flag::NT | flag::RF | flag::AC | flag::ID;
        if size == 2 {
            changeable &= 0xffff;
        }
        if cpl == 0 && !self.vcpu.mode.v86 {
            changeable |= flag::IOPL | if size == 2 { 0 } else { flag::VIF | flag::VIP };
        }
        if cpl <= self.vcpu.iopl() {
            changeable |= flag::IF;
        }
        let kept = self.vcpu.regs.rflags() & !changeable;
        self.vcpu.set_rflags(kept | (flags & changeable));
    }

    fn return_to_v86(
        &mut self,
        stack: &mut Stack,
        selector: u16,
        rip: u64,
        flags: u64,
    ) -> Result<()> {
        let rsp = self.pop_from(stack, 4)?;
        let mut selectors = [0; 5];
        for slot in &mut selectors {
            *slot = self.pop_from(stack, 4)? as u16;
        }
        let order = [Seg::Ss, Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs];
        for (seg, selector) in order.into_iter().zip(selectors) {
            self.vcpu.segments[seg as usize] = v86_segment(selector);
        }
        self.vcpu.segments[Seg::Cs as usize] = v86_segment(selector);
        self.vcpu.cpl = 3;
        self.vcpu.regs.gpr[gpr::RIP] = rip & 0xffff;
        self.vcpu.regs.gpr[gpr::RSP] = rsp;
        self.vcpu.set_rflags(flags);
        Ok(())
    }

    /// `SYSCALL`; `return_to` is the next instruction.
    ///
    /// # Errors
    /// #UD when disabled or outside 64-bit mode (as on Intel processors).
    pub fn syscall(&mut self, return_to: u64) -> Result<()> {
        if self.vcpu.msrs.efer & cr::EFER_SCE == 0 || self.vcpu.mode.bits != 64 {
            return Err(Exception::UD);
        }
        let flags = self.vcpu.regs.rflags();
        self.vcpu.regs.gpr[gpr::RCX] = return_to;
        self.vcpu.regs.gpr[gpr::R11] = flags & !flag::RF;
        self.vcpu.regs.gpr[gpr::RIP] = self.vcpu.msrs.lstar;
        self.set_segments(syscall_segments(self.vcpu.msrs.star), 0);
        let masked = flags & !(self.vcpu.msrs.sfmask | flag::RF);
        self.vcpu.set_rflags(masked);
        if masked & flag::TF == 0 {
            self.vcpu.pending.debug &= !crate::state::DR6_BS;
        }
        Ok(())
    }

    /// `SYSRET` to 64-bit or compatibility mode.
    ///
    /// # Errors
    /// #UD when disabled, #GP(0) outside CPL 0 or to a non-canonical address.
    pub fn sysret(&mut self, to_64: bool) -> Result<()> {
        if self.vcpu.msrs.efer & cr::EFER_SCE == 0 || self.vcpu.mode.bits != 64 {
            return Err(Exception::UD);
        }
        let target = self.vcpu.regs.gpr[gpr::RCX];
        if self.vcpu.cpl != 0 || (to_64 && !types::Gva(target).is_canonical()) {
            return Err(Exception::GP0);
        }
        self.vcpu.regs.gpr[gpr::RIP] = if to_64 { target } else { target & 0xffff_ffff };
        let flags = self.vcpu.regs.gpr[gpr::R11];
        self.vcpu.regs.set_rflags(flags & !(flag::RF | flag::VM));
        self.set_segments(sysret_segments(self.vcpu.msrs.star, to_64), 3);
        if flags & flag::TF != 0 {
            // Unlike IRET and POPF, SYSRET that sets TF traps before the next instruction.
            self.vcpu.pending.debug |= crate::state::DR6_BS;
        }
        self.vcpu.attention |= self.interrupt_waits();
        Ok(())
    }

    /// `SYSENTER`.
    ///
    /// # Errors
    /// #GP(0) when IA32_SYSENTER_CS is null or outside protected mode.
    pub fn sysenter(&mut self) -> Result<()> {
        let selector = self.vcpu.msrs.sysenter_cs as u16;
        if !self.vcpu.mode.protected || is_null(selector) {
            return Err(Exception::GP0);
        }
        let long = self.vcpu.mode.long;
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        self.vcpu.regs.gpr[gpr::RSP] = self.vcpu.msrs.sysenter_esp & mask;
        self.vcpu.regs.gpr[gpr::RIP] = self.vcpu.msrs.sysenter_eip & mask;
        let flags = self.vcpu.regs.rflags() & !(flag::VM | flag::IF | flag::RF);
        self.vcpu.regs.set_rflags(flags);
        self.set_flat_segments(selector & 0xfffc, (selector & 0xfffc) + 8, 0, long);
        Ok(())
    }

    /// `SYSEXIT` to 64-bit or 32-bit code.
    ///
    /// # Errors
    /// #GP(0) as SDM vol. 2 has it.
    pub fn sysexit(&mut self, to_64: bool) -> Result<()> {
        let base = self.vcpu.msrs.sysenter_cs as u16;
        if !self.vcpu.mode.protected || self.vcpu.cpl != 0 || is_null(base) {
            return Err(Exception::GP0);
        }
        let (rip, rsp) = (self.vcpu.regs.gpr[gpr::RDX], self.vcpu.regs.gpr[gpr::RCX]);
        let canonical = types::Gva(rip).is_canonical() && types::Gva(rsp).is_canonical();
        if to_64 && !canonical {
            return Err(Exception::GP0);
        }
        let mask = if to_64 { u64::MAX } else { 0xffff_ffff };
        self.vcpu.regs.gpr[gpr::RSP] = rsp & mask;
        self.vcpu.regs.gpr[gpr::RIP] = rip & mask;
        let cs = base.wrapping_add(if to_64 { 32 } else { 16 });
        self.set_flat_segments(cs | 3, cs.wrapping_add(8) | 3, 3, to_64);
        self.vcpu.attention |= self.interrupt_waits();
        Ok(())
    }

    /// The fixed flat segments of the fast system calls.
    fn set_flat_segments(&mut self, cs: u16, ss: u16, cpl: u8, code64: bool) {
        self.set_segments(flat_segments(cs, ss, cpl, code64), cpl);
    }

    /// CS and SS.
    fn set_segments(&mut self, [cs, ss]: [Segment; 2], cpl: u8) {
        self.vcpu.segments[Seg::Cs as usize] = cs;
        self.vcpu.segments[Seg::Ss as usize] = ss;
        self.vcpu.cpl = cpl;
        self.vcpu.rederive();
    }
}

/// CS and SS with all of memory in them.
fn flat_segments(cs: u16, ss: u16, cpl: u8, code64: bool) -> [Segment; 2] {
    let common = attr::PRESENT
        | attr::S
        | attr::G
        | attr::RW
        | attr::ACCESSED
        | (u32::from(cpl) << attr::DPL_SHIFT);
    let size = if code64 { attr::L } else { attr::DB };
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    [flat(cs, common | attr::CODE | size), flat(ss, common | attr::DB)]
}

/// CS and SS after SYSCALL with this IA32_STAR (SDM vol. 2, "SYSCALL").
pub fn syscall_segments(star: u64) -> [Segment; 2] {
    let selector = (star >> 32) as u16;
    flat_segments(selector & 0xfffc, selector.wrapping_add(8), 0, true)
}

/// CS and SS after SYSRET to 64-bit or compatibility mode (SDM vol. 2, "SYSRET").
pub fn sysret_segments(star: u64, to_64: bool) -> [Segment; 2] {
    let base = (star >> 48) as u16;
    let cs = if to_64 { base.wrapping_add(16) } else { base };
    flat_segments(cs | 3, base.wrapping_add(8) | 3, 3, to_64)
}
