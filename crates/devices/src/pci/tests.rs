//! The bus with a function that only remembers what was done to it.

use ::saved::{RestoreError, Sections};
use memory::Ram;
use types::{Gpa, VirtualTime};

use super::*;
use crate::{DeviceContext, Effect, Effects};

/// Written at an odd offset it asserts its pin, at an even one it does not; either arms a timer.
struct Echo {
    config: ConfigSpace,
    level: bool,
    last: Vec<u8>,
}

impl Echo {
    fn new(width: BarWidth, size: u64) -> Box<Echo> {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1234,
            device: 1,
            revision: 0,
            class: 0xff_0000,
            subsystem_vendor: 0,
            subsystem: 0,
            pin: 1,
        });
        config.add_bar(2, Bar { size, width });
        Box::new(Echo { config, level: false, last: Vec::new() })
    }
}

impl PciFunction for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, _: &mut DeviceContext<'_>, bar: u8, offset: u64, into: &mut [u8]) {
        into.fill(bar.wrapping_add(offset as u8));
    }

    fn bar_write(&mut self, cx: &mut DeviceContext<'_>, _bar: u8, offset: u64, from: &[u8]) {
        self.level = offset % 2 == 1;
        self.last = from.to_vec();
        cx.effects.timer(5, Some(VirtualTime(offset)));
    }

    fn intx(&self) -> bool {
        self.level
    }

    fn reset(&mut self) {
        self.config.reset();
        self.level = false;
    }

    fn save(&self, _instance: u32, _sections: &mut Sections) {}

    fn restore(&mut self, _: u32, _: &mut Sections) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn on<R>(
    bus: &mut PciBus,
    f: impl FnOnce(&mut PciBus, &mut DeviceContext<'_>) -> R,
) -> (R, Vec<Effect>) {
    let mut ram = Ram::new(1 << 20).unwrap();
    let mut effects = Effects::default();
    let now = VirtualTime(0);
    let result = f(bus, &mut DeviceContext { now, ram: &mut ram, effects: &mut effects });
    (result, effects.drain().collect())
}

fn bar_of(bus: &PciBus, slot: u8) -> u64 {
    bus.function(slot).unwrap().config().bar_address(2).unwrap()
}

#[test]
fn bars_are_placed_aligned_in_the_hole_and_again_after_reset() {
    let mut bus = PciBus::new();
    bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    bus.plug(Echo::new(BarWidth::Bits64, 0x10_0000)).unwrap();
    let places = [bar_of(&bus, 1), bar_of(&bus, 2)];
    assert_eq!(places, [HOLE_START, HOLE_START + 0x10_0000]);
    bus.reset();
    assert_eq!([bar_of(&bus, 1), bar_of(&bus, 2)], places);
    let size = HOLE_END - HOLE_START;
    let error = bus.plug(Echo::new(BarWidth::Bits32, size)).unwrap_err();
    assert_eq!(error, BusError::NoRoom { size });
    for _ in 3..SLOTS_MAX {
        bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    }
    assert_eq!(bus.plug(Echo::new(BarWidth::Bits32, 0x1000)), Err(BusError::Full));
}

#[test]
fn wide_bar_moves_above_4_gib_and_is_sized_in_two_halves() {
    let mut bus = PciBus::new();
    let slot = bus.plug(Echo::new(BarWidth::Bits64, 0x10_0000)).unwrap();
    on(&mut bus, |bus, cx| {
        bus.config_write(cx, slot, 0x18, &[0xff; 8]);
        let mut both = [0; 8];
        bus.config_read(cx, slot, 0x18, &mut both);
        assert_eq!(u64::from_le_bytes(both), 0xffff_ffff_fff0_0004);
        assert!(bus.claims(Gpa(u64::MAX)));
        assert!(bus.mmio_read(cx, Gpa(u64::MAX), &mut both));
        bus.config_write(cx, slot, 0x18, &0x7f_0000_0000u64.to_le_bytes());
        assert!(bus.claims(Gpa(0x7f_000f_ffff)) && !bus.claims(Gpa(0x7f_0010_0000)));
    });
}

#[test]
fn access_across_the_end_of_a_bar_is_cut() {
    let mut bus = PciBus::new();
    let slot = bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    let end = bar_of(&bus, slot) + 0xffe;
    on(&mut bus, |bus, cx| {
        let mut bytes = [0; 4];
        assert!(bus.mmio_read(cx, Gpa(end), &mut bytes));
        assert_eq!(bytes, [0, 0, 0xff, 0xff]);
        assert!(bus.mmio_write(cx, Gpa(end), &[1; 64]));
        assert!(!bus.mmio_write(cx, Gpa(end + 2), &[1]));
    });
}

#[test]
fn shared_line_is_high_while_any_function_asserts_it() {
    let mut bus = PciBus::new();
    for _ in 1..=5 {
        bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    }
    assert_eq!(interrupt_gsi(1, 1), interrupt_gsi(5, 1));
    let gsi = interrupt_gsi(1, 1);
    let (one, five) = (bar_of(&bus, 1), bar_of(&bus, 5));
    let mut lines = Vec::new();
    for gpa in [one + 1, five + 1, one, five] {
        let (_, effects) = on(&mut bus, |bus, cx| bus.mmio_write(cx, Gpa(gpa), &[0]));
        lines.extend(effects.into_iter().filter(|e| matches!(e, Effect::Line { .. })));
    }
    assert_eq!(lines, [Effect::Line { gsi, high: true }, Effect::Line { gsi, high: false }]);
}

#[test]
fn timers_are_named_by_slot() {
    let mut bus = PciBus::new();
    bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    let slot = bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    let gpa = Gpa(bar_of(&bus, slot) + 8);
    let (_, effects) = on(&mut bus, |bus, cx| bus.mmio_write(cx, gpa, &[0]));
    let timer = timer_name(slot, 5);
    assert_eq!(effects, [Effect::Timer { timer, at: Some(VirtualTime(8)) }]);
    assert_eq!(timer_slot(timer), slot);
}

#[test]
fn identity_is_read_only() {
    let mut bus = PciBus::new();
    let slot = bus.plug(Echo::new(BarWidth::Bits32, 0x1000)).unwrap();
    on(&mut bus, |bus, cx| {
        for offset in (0..256).step_by(4) {
            bus.config_write(cx, slot, offset, &[0xff; 4]);
        }
        let mut id = [0; 4];
        bus.config_read(cx, slot, 0, &mut id);
        assert_eq!(id, [0x34, 0x12, 1, 0]);
        let mut past = [0; 4];
        bus.config_read(cx, slot, 254, &mut past);
        assert_eq!(past, [0, 0, 0xff, 0xff]);
        bus.config_write(cx, slot, usize::MAX, &[0; 4]);
    });
}
