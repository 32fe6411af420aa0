//! The I/O APIC: 24 pins, each turned into an interrupt message by its redirection entry (Intel
//! 82093AA data sheet; version 0x20 with the EOI register as in the ICH data sheets).
//!
//! Messages come out in the form of message-signalled interrupts (SDM vol. 3, 11.11), so that the
//! machine has one way to deliver either.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use crate::{Effect, Effects};

/// Number of pins.
pub const PINS: usize = 24;

/// Version 0x20, and the index of the last redirection entry in bits 23:16.
const VERSION: u32 = 0x20 | ((PINS as u32 - 1) << 16);

const MODE_LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What software may write: vector, delivery mode, destination mode, polarity, trigger mode,
/// mask, destination.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// The I/O APIC. Pins are global system interrupts 0 to 23.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ioapic {
    select: u8,
    id: u8,
    /// Levels of the pins.
    lines: u32,
    entries: [u64; PINS],
}

impl Default for Ioapic {
    fn default() -> Ioapic {
        Ioapic { select: 0, id: 0, lines: 0, entries: [MASKED; PINS] }
    }
}

impl Ioapic {
    /// Back to power-up state, all pins low.
    pub fn reset(&mut self) {
        *self = Ioapic::default();
    }

    /// Drives pin `gsi`; pins past the last are ignored.
    pub fn set_line(&mut self, effects: &mut Effects, gsi: u8, high: bool) {
        let pin = usize::from(gsi);
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let rose = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if self.entries[pin] & LEVEL != 0 {
            self.deliver_level(effects, pin);
        } else if rose && self.entries[pin] & MASKED == 0 {
            // An edge at a masked pin is lost (82093AA, 3.2.4, interrupt mask).
            effects.push(message(self.entries[pin]));
        }
    }

    /// A processor ended level-triggered interrupt `vector`: pins that sent it may send again.
    pub fn eoi(&mut self, effects: &mut Effects, vector: u8) {
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if entry as u8 == vector && entry & LEVEL != 0 && entry & REMOTE_IRR != 0 {
                self.entries[pin] &= !REMOTE_IRR;
                self.deliver_level(effects, pin);
            }
        }
    }

    /// Reads the register at `offset` from the base address. Registers are 32 bits wide.
    pub fn mmio_read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.read_register(),
            _ => 0,
        }
    }

    /// Writes the register at `offset` from the base address.
    pub fn mmio_write(&mut self, effects: &mut Effects, offset: u64, value: u32) {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => self.write_register(effects, value),
            EOI => self.eoi(effects, value as u8),
            _ => {}
        }
    }

    /// The pin and the half of its entry (0 low, 1 high) that `select` names.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let index = usize::from(self.select).checked_sub(0x10)?;
        (index / 2 < PINS).then_some((index / 2, index as u32 % 2))
    }

    fn read_register(&self) -> u32 {
        match (self.select, self.selected_entry()) {
            (0 | 2, _) => u32::from(self.id) << 24,
            (1, _) => VERSION,
            (_, Some((pin, half))) => (self.entries[pin] >> (32 * half)) as u32,
            _ => 0,
        }
    }

    fn write_register(&mut self, effects: &mut Effects, value: u32) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0x0f;
        }
        let Some((pin, half)) = self.selected_entry() else { return };
        let written = ENTRY_WRITABLE & (0xffff_ffff << (32 * half));
        let entry = &mut self.entries[pin];
        *entry = (*entry & !written) | ((u64::from(value) << (32 * half)) & written);
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.deliver_level(effects, pin);
    }

    /// Sends the message of a level-triggered pin that is high, unmasked and not yet serviced.
    fn deliver_level(&mut self, effects: &mut Effects, pin: usize) {
        let entry = self.entries[pin];
        let high = self.lines & (1 << pin) != 0;
        if entry & LEVEL == 0 || entry & (MASKED | REMOTE_IRR) != 0 || !high {
            return;
        }
        // Fixed and lowest priority wait for an EOI; the other modes are edges (82093AA, 3.2.4).
        if (entry >> 8) & 7 <= 1 {
            self.entries[pin] |= REMOTE_IRR;
        }
        effects.push(message(entry));
    }

    /// Adds the section of instance `instance`.
    pub fn save(&self, instance: u32, sections: &mut Sections) {
        let &Ioapic { select, id, lines, entries } = self;
        sections.save(instance, &IoapicSaved { select, id, lines, entries });
    }

    /// Takes the section of instance `instance`.
    ///
    /// # Errors
    /// [`RestoreError`] when the section is missing or malformed.
    pub fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let IoapicSaved { select, id, lines, entries } = sections.restore(instance)?;
        *self = Ioapic { select, id, lines, entries };
        Ok(())
    }
}

/// The message-signalled interrupt that says what a redirection entry says.
fn message(entry: u64) -> Effect {
    let destination = entry >> 56;
    let logical = u64::from(entry & MODE_LOGICAL != 0);
    let level = if entry & LEVEL != 0 { 0xc000 } else { 0 };
    Effect::Msi {
        address: 0xfee0_0000 | (destination << 12) | (logical << 2),
        data: (entry as u32 & 0x7ff) | level,
    }
}

