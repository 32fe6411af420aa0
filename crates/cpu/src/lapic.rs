//! The local APIC: interrupts of one processor, in xAPIC and x2APIC mode (SDM vol. 3, ch. 11).
//!
//! ```text
//!            EN=1                EXTD=1
//! disabled <-------> xAPIC  ---------------> x2APIC        base MSR, SDM 11.12.5; any other
//!     ^                                        |           change of the two bits is #GP
//!     +------------------ EN=0, EXTD=0 --------+
//! ```
//!
//! Invariants: nothing ticks, [`Lapic::timer_deadline`] says when to call [`Lapic::timer_fired`];
//! what concerns others comes out as [`LapicEffects`]; vectors below 16 are never requested.

mod access;
mod bits;
mod ipi;
mod message;
mod regs;
mod saved;
#[cfg(test)]
mod tests;
mod timer;

use types::{Gpa, VirtualTime};

use bits::Bits;
pub use message::{ApicMessage, DeliveryMode, Signal, Target};
use regs::{base, error, lvt};
pub use saved::LapicSaved;
pub use timer::BUS_HZ;
use timer::{Mode, Timer};

/// The access is a general-protection fault, #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a register write did beyond the local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LapicEffects {
    /// An interrupt for other processors too: whoever has them delivers it to those that
    /// [`Lapic::is_target`] says. The sender has had its own already.
    pub ipi: Option<ApicMessage>,
    /// A level-triggered interrupt ended: I/O APICs are to be told its vector.
    pub eoi: Option<u8>,
    /// What this vCPU must do itself.
    pub signal: Option<Signal>,
}

/// The local APIC of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    id: u32,
    /// IA32_APIC_BASE.
    base: u64,
    tpr: u8,
    /// Logical destination in xAPIC mode; in x2APIC mode it follows from the ID.
    ldr: u32,
    dfr: u32,
    svr: u32,
    /// Errors as the guest reads them, and those since it last wrote the register.
    esr: u8,
    esr_pending: u8,
    icr: u64,
    /// Timer, thermal, performance counters, LINT0, LINT1, error.
    lvt: [u32; 6],
    timer: Timer,
    isr: Bits,
    tmr: Bits,
    irr: Bits,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
}

impl Lapic {
    /// A local APIC after power-up; the one with ID 0 belongs to the bootstrap processor.
    pub fn new(id: u32) -> Lapic {
        let bootstrap = if id == 0 { base::BOOTSTRAP } else { 0 };
        Lapic {
            id,
            base: base::ADDRESS_RESET | base::ENABLE | bootstrap,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: regs::SVR_RESET,
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [lvt::MASKED; 6],
            timer: Timer::default(),
            isr: Bits::default(),
            tmr: Bits::default(),
            irr: Bits::default(),
            lint: [false; 2],
        }
    }

    /// Power-up reset.
    pub fn reset(&mut self) {
        *self = Lapic::new(self.id);
    }

    /// INIT: all but the ID and the base MSR as after power-up (SDM 11.4.7.3).
    pub fn init(&mut self) {
        *self = Lapic { base: self.base, lint: self.lint, ..Lapic::new(self.id) };
    }

    /// Leaves it as PC firmware does for an operating system: enabled, LINT0 takes the PIC's
    /// interrupts (virtual wire, SDM 11.1 and MP specification 3.6.2.2), LINT1 NMIs.
    pub fn set_up_virtual_wire(&mut self) {
        self.svr = regs::SVR_RESET | regs::SVR_ENABLE;
        self.lvt[lvt::LINT0] = lvt::MODE_EXTINT;
        self.lvt[lvt::LINT1] = lvt::MODE_NMI;
    }

    /// The APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    pub fn base_msr(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// For reserved bits and for changes of mode that SDM 11.12.5 does not allow.
    pub fn set_base_msr(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let mode = base::ENABLE | base::X2APIC;
        let (old, new) = (self.base & mode, value & mode);
        let reserved = value & !(base::ADDRESS | mode | base::BOOTSTRAP) != 0;
        let allowed = match (old, new) {
            _ if old == new => true,
            (_, 0) | (0, base::ENABLE) => true,
            (base::ENABLE, new) => new == mode,
            _ => false,
        };
        if reserved || !allowed {
            return Err(GeneralProtection);
        }
        if new == 0 && old != 0 {
            self.init();
        }
        if new == mode && old != mode {
            // SDM 11.12.5.1: the high half of ICR is cleared.
            self.icr &= 0xffff_ffff;
        }
        self.base = value;
        Ok(())
    }

