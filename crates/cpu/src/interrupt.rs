//! Delivery through the IDT: exceptions, software and external interrupts, double faults, and the
//! way into handlers in real, protected, virtual-8086 and long mode (SDM vol. 3, ch. 6).

use crate::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::registers::{flag, gpr};
use crate::segment::{Descriptor, is_null, selector_code, system};
use crate::stack::Stack;
use crate::state::{Activity, Seg, Segment, Shadow, attr};

/// What is delivered; the gate's privilege check and the error code's EXT bit depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A fault or trap of the processor, INT1 included.
    Exception,
    /// INT n, INT3, INTO.
    Software,
    /// An external interrupt or NMI.
    External,
}

/// The gate that was found, resolved to what delivery needs.
struct Gate {
    descriptor: Descriptor,
    size: u64,
    clears_if: bool,
}

impl Cpu<'_> {
    /// Raises an exception at the current instruction: delivers it, or a double fault if that
    /// fails, or shuts down (SDM vol. 3, 6.15, interrupt 8).
    pub fn raise(&mut self, exception: Exception) {
        let mut current = exception;
        loop {
            self.note_exception(current);
            let delivered = self.deliver(current.vector, Cause::Exception, current.error_code);
            let Err(second) = delivered else { return };
            if current.vector == vector::DF {
                self.vcpu.activity = Activity::Shutdown;
                self.vcpu.attention = true;
                return;
            }
            current = if escalates(current.vector, second.vector) {
                Exception { vector: vector::DF, error_code: Some(0), payload: 0 }
            } else {
                second
            };
        }
    }

    /// CR2 and DR6 as the exception sets them.
    fn note_exception(&mut self, exception: Exception) {
        match exception.vector {
            vector::PF => self.vcpu.cr2 = exception.payload,
            vector::DB => {
                let sticky = self.vcpu.dr6 & !0xf;
                self.vcpu.dr6 = (sticky | exception.payload) & !(1 << 12) | 0xffff_0ff0;
                self.vcpu.dr7 &= !(1 << 13);
            }
            _ => {}
        }
    }

    /// Delivers a vector through the IDT. Counts as one branch when it succeeds.
    ///
    /// # Errors
    /// The exception that delivery itself raised; nothing has changed then but accessed bits.
    pub fn deliver(&mut self, vector: u8, cause: Cause, error_code: Option<u32>) -> Result<()> {
        let entered = self.enter(vector, cause, error_code);
        if cause == Cause::Software {
            entered?;
        } else {
            entered.map_err(Exception::external)?;
        }
        self.vcpu.branches += 1;
        self.vcpu.iterations = 0;
        self.vcpu.pending.shadow = Shadow::None;
        // A single-step trap of the instruction that led here is lost.
        self.vcpu.pending.debug &= !crate::state::DR6_BS;
        if vector == vector::NMI && cause == Cause::External {
            self.vcpu.pending.nmi_blocked = true;
        }
        if self.vcpu.activity == Activity::Halted {
            self.vcpu.activity = Activity::Running;
        }
        Ok(())
    }

    fn enter(&mut self, vector: u8, cause: Cause, error_code: Option<u32>) -> Result<()> {
        if !self.vcpu.mode.protected {
            return self.deliver_real(vector);
        }
        let gate = self.read_gate(vector, cause)?;
        if self.vcpu.mode.long {
            self.deliver_long(vector, &gate, cause, error_code)
        } else {
            self.deliver_protected(vector, &gate, cause, error_code)
        }
    }

    fn deliver_real(&mut self, vector: u8) -> Result<()> {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.vcpu.idtr.limit) {
            return Err(Exception::gp(u32::from(vector) * 8 + 2));
        }
        let target: u32 = self.read_system(self.vcpu.idtr.base.wrapping_add(entry))?;
        let mut stack = self.stack();
        let flags = self.vcpu.regs.rflags();
        self.push_on(&mut stack, flags, 2)?;
        self.push_on(&mut stack, u64::from(self.vcpu.seg(Seg::Cs).selector), 2)?;
        self.push_on(&mut stack, self.vcpu.regs.rip(), 2)?;
        self.commit_stack(&stack);
        let selector = (target >> 16) as u16;
        let cs = &mut self.vcpu.segments[Seg::Cs as usize];
        cs.selector = selector;
        cs.base = u64::from(selector) << 4;
        self.vcpu.regs.gpr[gpr::RIP] = u64::from(target & 0xffff);
        self.vcpu.set_rflags(flags & !(flag::IF | flag::TF | flag::AC | flag::RF));
        Ok(())
    }

    fn read_gate(&mut self, vector: u8, cause: Cause) -> Result<Gate> {
        let long = self.vcpu.mode.long;
        let size = if long { 16 } else { 8 };
        let offset = u32::from(vector) * size;
        let code = u32::from(vector) * 8 + 2;
        if offset + size - 1 > u32::from(self.vcpu.idtr.limit) {
            return Err(Exception::gp(code));
        }
        let at = self.vcpu.idtr.base.wrapping_add(u64::from(offset));
        let low = self.read_system(at)?;
        let high = if long { self.read_system(at.wrapping_add(8))? } else { 0 };
        let descriptor = Descriptor { low, high };
        let kind = descriptor.kind();
        let valid = match kind {
            system::INTERRUPT_GATE | system::TRAP_GATE => true,
            system::INTERRUPT_GATE16 | system::TRAP_GATE16 => !long,
            _ => false,
        };
        if descriptor.has(attr::S) || !valid {
            return Err(Exception::gp(code));
        }
        if cause == Cause::Software && descriptor.dpl() < self.vcpu.cpl {
            return Err(Exception::gp(code));
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(Exception::np(code));
        }
        let wide = kind >= system::INTERRUPT_GATE;
        Ok(Gate {
            descriptor,
            size: if long {
                8
            } else if wide {
                4
            } else {
                2
            },
            clears_if: kind & 1 == 0,
        })
    }

    /// The code segment a gate leads to, and the privilege level it runs at.
    fn gate_target(&mut self, gate: &Gate) -> Result<(u16, Descriptor, u8)> {
        let selector = gate.descriptor.gate_selector();
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let fault = Exception::gp(selector_code(selector));
        let code = self.read_descriptor(selector, fault)?;
        let wrong_size = self.vcpu.mode.long && (!code.has(attr::L) || code.has(attr::DB));
        if !code.is_code() || code.dpl() > self.vcpu.cpl || wrong_size {
            return Err(fault);
        }
        if !code.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        let cpl = if code.has(attr::DC) { self.vcpu.cpl } else { code.dpl() };
        Ok((selector, code, cpl))
    }

    fn deliver_long(
        &mut self,
        vector: u8,
        gate: &Gate,
        cause: Cause,
        error_code: Option<u32>,
    ) -> Result<()> {
        let (selector, code, cpl) = self.gate_target(gate)?;
        let ist = (gate.descriptor.low >> 32) & 7;
        let old = (*self.vcpu.seg(Seg::Ss), self.vcpu.regs.gpr[gpr::RSP]);
        let switches = ist != 0 || cpl != self.vcpu.cpl;
        let top = match () {
            () if ist != 0 => self.tss_stack_long(0x24 + (ist - 1) * 8)?,
            () if switches => self.tss_stack_long(4 + u64::from(cpl) * 8)?,
            () => old.1,
        };
        let changes_cpl = cpl != self.vcpu.cpl;
        let ss = if changes_cpl { Segment::null(u16::from(cpl)) } else { old.0 };
        let mut stack = if cpl == 3 { self.stack() } else { self.inner_stack(ss, top, true) };
        stack.rsp = top & !15;
        let flags = self.pushed_flags(vector, cause);
        let frame = [
            u64::from(old.0.selector),
            old.1,
            flags,
            u64::from(self.vcpu.seg(Seg::Cs).selector),
            self.vcpu.regs.rip(),
        ];
        for value in frame.into_iter().chain(error_code.map(u64::from)) {
            self.push_on(&mut stack, value, 8)?;
        }
        let code = self.mark_accessed(selector, code)?;
        self.enter_handler(gate, selector, code, cpl, &stack, ss);
        Ok(())
    }

    pub(crate) fn tss_stack_long(&mut self, offset: u64) -> Result<u64> {
        let tr = self.vcpu.tr;
        if offset + 7 > u64::from(tr.limit) {
            return Err(Exception::ts(selector_code(tr.selector)));
        }
        let rsp = self.read_system(tr.base.wrapping_add(offset))?;
        if types::Gva(rsp).is_canonical() { Ok(rsp) } else { Err(Exception::SS0) }
    }

    fn deliver_protected(
        &mut self,
        vector: u8,
        gate: &Gate,
        cause: Cause,
        error_code: Option<u32>,
    ) -> Result<()> {
        let (selector, code, cpl) = self.gate_target(gate)?;
        let v86 = self.vcpu.mode.v86;
        if v86 && (cpl != 0 || code.has(attr::DC)) {
            return Err(Exception::gp(selector_code(selector)));
        }
        let flags = self.pushed_flags(vector, cause);
        let old_ss = *self.vcpu.seg(Seg::Ss);
        let (mut stack, ss) = if cpl == self.vcpu.cpl {
            (self.stack(), old_ss)
        } else {
            self.tss_stack_protected(cpl)?
        };
        if v86 {
            for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                self.push_on(&mut stack, u64::from(self.vcpu.seg(seg).selector), gate.size)?;
            }
        }
        if cpl != self.vcpu.cpl {
            self.push_on(&mut stack, u64::from(old_ss.selector), gate.size)?;
            self.push_on(&mut stack, self.vcpu.regs.gpr[gpr::RSP], gate.size)?;
        }
        let frame = [flags, u64::from(self.vcpu.seg(Seg::Cs).selector), self.vcpu.regs.rip()];
        for value in frame.into_iter().chain(error_code.map(u64::from)) {
            self.push_on(&mut stack, value, gate.size)?;
        }
        let code = self.mark_accessed(selector, code)?;
        if v86 {
            for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                self.vcpu.segments[seg as usize] = Segment::null(0);
            }
        }
        self.enter_handler(gate, selector, code, cpl, &stack, ss);
        Ok(())
    }

    /// The stack of an inner privilege level from a 32- or 16-bit TSS.
    pub(crate) fn tss_stack_protected(&mut self, cpl: u8) -> Result<(Stack, Segment)> {
        let tr = self.vcpu.tr;
        let wide = tr.kind() & 8 != 0;
        let (offset, size) =
            if wide { (4 + u64::from(cpl) * 8, 6) } else { (2 + u64::from(cpl) * 4, 4) };
        if offset + size - 1 > u64::from(tr.limit) {
            return Err(Exception::ts(selector_code(tr.selector)));
        }
        let at = tr.base.wrapping_add(offset);
        let (rsp, selector): (u64, u16) = if wide {
            (u64::from(self.read_system::<u32>(at)?), self.read_system(at.wrapping_add(4))?)
        } else {
            (u64::from(self.read_system::<u16>(at)?), self.read_system(at.wrapping_add(2))?)
        };
        let ss = self.stack_segment(selector, cpl, Exception::ts)?;
        Ok((self.inner_stack(ss, rsp, false), ss))
    }

    /// RFLAGS as pushed: RF is set for faults, so that the instruction restarts past its own
    /// breakpoint (SDM vol. 3, 17.3.1.1).
    fn pushed_flags(&self, vector: u8, cause: Cause) -> u64 {
        let flags = self.vcpu.regs.rflags();
        let fault = cause == Cause::Exception && vector != vector::DB;
        if fault { flags | flag::RF } else { flags }
    }

    fn enter_handler(
        &mut self,
        gate: &Gate,
        selector: u16,
        code: Descriptor,
        cpl: u8,
        stack: &Stack,
        ss: Segment,
    ) {
        self.vcpu.segments[Seg::Ss as usize] = ss;
        self.vcpu.segments[Seg::Cs as usize] = code.segment((selector & !3) | u16::from(cpl));
        self.vcpu.cpl = cpl;
        self.commit_stack(stack);
        let mask = if gate.size == 8 { u64::MAX } else { 0xffff_ffff };
        let mask = if gate.size == 2 { 0xffff } else { mask };
        self.vcpu.regs.gpr[gpr::RIP] = gate.descriptor.gate_offset() & mask;
        let cleared = flag::TF | flag::NT | flag::RF | flag::VM;
        let interrupt = if gate.clears_if { flag::IF } else { 0 };
        let flags = self.vcpu.regs.rflags();
        self.vcpu.set_rflags(flags & !(cleared | interrupt));
    }

    /// Delivers what waits for this instruction boundary, if it may be delivered now: debug traps,
    /// NMI, then external interrupts. True if something was delivered.
    pub fn service_pending(&mut self) -> bool {
        if self.vcpu.activity == Activity::Shutdown {
            return false;
        }
        let shadow = self.vcpu.pending.shadow;
        if self.vcpu.pending.debug != 0 && shadow != Shadow::MovSs {
            let causes = std::mem::take(&mut self.vcpu.pending.debug);
            self.raise(Exception::db(causes));
            return true;
        }
        if self.vcpu.pending.nmi && !self.vcpu.pending.nmi_blocked && shadow == Shadow::None {
            self.vcpu.pending.nmi = false;
            self.deliver_external(vector::NMI);
            return true;
        }
        if !self.vcpu.accepts_interrupts() {
            return false;
        }
        match self.acknowledge_interrupt() {
            Some(vector) => {
                self.deliver_external(vector);
                true
            }
            None => false,
        }
    }

    fn deliver_external(&mut self, vector: u8) {
        if let Err(exception) = self.deliver(vector, Cause::External, None) {
            self.raise(exception);
        }
    }
}

/// Whether `second`, raised while `first` was delivered, makes a double fault (SDM table 6-5).
fn escalates(first: u8, second: u8) -> bool {
    let contributory = Exception::is_contributory;
    let page_fault = |v: u8| v == vector::PF;
    (contributory(first) && contributory(second))
        || (page_fault(first) && (page_fault(second) || contributory(second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escalation_follows_the_manuals_table() {
        use vector::*;
        for (first, second, expected) in [
            (GP, GP, true),
            (GP, PF, false),
            (PF, PF, true),
            (PF, GP, true),
            (DE, NP, true),
            (UD, GP, false),
            (UD, PF, false),
            (DB, TS, false),
        ] {
            assert_eq!(escalates(first, second), expected, "{first} then {second}");
        }
    }
}
