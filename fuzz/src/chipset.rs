//! Chipset: any access to any port of every device, to the I/O APIC and to the local APIC, with
//! timers, pins and typed bytes, saved and restored in the middle.
//!
//! Input: actions. What must hold: no panic, few effects an action, timers that are not in the
//! past for ever, and a restored device that saves the same bytes.

use std::collections::BTreeMap;

use cpu::lapic::{ApicMessage, Lapic};
use devices::chipset::{AcpiPm, Cmos, DebugExit, I8042, Ioapic, Pic, Pit, Post, Pvpanic, Serial};
use devices::{Device, DeviceContext, Effect, Effects};
use journal::WallClock;
use memory::{Layout, Ram};
use saved::{Saved, Section, Sections};
use types::VirtualTime;

use crate::input::Input;

const ACTIONS_MAX: usize = 1000;
const EFFECTS_MAX: usize = 256;
/// Timers that may fire at one moment before it counts as a hang.
const FIRINGS_MAX: usize = 64;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::new();
    for _ in 0..ACTIONS_MAX {
        if input.is_empty() {
            break;
        }
        rig.act(&mut input);
    }
    rig.save_and_restore();
}

fn devices() -> Vec<Box<dyn Device>> {
    vec![
        Box::new(Pit::default()),
        Box::new(Cmos::new(WallClock(1_700_000_000_000_000_000), Layout::of(1 << 20))),
        Box::new(Serial::com1()),
        Box::new(Serial::com2()),
        Box::new(I8042::default()),
        Box::new(AcpiPm::default()),
        Box::new(Pvpanic),
        Box::new(Post),
        Box::new(DebugExit::new(0xf4)),
    ]
}

struct Rig {
    devices: Vec<Box<dyn Device>>,
    pic: Pic,
    ioapic: Ioapic,
    lapic: Lapic,
    ram: Ram,
    now: VirtualTime,
    timers: BTreeMap<(usize, u32), VirtualTime>,
}

impl Rig {
    fn new() -> Rig {
        Rig {
            devices: devices(),
            pic: Pic::default(),
            ioapic: Ioapic::default(),
            lapic: Lapic::new(0),
            ram: Ram::new(1 << 20).expect("a megabyte"),
            now: VirtualTime(0),
            timers: BTreeMap::new(),
        }
    }

