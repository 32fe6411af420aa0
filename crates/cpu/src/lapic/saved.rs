//! What is saved of a local APIC.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved};

use super::Lapic;
use super::bits::Bits;
use super::regs::{SVR_WRITABLE, base, icr, lvt};
use super::timer::{Timer, TimerSaved};

/// Saved form of [`Lapic`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct LapicSaved {
    /// APIC ID.
    #[n(0)]
    pub id: u32,
    /// IA32_APIC_BASE.
    #[n(1)]
    pub base: u64,
    /// Task priority.
    #[n(2)]
    pub tpr: u8,
    /// Logical destination (xAPIC mode).
    #[n(3)]
    pub ldr: u32,
    /// Destination format.
    #[n(4)]
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    #[n(5)]
    pub svr: u32,
    /// Error status as read.
    #[n(6)]
    pub esr: u8,
    /// Errors since it was last written.
    #[n(7)]
    pub esr_pending: u8,
    /// Interrupt command.
    #[n(8)]
    pub icr: u64,
    /// Local vector table.
    #[n(9)]
    pub lvt: [u32; 6],
    /// Timer.
    #[n(10)]
    pub timer: TimerSaved,
    /// In service.
    #[n(11)]
    pub isr: [u32; 8],
    /// Trigger modes.
    #[n(12)]
    pub tmr: [u32; 8],
    /// Requested.
    #[n(13)]
    pub irr: [u32; 8],
    /// Levels of LINT0 and LINT1.
    #[n(14)]
    pub lint: [bool; 2],
}

impl Saved for LapicSaved {
    const NAME: &'static str = "lapic";
    const VERSION: u16 = 1;
}

impl Lapic {
    /// Its saved form.
    pub fn save(&self) -> LapicSaved {
        let &Lapic {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            ref timer,
            isr: Bits(isr),
            tmr: Bits(tmr),
            irr: Bits(irr),
            lint,
        } = self;
        let timer = timer.save();
        LapicSaved {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            timer,
            isr,
            tmr,
            irr,
            lint,
        }
    }

    /// Takes a saved form.
    ///
    /// # Errors
    /// [`RestoreError::Malformed`] if it is another processor's or in a mode that is none.
    pub fn restore(&mut self, saved: LapicSaved) -> Result<(), RestoreError> {
        let LapicSaved {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            timer,
            isr,
            tmr,
            irr,
            lint,
        } = saved;
        let malformed =
            |detail| RestoreError::Malformed { name: LapicSaved::NAME.to_owned(), detail };
        if id != self.id {
            return Err(malformed(format!("APIC ID {id}, expected {}", self.id)));
        }
        let known = base::ADDRESS | base::BOOTSTRAP | base::ENABLE | base::X2APIC;
        if base & !known != 0 || base & (base::ENABLE | base::X2APIC) == base::X2APIC {
            return Err(malformed(format!("IA32_APIC_BASE {base:#x}")));
        }
        *self = Lapic {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr: svr & SVR_WRITABLE,
            esr,
            esr_pending,
            icr: icr & (icr::LOW_WRITABLE | !0xffff_ffff),
            lvt: std::array::from_fn(|i| lvt[i] & (lvt::WRITABLE[i] | lvt::MASKED)),
            timer: Timer::restore(timer),
            isr: Bits(isr),
            tmr: Bits(tmr),
            irr: Bits(irr),
            lint,
        };
        Ok(())
    }
}