    /// Whether the APIC is enabled at all (base MSR).
    pub fn enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    /// Whether registers are MSRs.
    pub fn x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & regs::SVR_ENABLE != 0
    }

    /// Whether `gpa` is in the page of the memory-mapped registers.
    pub fn claims(&self, gpa: Gpa) -> bool {
        self.enabled() && !self.x2apic() && (gpa.0 ^ self.base) & base::ADDRESS == 0
    }

    /// CR8: the priority class of the TPR.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8; only the low four bits count.
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = value << 4;
    }

    /// The processor priority (SDM 11.8.3.1).
    pub fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= serving { self.tpr } else { serving }
    }

    /// The vector the processor would be interrupted with now.
    ///
    /// Requests made before software disabled the APIC are still delivered (SDM 11.4.7.2).
    pub fn pending_vector(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.enabled() && vector & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// Takes the pending interrupt into service and returns its vector.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending_vector()?;
        self.irr.clear(vector);
        self.isr.set(vector);
        Some(vector)
    }

    /// Ends the interrupt in service with the highest vector; returns the vector if it was
    /// level-triggered.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.clear(vector);
        self.tmr.get(vector).then_some(vector)
    }

    /// Requests interrupt `vector`, unless software disabled the APIC.
    pub fn accept(&mut self, vector: u8, level: bool) {
        if !self.software_enabled() {
            return;
        }
        if vector < 16 {
            self.note_error(error::RECEIVED_ILLEGAL_VECTOR);
            return;
        }
        self.irr.set(vector);
        self.tmr.assign(vector, level);
    }

    /// Logs errors and interrupts if there is one not logged yet (SDM 11.5.3).
    fn note_error(&mut self, errors: u8) {
        let new = errors & !self.esr_pending;
        self.esr_pending |= errors;
        let entry = self.lvt[lvt::ERROR];
        let vector = entry as u8;
        if new == 0 || entry & lvt::MASKED != 0 {
            return;
        }
        if vector < 16 {
            self.esr_pending |= error::RECEIVED_ILLEGAL_VECTOR;
        } else {
            self.accept(vector, false);
        }
    }

    /// Whether the processor takes interrupts of the PIC: the APIC is disabled, or LINT0 is
    /// unmasked in ExtINT mode.
    pub fn pic_accepted(&self) -> bool {
        let entry = self.lvt[lvt::LINT0];
        !self.enabled() || entry & (lvt::MASKED | lvt::MODE) == lvt::MODE_EXTINT
    }

    /// Drives pin LINT0 (`pin` 0, the PIC's INTR output) or LINT1 (`pin` 1, NMI). With LINT0 in
    /// ExtINT mode nothing happens here; [`Lapic::pic_accepted`] is asked instead.
    pub fn drive_lint(&mut self, pin: u8, high: bool) -> Option<Signal> {
        let pin = usize::from(pin & 1);
        let rose = high && !self.lint[pin];
        self.lint[pin] = high;
        if !rose {
            return None;
        }
        if !self.enabled() {
            return (pin == 1).then_some(Signal::Nmi);
        }
        let entry = self.lvt[lvt::LINT0 + pin];
        match entry & (lvt::MASKED | lvt::MODE) {
            lvt::MODE_FIXED => {
                self.accept(entry as u8, false);
                None
            }
            lvt::MODE_NMI => Some(Signal::Nmi),
            lvt::MODE_INIT => Some(Signal::Init),
            _ => None,
        }
    }

    fn timer_mode(&self) -> Mode {
        Mode::of(self.lvt[lvt::TIMER])
    }

    fn timer_masked(&self) -> bool {
        self.lvt[lvt::TIMER] & lvt::MASKED != 0
    }

    /// When [`Lapic::timer_fired`] is to be called, if at all.
    pub fn timer_deadline(&self) -> Option<VirtualTime> {
        // A masked periodic timer would fire for nothing.
        let silent = self.timer_masked() && self.timer_mode() == Mode::Periodic;
        self.timer.expiry(self.timer_mode()).filter(|_| !silent)
    }

    /// The deadline may have passed: requests the timer's interrupt if so. Harmless before it.
    pub fn timer_fired(&mut self, now: VirtualTime) {
        let expired = self.timer.expire(now, self.timer_mode());
        if expired && !self.timer_masked() {
            self.accept(self.lvt[lvt::TIMER] as u8, false);
        }
    }

    /// IA32_TSC_DEADLINE: 0 when not armed.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE; ignored outside TSC-deadline mode (SDM 11.5.4.1). The guest's
    /// TSC is virtual nanoseconds plus `tsc_offset`.
    pub fn set_tsc_deadline(&mut self, now: VirtualTime, deadline: u64, tsc_offset: u64) {
        if self.timer_mode() == Mode::TscDeadline {
            self.timer.set_tsc_deadline(now, deadline, tsc_offset);
            self.timer_fired(now);
        }
    }

    /// The guest changed its TSC: an armed deadline moves.
    pub fn tsc_changed(&mut self, now: VirtualTime, tsc_offset: u64) {
        self.set_tsc_deadline(now, self.timer.tsc_deadline(), tsc_offset);
    }
}