    /// Calls device `index` (the PIC past the last) and takes up its effects.
    fn call<R>(
        &mut self,
        index: usize,
        f: impl FnOnce(&mut dyn Device, &mut DeviceContext<'_>) -> R,
    ) -> R {
        let mut effects = Effects::default();
        let device = match self.devices.get_mut(index) {
            Some(device) => device.as_mut(),
            None => &mut self.pic,
        };
        let (now, ram) = (self.now, &mut self.ram);
        let result = f(device, &mut DeviceContext { now, ram, effects: &mut effects });
        self.take(index, effects);
        result
    }

    fn take(&mut self, source: usize, mut effects: Effects) {
        let effects: Vec<Effect> = effects.drain().collect();
        assert!(effects.len() <= EFFECTS_MAX, "{} effects", effects.len());
        for effect in effects {
            match effect {
                Effect::Timer { timer, at: Some(at) } => {
                    self.timers.insert((source, timer), at);
                }
                Effect::Timer { timer, at: None } => {
                    self.timers.remove(&(source, timer));
                }
                Effect::Line { gsi, high } => self.line(gsi, high),
                Effect::Msi { address, data } => {
                    if let Some(message) = ApicMessage::from_msi(address, data) {
                        self.lapic.deliver(&message);
                    }
                }
                Effect::Output(_) | Effect::Power(_) => {}
            }
        }
    }

    fn line(&mut self, gsi: u8, high: bool) {
        if gsi < 16 {
            self.pic.set_line(gsi, high);
        }
        self.ioapic_call(|ioapic, effects| ioapic.set_line(effects, gsi, high));
    }

    fn ioapic_call(&mut self, f: impl FnOnce(&mut Ioapic, &mut Effects)) {
        let mut effects = Effects::default();
        f(&mut self.ioapic, &mut effects);
        for effect in effects.drain() {
            if let Effect::Msi { address, data } = effect
                && let Some(message) = ApicMessage::from_msi(address, data)
            {
                self.lapic.deliver(&message);
            }
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=3 => self.write(input),
            4..=5 => self.read(input),
            6 => self.pass_time(input),
            7 => {
                let (index, len) = (usize::from(input.u8() % 10), usize::from(input.u8()));
                let bytes = input.take(len).to_vec();
                self.call(index, |device, cx| device.receive(cx, &bytes));
            }
            8 => {
                let (offset, value) = (u64::from(input.u8()), input.u32());
                self.ioapic_call(|ioapic, effects| ioapic.mmio_write(effects, offset, value));
                self.ioapic.mmio_read(offset);
            }
            9 => {
                let (select, value) = (u32::from(input.u8()), input.u32());
                self.ioapic_call(|ioapic, effects| ioapic.mmio_write(effects, 0, select));
                self.ioapic_call(|ioapic, effects| ioapic.mmio_write(effects, 0x10, value));
                self.ioapic.mmio_read(0x10);
            }
            10..=12 => self.lapic(input),
            13 => {
                let (gsi, high) = (input.u8() % 32, input.u8() & 1 != 0);
                self.line(gsi, high);
            }
            14 => {
                if self.pic.intr() {
                    self.pic.acknowledge();
                }
                if let Some(vector) = self.lapic.pending_vector() {
                    assert_eq!(self.lapic.acknowledge(), Some(vector));
                }
            }
            _ => self.save_and_restore(),
        }
    }

    /// A port of a device, and its index; mostly one that it answers at.
    fn port(&mut self, input: &mut Input<'_>) -> (usize, u16) {
        let (index, which, at) = (usize::from(input.u8() % 10), input.u8(), input.u8());
        let ports = self.call(index, |device, _| device.ports().to_vec());
        let range = ports[usize::from(which) % ports.len()];
        (index, range.first + u16::from(at) % (range.last - range.first + 1))
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let (index, port) = self.port(input);
        let (size, value) = (input.size(), input.u32());
        self.call(index, |device, cx| device.port_write(cx, port, size, value));
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let (index, port) = self.port(input);
        let size = input.size();
        self.call(index, |device, cx| device.port_read(cx, port, size));
    }

    fn lapic(&mut self, input: &mut Input<'_>) {
        let (what, register, value) = (input.u8() % 8, u32::from(input.u8()), input.u64());
        let now = self.now;
        let effects = match what {
            0 => Ok(self.lapic.mmio_read(now, register << 4)).map(|_| None),
            1 => self.lapic.msr_read(now, register).map(|_| None),
            2 => self.lapic.msr_write(now, register, value).map(Some),
            3 => self.lapic.set_base_msr(value).map(|()| None),
            4 => {
                self.lapic.set_tsc_deadline(now, value, u64::from(register));
                Ok(None)
            }
            5 => {
                self.lapic.set_cr8(register as u8);
                self.lapic.drive_lint(register as u8 >> 4, value & 1 != 0);
                Ok(None)
            }
            _ => Ok(Some(self.lapic.mmio_write(now, register << 4, value as u32))),
        };
        if let Ok(Some(effects)) = effects
            && let Some(vector) = effects.eoi
        {
            self.ioapic_call(|ioapic, effects| ioapic.eoi(effects, vector));
        }
    }

    /// Goes to the next timer or by a jump, and fires what is due until nothing is.
    fn pass_time(&mut self, input: &mut Input<'_>) {
        let next = self.timers.values().copied().chain(self.lapic.timer_deadline()).min();
        let jump = match input.u8() {
            0..128 => next.map_or(0, |at| at.ns_since(self.now)),
            128..250 => u64::from(input.u32()),
            _ => input.u64(),
        };
        self.now = self.now.saturating_add_ns(jump);
        let now = self.now;
        if self.lapic.timer_deadline().is_some_and(|at| at <= now) {
            self.lapic.timer_fired(now);
            let again = self.lapic.timer_deadline();
            assert!(again.is_none_or(|at| at > now || at == VirtualTime::MAX), "{again:?}");
        }
        let mut firings = 0;
        let due = |timers: &BTreeMap<(usize, u32), VirtualTime>| {
            let mut due = timers.iter().filter(|(_, at)| **at <= now && **at != VirtualTime::MAX);
            due.next().map(|(id, _)| *id)
        };
        while let Some((index, timer)) = due(&self.timers) {
            self.timers.remove(&(index, timer));
            self.call(index, |device, cx| device.timer_fired(cx, timer));
            firings += 1;
            assert!(firings < FIRINGS_MAX, "device {index} fires without end");
        }
    }

    fn save(&self) -> Sections {
        let mut sections = Sections::default();
        for (index, device) in self.devices.iter().enumerate() {
            device.save(index as u32, &mut sections);
        }
        self.pic.save(0, &mut sections);
        self.ioapic.save(0, &mut sections);
        sections.put(section(&self.lapic.save()));
        sections
    }

    /// Goes on with devices made from saved state.
    fn save_and_restore(&mut self) {
        let before = self.save();
        let mut sections = before.clone();
        self.devices = devices();
        for (index, device) in self.devices.iter_mut().enumerate() {
            device.restore(index as u32, &mut sections).expect("a device takes what it saved");
        }
        self.pic = Pic::default();
        self.pic.restore(0, &mut sections).expect("the PIC takes what it saved");
        self.ioapic = Ioapic::default();
        self.ioapic.restore(0, &mut sections).expect("the I/O APIC takes what it saved");
        self.lapic = Lapic::new(0);
        let lapic = sections.restore(0).expect("a section that was put");
        self.lapic.restore(lapic).expect("the local APIC takes what it saved");
        sections.finish().expect("nothing is left over");
        assert!(self.save() == before, "saved state changed on the way");
    }
}

fn section(state: &impl Saved) -> Section {
    Section::encode(0, state)
}
