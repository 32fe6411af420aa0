//! What tests of chipset devices share: a stand in for the machine, a fuzzer, the saved-state
//! round trip.

use memory::Ram;
use saved::Sections;
use types::VirtualTime;

use crate::{Device, DeviceContext, Effect, Effects};

/// Lends a device its context and collects what it does.
pub(crate) struct Bench {
    /// Virtual time of the next call.
    pub now: VirtualTime,
    /// Effects not yet looked at.
    pub effects: Effects,
    ram: Ram,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            now: VirtualTime(0),
            effects: Effects::default(),
            ram: Ram::new(1 << 20).expect("a megabyte"),
        }
    }

    /// Calls `f` with a context at the present time.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut DeviceContext<'_>) -> R) -> R {
        f(&mut DeviceContext { now: self.now, ram: &mut self.ram, effects: &mut self.effects })
    }

    pub fn read(&mut self, device: &mut impl Device, port: u16) -> u8 {
        self.with(|cx| device.port_read(cx, port, 1)) as u8
    }

    pub fn write(&mut self, device: &mut impl Device, port: u16, value: u8) {
        self.with(|cx| device.port_write(cx, port, 1, u32::from(value)));
    }

    /// The effects since last asked.
    pub fn effects(&mut self) -> Vec<Effect> {
        self.effects.drain().collect()
    }

    /// The level of `gsi` after the effects since last asked, if they moved it.
    pub fn line(&mut self, gsi: u8) -> Option<bool> {
        let lines = self.effects().into_iter().filter_map(|effect| match effect {
            Effect::Line { gsi: g, high } if g == gsi => Some(high),
            _ => None,
        });
        lines.fold(None, |_, high| Some(high))
    }

    /// What the last of the effects since last asked armed `timer` for.
    pub fn armed(&mut self, timer: u32) -> Option<VirtualTime> {
        let armed = self.effects().into_iter().filter_map(|effect| match effect {
            Effect::Timer { timer: t, at } if t == timer => Some(at),
            _ => None,
        });
        armed.fold(None, |_, at| at)
    }
}

/// xorshift64: numbers that look random and are always the same.
pub(crate) struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Saves `device`, restores into `fresh`, saves that, and compares bytes.
pub(crate) fn check_round_trip<D: Device>(device: &D, fresh: &mut D) {
    let mut sections = Sections::default();
    device.save(3, &mut sections);
    let first = sections.clone();
    fresh.restore(3, &mut sections).expect("its own saved state");
    sections.finish().expect("nothing left over");
    let mut again = Sections::default();
    fresh.save(3, &mut again);
    assert_eq!(first, again);
}

/// A guest gone wild for `steps` accesses, with timers, input and ever longer jumps in time. A
/// second device, made from the first's saved state halfway, must have the same effects.
pub(crate) fn fuzz<D: Device>(make: impl Fn() -> D, seed: u64, steps: u32) {
    let mut noise = Noise(seed);
    let mut bench = Bench::new();
    let mut device = make();
    let mut twin: Option<(D, Bench)> = None;
    for step in 0..steps {
        let action = (noise.next(), noise.next());
        let advance = noise.next() >> (20 + noise.next() % 44);
        bench.now = bench.now.saturating_add_ns(advance);
        let got = poke(&mut device, &mut bench, action);
        if let Some((twin, twin_bench)) = &mut twin {
            twin_bench.now = bench.now;
            assert_eq!(poke(twin, twin_bench, action), got, "step {step}");
            assert_eq!(twin_bench.effects, bench.effects, "step {step}");
            twin_bench.effects();
        }
        bench.effects();
        if step == steps / 2 {
            let mut fresh = make();
            check_round_trip(&device, &mut fresh);
            twin = Some((fresh, Bench::new()));
        }
        if step % 4096 == 4095 && bench.now == VirtualTime::MAX {
            bench.now = VirtualTime(0);
        }
    }
}

fn poke<D: Device>(device: &mut D, bench: &mut Bench, (what, value): (u64, u64)) -> u32 {
    let ranges = device.ports().to_vec();
    let range = ranges[(what >> 8) as usize % ranges.len()];
    let width = u64::from(range.last - range.first) + 1;
    let port = range.first + ((what >> 16) % width) as u16;
    let size = 1 << ((what >> 40) % 3);
    match what % 16 {
        0..6 => bench.with(|cx| device.port_read(cx, port, size)),
        6..14 => {
            bench.with(|cx| device.port_write(cx, port, size, value as u32));
            0
        }
        14 => {
            bench.with(|cx| device.timer_fired(cx, (value % 4) as u32));
            0
        }
        _ => {
            let bytes = value.to_le_bytes();
            bench.with(|cx| device.receive(cx, &bytes[..(what >> 50) as usize % 9]));
            0
        }
    }
}
