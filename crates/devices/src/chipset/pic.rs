//! The pair of 8259A interrupt controllers with their edge/level control registers (Intel 8259A
//! data sheet; ELCR as in the PIIX and ICH data sheets).
//!
//! The slave's output is input 2 of the master, seen there as a level. In an edge-triggered input
//! the rising edge is latched until acknowledged.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use super::ports;
use crate::{Device, DeviceContext, PortRange};

/// The master's input for the slave.
const CASCADE: u8 = 2;
/// Inputs that cannot be made level-triggered: timer, keyboard, cascade; clock, coprocessor.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// What the next write to the data port is (8259A data sheet, figure 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chip {
    /// Levels of the input pins.
    lines: u8,
    /// Latched rising edges of edge-triggered inputs.
    edges: u8,
    mask: u8,
    in_service: u8,
    /// 1 where an input is level-triggered (ELCR).
    level: u8,
    /// LTIM of ICW1: all inputs level-triggered.
    all_level: bool,
    base: u8,
    /// Input of the highest priority (rotation).
    top: u8,
    expect: Expect,
    single: bool,
    with_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_in_service: bool,
    poll: bool,
}

impl Chip {
    fn new() -> Chip {
        Chip {
            lines: 0,
            edges: 0,
            mask: 0,
            in_service: 0,
            level: 0,
            all_level: false,
            base: 0,
            top: 0,
            expect: Expect::Mask,
            single: false,
            with_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_in_service: false,
            poll: false,
        }
    }

    fn levels(&self) -> u8 {
        if self.all_level { 0xff } else { self.level }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high {
            if self.lines & bit == 0 {
                self.edges |= bit;
            }
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// The interrupt request register; `cascade` is 1 << 2 while the slave requests.
    fn requests(&self, cascade: u8) -> u8 {
        let levels = self.levels();
        (self.edges & !levels) | (self.lines & levels) | cascade
    }

    /// The set bit of the highest priority, and its rank from 0 (highest) to 7.
    fn highest(&self, bits: u8) -> Option<(u8, u8)> {
        let rotated = bits.rotate_right(u32::from(self.top));
        let rank = rotated.trailing_zeros() as u8;
        (rank < 8).then_some(((rank + self.top) & 7, rank))
    }

    /// The input to be served now, if one outranks what is in service.
    fn candidate(&self, cascade: u8) -> Option<u8> {
        let (input, rank) = self.highest(self.requests(cascade) & !self.mask)?;
        let mut in_service = self.in_service;
        if self.special_mask {
            in_service &= !self.mask;
        }
        if self.special_fully_nested && input == CASCADE {
            in_service &= !(1 << CASCADE);
        }
        match self.highest(in_service) {
            Some((_, serving)) if serving <= rank => None,
            _ => Some(input),
        }
    }

    /// Moves `input` from requested to in service.
    fn serve(&mut self, input: u8) {
        let bit = 1 << input;
        self.edges &= !bit;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_icw1(&mut self, value: u8) {
        let (lines, level, base) = (self.lines, self.level, self.base);
        *self = Chip {
            lines,
            level,
            base,
            all_level: value & 0x08 != 0,
            single: value & 0x02 != 0,
            with_icw4: value & 0x01 != 0,
            expect: Expect::Icw2,
            ..Chip::new()
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            // Non-specific EOI, rotating or not. In special mask mode, masked inputs are passed by.
            command @ (1 | 5) => {
                let hidden = if self.special_mask { self.mask } else { 0 };
                if let Some((input, _)) = self.highest(self.in_service & !hidden) {
                    self.end(input, command == 5);
                }
            }
            command @ (3 | 7) => self.end(named, command == 7),
            6 => self.top = (named + 1) & 7,
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            _ => {}
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.top = (input + 1) & 7;
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.with_icw4 { Expect::Icw4 } else { Expect::Mask };
        self.expect = match self.expect {
            Expect::Mask => {
                self.mask = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.base = value & 0xf8;
                if self.single { after_icw3 } else { Expect::Icw3 }
            }
            Expect::Icw3 => after_icw3,
            Expect::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Expect::Mask
            }
        };
    }
}

/// The two controllers of a PC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    fn default() -> Pic {
        Pic { chips: [Chip::new(), Chip::new()] }
    }
}

impl Pic {
    /// Drives input `irq`, 0 to 15; others, and the cascade's 2, are ignored.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        if irq < 16 && irq != CASCADE {
            self.chips[usize::from(irq >> 3)].set_line(irq & 7, high);
        }
    }

    /// Whether the INTR output is high: an interrupt waits to be acknowledged.
    pub fn intr(&self) -> bool {
        self.chips[0].candidate(self.cascade()).is_some()
    }

    /// The interrupt-acknowledge cycle: takes the interrupt and returns its vector; the spurious
    /// vector (input 7) if there is none any more.
    pub fn acknowledge(&mut self) -> u8 {
        let input = match self.chips[0].candidate(self.cascade()) {
            None => return self.chips[0].base | 7,
            Some(input) => input,
        };
        self.chips[0].serve(input);
        if input != CASCADE {
            return self.chips[0].base | input;
        }
        let slave = &mut self.chips[1];
        match slave.candidate(0) {
            None => slave.base | 7,
            Some(input) => {
                slave.serve(input);
                slave.base | input
            }
        }
    }

    fn cascade(&self) -> u8 {
        u8::from(self.chips[1].candidate(0).is_some()) << CASCADE
    }

    /// A read after the poll command: an acknowledge cycle that returns the input.
    fn poll(&mut self, which: usize) -> u8 {
        let cascade = if which == 0 { self.cascade() } else { 0 };
        let chip = &mut self.chips[which];
        chip.poll = false;
        match chip.candidate(cascade) {
            None => 0,
            Some(input) => {
                chip.serve(input);
                0x80 | input
            }
        }
    }

    fn read_command(&self, which: usize) -> u8 {
        let cascade = if which == 0 { self.cascade() } else { 0 };
        let chip = &self.chips[which];
        if chip.read_in_service { chip.in_service } else { chip.requests(cascade) }
    }
}