/// Saved form of [`Ioapic`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct IoapicSaved {
    /// IOREGSEL.
    #[n(0)]
    pub select: u8,
    /// APIC ID.
    #[n(1)]
    pub id: u8,
    /// Levels of the pins.
    #[n(2)]
    pub lines: u32,
    /// Redirection entries.
    #[n(3)]
    pub entries: [u64; PINS],
}

impl Saved for IoapicSaved {
    const NAME: &'static str = "ioapic";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::super::testing::Noise;
    use super::*;

    fn program(ioapic: &mut Ioapic, effects: &mut Effects, pin: u8, entry: u64) {
        for half in [1u8, 0] {
            ioapic.mmio_write(effects, SELECT, u32::from(0x10 + 2 * pin + half));
            ioapic.mmio_write(effects, WINDOW, (entry >> (32 * half)) as u32);
        }
    }

    fn sent(effects: &mut Effects) -> Vec<Effect> {
        effects.drain().collect()
    }

    #[test]
    fn edge_is_sent_once_per_rise() {
        let (mut ioapic, mut effects) = (Ioapic::default(), Effects::default());
        program(&mut ioapic, &mut effects, 4, 0x0300_0000_0000_0934);
        ioapic.set_line(&mut effects, 4, true);
        ioapic.set_line(&mut effects, 4, true);
        let expected = Effect::Msi { address: 0xfee0_3004, data: 0x134 };
        assert_eq!(sent(&mut effects), std::slice::from_ref(&expected));
        ioapic.set_line(&mut effects, 4, false);
        ioapic.set_line(&mut effects, 4, true);
        assert_eq!(sent(&mut effects), [expected]);
    }

    #[test]
    fn masked_edge_is_lost_and_masked_level_waits() {
        for (trigger, count) in [(0, 0), (LEVEL, 1)] {
            let (mut ioapic, mut effects) = (Ioapic::default(), Effects::default());
            program(&mut ioapic, &mut effects, 9, MASKED | trigger | 0x39);
            ioapic.set_line(&mut effects, 9, true);
            assert_eq!(sent(&mut effects), []);
            program(&mut ioapic, &mut effects, 9, trigger | 0x39);
            assert_eq!(sent(&mut effects).len(), count, "{trigger:#x}");
        }
    }

    #[test]
    fn level_is_sent_again_after_eoi_while_high() {
        let (mut ioapic, mut effects) = (Ioapic::default(), Effects::default());
        program(&mut ioapic, &mut effects, 9, LEVEL | 0x39);
        ioapic.set_line(&mut effects, 9, true);
        assert_eq!(sent(&mut effects), [Effect::Msi { address: 0xfee0_0000, data: 0xc039 }]);
        ioapic.mmio_write(&mut effects, SELECT, 0x10 + 18);
        assert_eq!(u64::from(ioapic.mmio_read(WINDOW)) & REMOTE_IRR, REMOTE_IRR);
        ioapic.eoi(&mut effects, 0x38);
        assert_eq!(sent(&mut effects), []);
        ioapic.mmio_write(&mut effects, EOI, 0x39);
        assert_eq!(sent(&mut effects).len(), 1);
        ioapic.set_line(&mut effects, 9, false);
        ioapic.eoi(&mut effects, 0x39);
        assert_eq!(sent(&mut effects), []);
        assert_eq!(u64::from(ioapic.mmio_read(WINDOW)) & REMOTE_IRR, 0);
    }

    #[test]
    fn registers_read_as_linux_expects() {
        let (mut ioapic, mut effects) = (Ioapic::default(), Effects::default());
        for (select, value) in [(0, 0), (1, 0x0017_0020), (0x10, 0x1_0000), (0x40, 0)] {
            ioapic.mmio_write(&mut effects, SELECT, select);
            assert_eq!(ioapic.mmio_read(WINDOW), value, "{select:#x}");
        }
    }

    #[test]
    fn hostile_guest_is_survived_and_state_round_trips() {
        let (mut ioapic, mut effects, mut noise) =
            (Ioapic::default(), Effects::default(), Noise(5));
        for _ in 0..50_000 {
            let (what, value) = (noise.next(), noise.next());
            match what % 4 {
                0 => ioapic.set_line(&mut effects, value as u8 & 31, value & 256 != 0),
                1 => ioapic.eoi(&mut effects, value as u8),
                2 => ioapic.mmio_write(&mut effects, (what >> 8) & 0x50, value as u32),
                _ => _ = ioapic.mmio_read((what >> 8) & 0x1f),
            }
            effects.drain().count();
        }
        let mut sections = Sections::default();
        ioapic.save(0, &mut sections);
        let mut fresh = Ioapic::default();
        fresh.restore(0, &mut sections).unwrap();
        assert_eq!(fresh, ioapic);
    }
}
