//! The vCPU's side of its local APIC: registers by MMIO and MSR, and what waits to be delivered.

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::lapic::{ApicMessage, GeneralProtection, LapicEffects, Signal};
use crate::msr::index;
use crate::state::Vcpu;

impl From<GeneralProtection> for Exception {
    fn from(_: GeneralProtection) -> Exception {
        Exception::GP0
    }
}

impl Vcpu {
    /// Takes a message from the I/O APIC, an MSI or another processor. True if it was for this
    /// one.
    pub fn receive_message(&mut self, message: &ApicMessage) -> bool {
        if !self.lapic.is_target(message) {
            return false;
        }
        let signal = self.lapic.deliver(message);
        self.take_signal(signal);
        true
    }

    /// Takes what the local APIC signals to the processor core.
    pub fn take_signal(&mut self, signal: Option<Signal>) {
        // The only processor is running already: INIT and start-up are for others.
        if let Some(Signal::Nmi) = signal {
            self.pending.nmi = true;
        }
        self.attention = true;
    }

    /// Whether something waits that would be delivered at this boundary or ends a HLT.
    pub fn has_deliverable(&self) -> bool {
        let nmi = self.pending.nmi && !self.pending.nmi_blocked;
        nmi || self.pending.debug != 0
            || (self.accepts_interrupts() && self.lapic.pending_vector().is_some())
    }
}

impl Cpu<'_> {
    fn apply(&mut self, effects: LapicEffects) {
        if let Some(vector) = effects.eoi {
            self.bus.end_of_interrupt(self.vcpu.branches, vector);
        }
        self.vcpu.take_signal(effects.signal);
        self.after_bus_access();
        self.vcpu.attention = true;
    }

    pub(crate) fn lapic_mmio_write(&mut self, offset: u32, value: u32) {
        let now = self.bus.now(self.vcpu.branches);
        let effects = self.vcpu.lapic.mmio_write(now, offset, value);
        self.apply(effects);
    }

    pub(crate) fn read_x2apic(&mut self, msr: u32) -> Result<u64> {
        let now = self.bus.now(self.vcpu.branches);
        Ok(self.vcpu.lapic.msr_read(now, msr - index::X2APIC_FIRST)?)
    }

    pub(crate) fn write_x2apic(&mut self, msr: u32, value: u64) -> Result<()> {
        let now = self.bus.now(self.vcpu.branches);
        let effects = self.vcpu.lapic.msr_write(now, msr - index::X2APIC_FIRST, value)?;
        self.apply(effects);
        Ok(())
    }

    pub(crate) fn write_apic_base(&mut self, value: u64) -> Result<()> {
        self.vcpu.lapic.set_base_msr(value)?;
        self.vcpu.tlb.flush();
        self.vcpu.attention = true;
        Ok(())
    }

    pub(crate) fn write_tsc_deadline(&mut self, value: u64) {
        let now = self.bus.now(self.vcpu.branches);
        self.vcpu.lapic.set_tsc_deadline(now, value, self.vcpu.msrs.tsc_offset);
        self.vcpu.attention = true;
    }

    /// The timer's deadline follows the TSC when the guest sets it.
    pub(crate) fn tsc_was_set(&mut self) {
        let now = self.bus.now(self.vcpu.branches);
        self.vcpu.lapic.tsc_changed(now, self.vcpu.msrs.tsc_offset);
        self.vcpu.attention = true;
    }

    /// Acknowledges the interrupt to be delivered now, if there is one: the local APIC's, or the
    /// PIC's through LINT0.
    /// Whether something would be delivered at this boundary if RFLAGS.IF were set and nothing held
    /// it back. While it is false, setting IF has no other effect.
    pub fn interrupt_waits(&self) -> bool {
        let pic = || self.bus.pic_interrupt() && self.vcpu.lapic.pic_accepted();
        let pending = &self.vcpu.pending;
        pending.nmi || pending.debug != 0 || self.vcpu.lapic.pending_vector().is_some() || pic()
    }

    pub(crate) fn acknowledge_interrupt(&mut self) -> Option<u8> {
        if let Some(vector) = self.vcpu.lapic.acknowledge() {
            return Some(vector);
        }
        if self.bus.pic_interrupt() && self.vcpu.lapic.pic_accepted() {
            return Some(self.bus.acknowledge_pic());
        }
        None
    }
}
