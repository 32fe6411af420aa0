//! Registers as the guest reaches them: a page of memory (xAPIC) or MSRs 0x800 to 0x8FF (x2APIC).

use types::VirtualTime;

use super::regs::{SVR_ENABLE, SVR_WRITABLE, VERSION, error, icr, lvt, offset};
use super::timer::Mode;
use super::{ApicMessage, DeliveryMode, GeneralProtection, Lapic, LapicEffects, Target};

impl Lapic {
    /// Reads the 32-bit register at `offset` from the base address. Reads that are not of a
    /// register return 0 and are noted as an error.
    pub fn mmio_read(&mut self, now: VirtualTime, offset: u32) -> u32 {
        match offset {
            offset::ID => self.id << 24,
            // Arbitration priority and remote read: not on this family, no error either.
            offset::APR | offset::RRD => 0,
            offset::LDR => self.ldr,
            offset::DFR => self.dfr,
            offset::ICR_HIGH => (self.icr >> icr::DESTINATION_SHIFT) as u32,
            _ => self.read(now, offset).unwrap_or_else(|| {
                self.note_error(error::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes the 32-bit register at `offset` from the base address.
    pub fn mmio_write(&mut self, now: VirtualTime, offset: u32, value: u32) -> LapicEffects {
        match offset {
            // Read-only; no error on this family.
            offset::ID | offset::VERSION | offset::CURRENT_COUNT => {}
            offset::LDR => self.ldr = value & 0xff00_0000,
            offset::DFR => self.dfr = value | 0x0fff_ffff,
            offset::ICR_HIGH => {
                let destination = u64::from(value & 0xff00_0000) << icr::DESTINATION_SHIFT;
                self.icr = self.icr & 0xffff_ffff | destination;
            }
            offset::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value) & icr::LOW_WRITABLE;
                return self.send();
            }
            _ => {
                return self.write(now, offset, value).unwrap_or_else(|| {
                    self.note_error(error::ILLEGAL_REGISTER);
                    LapicEffects::default()
                });
            }
        }
        LapicEffects::default()
    }

    /// Reads MSR 0x800 + `register`.
    ///
    /// # Errors
    /// Outside x2APIC mode, and for MSRs that are not there or write-only (SDM table 11-6).
    pub fn msr_read(&mut self, now: VirtualTime, register: u32) -> Result<u64, GeneralProtection> {
        if !self.x2apic() || register > 0xff {
            return Err(GeneralProtection);
        }
        match register << 4 {
            offset::ID => Ok(u64::from(self.id)),
            offset::LDR => Ok(u64::from(self.logical_id())),
            offset::ICR => Ok(self.icr),
            offset => self.read(now, offset).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes MSR 0x800 + `register`.
    ///
    /// # Errors
    /// Outside x2APIC mode, for MSRs that are not there or read-only, and for reserved bits.
    pub fn msr_write(
        &mut self,
        now: VirtualTime,
        register: u32,
        value: u64,
    ) -> Result<LapicEffects, GeneralProtection> {
        if !self.x2apic() || register > 0xff || value & reserved(register << 4) != 0 {
            return Err(GeneralProtection);
        }
        match register << 4 {
            offset::ICR => {
                self.icr = value & !icr::BUSY;
                Ok(self.send())
            }
            offset::SELF_IPI => {
                self.send_to_self(value as u8);
                Ok(LapicEffects::default())
            }
            offset => self.write(now, offset, value as u32).ok_or(GeneralProtection),
        }
    }

    /// SDM 11.12.11: a fixed, edge-triggered interrupt for the writer.
    fn send_to_self(&mut self, vector: u8) {
        if vector < 16 {
            self.note_error(error::SEND_ILLEGAL_VECTOR);
            return;
        }
        let target = Target::Physical(self.id);
        let mode = DeliveryMode::Fixed;
        self.deliver(&ApicMessage { target, mode, vector, level: false });
    }

    /// The registers that read the same in both modes.
    fn read(&self, now: VirtualTime, offset: u32) -> Option<u32> {
        let word = |bits: &super::Bits, first: u32| bits.0[((offset - first) >> 4) as usize & 7];
        if offset & 15 != 0 {
            return None;
        }
        Some(match offset {
            offset::VERSION => VERSION,
            offset::TPR => u32::from(self.tpr),
            offset::PPR => u32::from(self.ppr()),
            offset::SVR => self.svr,
            offset::ISR..=offset::ISR_LAST => word(&self.isr, offset::ISR),
            offset::TMR..=offset::TMR_LAST => word(&self.tmr, offset::TMR),
            offset::IRR..=offset::IRR_LAST => word(&self.irr, offset::IRR),
            offset::ESR => u32::from(self.esr),
            offset::ICR => self.icr as u32,
            offset::LVT..=offset::LVT_LAST => self.lvt[lvt_index(offset)],
            offset::INITIAL_COUNT => self.timer.initial(),
            offset::CURRENT_COUNT => self.timer.count(now, self.timer_mode()),
            offset::DIVIDE => u32::from(self.timer.divide()),
            _ => return None,
        })
    }

    /// The registers that write the same in both modes.
    fn write(&mut self, now: VirtualTime, offset: u32, value: u32) -> Option<LapicEffects> {
        if offset & 15 != 0 {
            return None;
        }
        match offset {
            offset::TPR => self.tpr = value as u8,
            offset::EOI => {
                let eoi = self.end_of_interrupt();
                return Some(LapicEffects { eoi, ..LapicEffects::default() });
            }
            offset::SVR => self.write_svr(value),
            offset::ESR => self.esr = std::mem::take(&mut self.esr_pending),
            offset::LVT..=offset::LVT_LAST => self.write_lvt(now, lvt_index(offset), value),
            offset::INITIAL_COUNT => self.write_initial_count(now, value),
            offset::DIVIDE => {
                self.timer_fired(now);
                self.timer.set_divide(now, self.timer_mode(), value as u8);
            }
            _ => return None,
        }
        Some(LapicEffects::default())
    }

    /// SDM 11.4.7.2: disabling masks all local interrupts.
    fn write_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & SVR_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= lvt::MASKED;
            }
        }
    }

    fn write_lvt(&mut self, now: VirtualTime, index: usize, value: u32) {
        let disabled = self.svr & SVR_ENABLE == 0;
        let forced = if disabled { lvt::MASKED } else { 0 };
        let value = value & lvt::WRITABLE[index] | forced;
        if index == lvt::TIMER {
            // What expired before the write did so under the old entry.
            self.timer_fired(now);
            let (old, new) = (self.timer_mode(), Mode::of(value));
            if old != new && (old == Mode::TscDeadline || new == Mode::TscDeadline) {
                self.timer.stop();
            }
        }
        self.lvt[index] = value;
    }

    fn write_initial_count(&mut self, now: VirtualTime, value: u32) {
        self.timer_fired(now);
        // Ignored in TSC-deadline mode (SDM 11.5.4.1).
        if self.timer_mode() != Mode::TscDeadline {
            self.timer.start(now, value);
        }
    }
}

fn lvt_index(offset: u32) -> usize {
    ((offset - offset::LVT) >> 4) as usize % 6
}

/// Bits that must be zero in a write of an x2APIC MSR (SDM 11.12.1.2).
fn reserved(register: u32) -> u64 {
    let allowed = match register {
        offset::ICR => return icr::X2APIC_RESERVED,
        offset::TPR | offset::SELF_IPI => 0xff,
        offset::SVR => SVR_WRITABLE,
        offset::LVT..=offset::LVT_LAST => lvt::WRITABLE[lvt_index(register)] | lvt::READ_ONLY,
        offset::INITIAL_COUNT => u32::MAX,
        offset::DIVIDE => 0x0b,
        // EOI and ESR take only zero; whatever else is not writable anyway.
        _ => 0,
    };
    !u64::from(allowed)
}