/// Which chip a port belongs to: 0 master, 1 slave.
fn chip_of(port: u16) -> usize {
    usize::from(matches!(port & !1, ports::PIC_SLAVE) || port == ports::ELCR + 1)
}

impl Device for Pic {
    fn name(&self) -> &'static str {
        "pic"
    }

    fn reset(&mut self) {
        *self = Pic::default();
    }

    fn ports(&self) -> &[PortRange] {
        const {
            &[
                ports::range(ports::PIC_MASTER, 2),
                ports::range(ports::PIC_SLAVE, 2),
                ports::range(ports::ELCR, 2),
            ]
        }
    }

    fn port_read(&mut self, _cx: &mut DeviceContext<'_>, port: u16, _size: u8) -> u32 {
        let which = chip_of(port);
        u32::from(match port {
            ports::ELCR..=0x4d1 => self.chips[which].level,
            _ if self.chips[which].poll => self.poll(which),
            _ if port & 1 == 0 => self.read_command(which),
            _ => self.chips[which].mask,
        })
    }

    fn port_write(&mut self, _cx: &mut DeviceContext<'_>, port: u16, size: u8, value: u32) {
        let which = chip_of(port);
        let chip = &mut self.chips[which];
        match port {
            ports::ELCR => {
                chip.level = value as u8 & ELCR_WRITABLE[0];
                if size > 1 {
                    self.chips[1].level = (value >> 8) as u8 & ELCR_WRITABLE[1];
                }
            }
            0x4d1 => chip.level = value as u8 & ELCR_WRITABLE[1],
            _ if port & 1 == 0 => chip.write_command(value as u8),
            _ => chip.write_data(value as u8),
        }
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let Pic { chips: [master, slave] } = self;
        sections.save(instance, &PicSaved { master: master.into(), slave: slave.into() });
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let PicSaved { master, slave } = sections.restore(instance)?;
        self.chips = [master.into(), slave.into()];
        Ok(())
    }
}

/// Saved form of [`Pic`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct PicSaved {
    /// The first controller.
    #[n(0)]
    pub master: ChipSaved,
    /// The second.
    #[n(1)]
    pub slave: ChipSaved,
}

impl Saved for PicSaved {
    const NAME: &'static str = "pic";
    const VERSION: u16 = 1;
}

macro_rules! chip_saved {
    ($($index:literal $field:ident: $type:ty,)*) => {
        /// Saved form of one 8259A; `expect` counts the ICW due next (2 to 4), 0 for none.
        #[derive(Debug, PartialEq, Eq, Encode, Decode)]
        #[allow(missing_docs)]
        pub struct ChipSaved {
            $(#[n($index)] pub $field: $type,)*
            #[n(15)]
            pub top: u8,
            #[n(16)]
            pub expect: u8,
        }

        impl From<&Chip> for ChipSaved {
            fn from(chip: &Chip) -> ChipSaved {
                let &Chip { $($field,)* top, expect } = chip;
                let expect = match expect {
                    Expect::Mask => 0,
                    Expect::Icw2 => 2,
                    Expect::Icw3 => 3,
                    Expect::Icw4 => 4,
                };
                ChipSaved { $($field,)* top, expect }
            }
        }

        impl From<ChipSaved> for Chip {
            fn from(saved: ChipSaved) -> Chip {
                let ChipSaved { $($field,)* top, expect } = saved;
                let expect = match expect {
                    2 => Expect::Icw2,
                    3 => Expect::Icw3,
                    4 => Expect::Icw4,
                    _ => Expect::Mask,
                };
                Chip { $($field,)* top: top & 7, expect }
            }
        }
    };
}

chip_saved! {
    0 lines: u8,
    1 edges: u8,
    2 mask: u8,
    3 in_service: u8,
    4 level: u8,
    5 all_level: bool,
    6 base: u8,
    7 single: bool,
    8 with_icw4: bool,
    9 auto_eoi: bool,
    10 rotate_on_auto_eoi: bool,
    11 special_mask: bool,
    12 special_fully_nested: bool,
    13 read_in_service: bool,
    14 poll: bool,
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, fuzz};
    use super::*;

    /// As Linux sets it up: vectors 0x30 and 0x38, everything unmasked.
    fn set_up(icw4: u8) -> (Bench, Pic) {
        let (mut bench, mut pic) = (Bench::new(), Pic::default());
        for (port, base, wire) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            bench.write(&mut pic, port, 0x11);
            for value in [base, wire, icw4, 0] {
                bench.write(&mut pic, port + 1, value);
            }
        }
        (bench, pic)
    }

    fn pulse(pic: &mut Pic, irq: u8) {
        pic.set_line(irq, true);
        pic.set_line(irq, false);
    }

    #[test]
    fn edge_is_latched_and_served_once() {
        let (mut bench, mut pic) = set_up(1);
        pulse(&mut pic, 0);
        assert!(pic.intr());
        assert_eq!(pic.acknowledge(), 0x30);
        assert!(!pic.intr());
        pulse(&mut pic, 0);
        assert!(!pic.intr(), "in service");
        bench.write(&mut pic, 0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn slave_input_goes_through_the_cascade() {
        let (mut bench, mut pic) = set_up(1);
        pulse(&mut pic, 8);
        assert_eq!(pic.acknowledge(), 0x38);
        pulse(&mut pic, 12);
        assert!(!pic.intr());
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x31, "outranks the cascade");
        for port in [0x20, 0xa0, 0x20] {
            bench.write(&mut pic, port, 0x20);
        }
        assert_eq!(pic.acknowledge(), 0x3c);
    }

    #[test]
    fn level_input_requests_while_high() {
        let (mut bench, mut pic) = set_up(1);
        bench.write(&mut pic, 0x4d1, 0xff);
        assert_eq!(bench.read(&mut pic, 0x4d1), 0xde);
        pic.set_line(9, true);
        assert_eq!(pic.acknowledge(), 0x39);
        bench.write(&mut pic, 0xa0, 0x61);
        bench.write(&mut pic, 0x20, 0x62);
        assert!(pic.intr());
        pic.set_line(9, false);
        assert!(!pic.intr());
    }

    #[test]
    fn acknowledge_of_nothing_is_spurious() {
        let (_, mut pic) = set_up(1);
        assert_eq!(pic.acknowledge(), 0x37);
        assert!(!pic.intr());
    }

    #[test]
    fn masked_input_waits() {
        let (mut bench, mut pic) = set_up(1);
        bench.write(&mut pic, 0x21, 0x01);
        pulse(&mut pic, 0);
        assert!(!pic.intr());
        assert_eq!(bench.read(&mut pic, 0x20), 1);
        bench.write(&mut pic, 0x21, 0x00);
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn auto_eoi_leaves_nothing_in_service() {
        let (mut bench, mut pic) = set_up(3);
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x33);
        bench.write(&mut pic, 0x20, 0x0b);
        assert_eq!(bench.read(&mut pic, 0x20), 0);
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_through() {
        let (mut bench, mut pic) = set_up(1);
        pulse(&mut pic, 3);
        pic.acknowledge();
        pulse(&mut pic, 5);
        assert!(!pic.intr());
        bench.write(&mut pic, 0x21, 1 << 3);
        bench.write(&mut pic, 0x20, 0x68);
        assert_eq!(pic.acknowledge(), 0x35);
    }

    #[test]
    fn poll_acknowledges() {
        let (mut bench, mut pic) = set_up(1);
        pulse(&mut pic, 4);
        bench.write(&mut pic, 0x20, 0x0c);
        assert_eq!(bench.read(&mut pic, 0x20), 0x84);
        assert!(!pic.intr());
    }

    #[test]
    fn specific_rotation_changes_priorities() {
        let (mut bench, mut pic) = set_up(1);
        bench.write(&mut pic, 0x20, 0xc3);
        pulse(&mut pic, 0);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn hostile_guest_is_survived() {
        fuzz(Pic::default, 4, 50_000);
    }
}
