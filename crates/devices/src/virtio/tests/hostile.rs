//! Seeded random misbehaviour: no panic, no hang, saved state survives a round trip.
//!
//! Each case is one action of a driver that knows where everything is and means harm.

use journal::{DiskCompletion, DiskFailed, DiskOperation};
use saved::Sections;
use types::Gpa;

use super::driver::{RAM_SIZE, SLOT};
use super::*;
use crate::Effect;
use crate::pci::{Delivery, PciFunction};
use crate::virtio::blk::{Blk, BlkSpec};
use crate::virtio::console::Console;
use crate::virtio::net::{Net, NetSpec};
use crate::virtio::rng::Rng;
use crate::virtio::{VirtioPci, status};

const ROUNDS: u64 = 300;
const ACTIONS_PER_ROUND: u64 = 100;
/// Most effects one action may have: a full queue of 256 with an interrupt or two.
const EFFECTS_MAX: usize = 1024;

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 16) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An address: mostly RAM, often near its edges, sometimes anything.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => self.roll(),
            1 => RAM_SIZE - self.below(64),
            2 => self.pick(&[0, u64::MAX, u64::MAX - 15, 1 << 32, 0xfee0_0000]),
            3 => 0x1_0000 + self.below(0x2_0000),
            _ => 0x10_0000 + self.below(0x10_0000),
        }
    }

    fn len(&mut self) -> u32 {
        match self.below(6) {
            0 => self.roll() as u32,
            1 => self.pick(&[0, 1, 11, 12, 15, 16, 17, 512, 513, u32::MAX]),
            2 => 512 * self.below(64) as u32,
            _ => self.below(2000) as u32,
        }
    }
}

fn act(rig: &mut Rig, driver: &Driver, queues: &mut [GuestQueue], dice: &mut Dice) {
    let count = queues.len() as u64;
    let queue = &mut queues[dice.below(count) as usize];
    match dice.below(24) {
        0 => chain_of_noise(rig, queue, dice),
        1..=3 | 16..=19 => plausible_chain(rig, queue, dice),
        4..=6 | 20..=22 => rig.poke(driver.notify + 4 * u64::from(queue.index), 2, 0),
        7 => scribble(rig, queue, dice),
        8 => registers(rig, driver, dice),
        9 => configuration(rig, driver, dice),
        10 => outside(rig, dice),
        11 => completions(rig, dice),
        12 => requeue(rig, driver, queue, dice),
        13 => {
            let event = dice.roll() as u16;
            queue.set_used_event(rig, event);
        }
        14 => round_trip(rig),
        _ => {
            rig.now = rig.now.saturating_add_ns(dice.below(100_000));
            rig.with(|bus, cx| bus.timer_fired(cx, crate::pci::timer_name(SLOT, 0)));
        }
    }
}

fn chain_of_noise(rig: &mut Rig, queue: &mut GuestQueue, dice: &mut Dice) {
    for _ in 0..dice.below(8) {
        let (at, next) = (dice.below(queue.size.into()) as u16, dice.below(70) as u16);
        let (gpa, len, flags) = (dice.address(), dice.len(), dice.below(8) as u16);
        GuestQueue::describe(rig, queue.base, at, gpa, len, flags, next);
    }
    let head =
        if dice.one_in(8) { dice.roll() as u16 } else { dice.below(queue.size.into()) as u16 };
    queue.offer(rig, head);
}

fn plausible_chain(rig: &mut Rig, queue: &mut GuestQueue, dice: &mut Dice) {
    let kind = dice.pick(&[0u32, 0, 1, 1, 4, 8, 11, 13, 99]);
    let sector = if dice.one_in(6) { dice.roll() } else { dice.below(3000) };
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    rig.put(0x30_0000, &header);
    let mut buffers = vec![(0x30_0000, 16, false)];
    for _ in 0..dice.below(4) {
        let gpa = 0x10_0000 + dice.below(0x10_0000);
        buffers.push((gpa, 512 * dice.below(5) as u32, kind != 1));
    }
    buffers.push((0x30_1000, 1, true));
    if dice.one_in(16) {
        buffers.iter_mut().for_each(|buffer| buffer.2 = queue.index == 0);
    }
    queue.submit(rig, &buffers, dice.one_in(2));
}

/// Noise over the rings, or a jump of the available index.
fn scribble(rig: &mut Rig, queue: &GuestQueue, dice: &mut Dice) {
    let at = match dice.below(4) {
        0 => queue.avail() + 2,
        1 => queue.used() + 2,
        _ => queue.base + dice.below(0x3000),
    };
    rig.put(at, &dice.roll().to_le_bytes()[..2]);
}

fn registers(rig: &mut Rig, driver: &Driver, dice: &mut Dice) {
    let size = dice.pick(&[1, 2, 4, 8]);
    let base = dice.pick(&[driver.common, driver.notify, driver.isr, driver.device]);
    let offset = if dice.one_in(2) { dice.below(0x40) } else { dice.below(0x1000) };
    let value = if dice.one_in(2) { dice.roll() } else { dice.below(16) };
    // The last of the four blocks ends where the BAR does.
    if offset + size as u64 > 0x1000 {
        return;
    }
    if dice.one_in(2) {
        rig.poke(base + offset, size, value);
    } else {
        let mut into = [0; 8];
        rig.with(|bus, cx| bus.mmio_read(cx, Gpa(base + offset), &mut into[..size]));
    }
}

fn configuration(rig: &mut Rig, driver: &Driver, dice: &mut Dice) {
    let size = dice.pick(&[1u8, 2, 4]);
    let offset = dice.below(256) as u16 & !(u16::from(size) - 1);
    if dice.one_in(2) {
        rig.config_write(offset, size, dice.roll() as u32);
    } else {
        rig.config_read(offset, size);
    }
    rig.poke(dice.address(), 8, u64::MAX);
    rig.config_write(0x10, 4, driver.common as u32);
    rig.config_write(0x14, 4, driver.common as u32 + 0x4000);
    if !dice.one_in(4) {
        rig.config_write(4, 2, 0x406);
    }
}

fn outside(rig: &mut Rig, dice: &mut Dice) {
    let len = dice.below(3000) as usize;
    let what = match dice.below(4) {
        0 => Delivery::Link(dice.one_in(2)),
        1 if len.is_multiple_of(2) => Delivery::Generation([1; 16]),
        1 => Delivery::Console(vec![1; len]),
        2 => Delivery::Disk(DiskCompletion { id: dice.below(50), result: Ok(vec![2; len]) }),
        _ => Delivery::Frame(vec![3; len]),
    };
    rig.deliver(what);
}

/// Completes what is due, sometimes wrongly.
fn completions(rig: &mut Rig, dice: &mut Dice) {
    let outstanding = rig.bus.outstanding(SLOT);
    for id in rig.bus.due(SLOT, rig.now) {
        let request = outstanding.iter().find(|r| r.id == id).expect("due is outstanding");
        let len = match &request.operation {
            DiskOperation::Read { len, .. } => *len as usize,
            _ => 0,
        };
        let result = match dice.below(8) {
            0 => Err(DiskFailed),
            1 => Ok(vec![5; len / 2]),
            _ => Ok(vec![4; len]),
        };
        rig.deliver(Delivery::Disk(DiskCompletion { id, result }));
    }
}

/// Sets a queue up again, with addresses and sizes that may be wrong.
fn requeue(rig: &mut Rig, driver: &Driver, queue: &GuestQueue, dice: &mut Dice) {
    let index = if dice.one_in(8) { dice.roll() } else { queue.index.into() };
    let size = if dice.one_in(2) { dice.pick(&[0, 1, 2, 3, 255, 32768]) } else { 64 };
    let write = |rig: &mut Rig, at: u64, size: usize, value: u64| {
        rig.poke(driver.common + at, size, value);
    };
    if dice.one_in(4) {
        write(rig, 0x14, 1, 0);
        write(rig, 8, 4, 1);
        write(rig, 12, 4, 1);
        write(rig, 0x14, 1, 11);
    }
    write(rig, 0x16, 2, index);
    write(rig, 0x18, 2, size);
    for (at, good) in [(0x20, queue.descriptors()), (0x28, queue.avail()), (0x30, queue.used())] {
        let gpa = match dice.below(6) {
            0 => dice.address(),
            1 => queue.avail(),
            _ => good,
        };
        write(rig, at, 8, gpa);
    }
    write(rig, 0x1c, 2, 1);
    write(rig, 0x14, 1, 15);
}

/// Saved, restored into itself and saved again: the same bytes.
fn round_trip(rig: &mut Rig) {
    let saved = rig.save();
    let mut sections = saved.clone();
    rig.bus.restore(&mut sections).unwrap();
    sections.finish().unwrap();
    assert!(rig.save() == saved);
}

fn torment(seed: u64, queue_count: usize, make: &dyn Fn() -> Box<dyn PciFunction>) {
    let mut dice = Dice(seed);
    let (mut failed, mut messages) = (0, 0);
    for _ in 0..ROUNDS {
        let mut rig = Rig::of(make());
        let mask = dice.roll();
        let sizes = vec![64; queue_count];
        let (driver, mut queues) = Driver::start(&mut rig, &sizes, mask);
        rig.drain();
        for _ in 0..ACTIONS_PER_ROUND {
            act(&mut rig, &driver, &mut queues, &mut dice);
            if driver.status(&mut rig) & status::NEEDS_RESET != 0 && dice.one_in(4) {
                failed += 1;
                (_, queues) = Driver::start(&mut rig, &sizes, mask);
            }
            let effects: Vec<Effect> = rig.drain();
            messages += effects.iter().filter(|e| matches!(e, Effect::Msi { .. })).count() as u64;
            assert!(effects.len() <= EFFECTS_MAX, "{} effects", effects.len());
        }
        rig.bus.reset();
        round_trip(&mut rig);
    }
    assert!(failed > ROUNDS, "the noise reaches the queues: {failed}");
    assert!(messages > ROUNDS, "so do requests: {messages}");
}

fn disk() -> Box<dyn PciFunction> {
    let spec = BlkSpec { disk: 0, size: 1 << 20, read_only: false, id: String::new() };
    Box::new(VirtioPci::new(Blk::new(spec)))
}

fn card() -> Box<dyn PciFunction> {
    let spec = NetSpec { nic: 0, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
    Box::new(VirtioPci::new(Net::new(spec)))
}

#[test]
fn hostile_block_driver() {
    torment(1, 1, &disk);
}

#[test]
fn hostile_network_driver() {
    torment(2, 2, &card);
}

#[test]
fn hostile_console_driver() {
    torment(3, 2, &|| Box::new(VirtioPci::new(Console::new(0))));
}

#[test]
fn hostile_entropy_driver() {
    torment(4, 1, &|| Box::new(VirtioPci::new(Rng::new([0; 32]))));
}

/// `sections` with a few bytes of one of them changed.
fn altered(sections: &Sections, dice: &mut Dice) -> Sections {
    let mut altered = Sections::default();
    let victim = dice.below(sections.iter().count() as u64) as usize;
    for (index, section) in sections.iter().enumerate() {
        let mut section = section.clone();
        for _ in 0..if index == victim { 1 + dice.below(3) } else { 0 } {
            let at = dice.below(section.body.len() as u64) as usize;
            section.body[at] ^= 1 << dice.below(8);
        }
        altered.put(section);
    }
    altered
}

#[test]
fn hostile_saved_state_is_refused_or_harmless() {
    let mut dice = Dice(5);
    let mut taken = 0;
    for round in 0..2 * ROUNDS {
        let (make, sizes): (fn() -> _, &[u16]) =
            if round % 2 == 0 { (disk, &[64]) } else { (card, &[64, 64]) };
        let mut rig = Rig::of(make());
        let (driver, mut queues) = Driver::start(&mut rig, sizes, u64::MAX);
        for _ in 0..20 {
            act(&mut rig, &driver, &mut queues, &mut dice);
        }
        let mut sections = altered(&rig.save(), &mut dice);
        if rig.bus.restore(&mut sections).is_err() {
            continue;
        }
        taken += 1;
        for _ in 0..50 {
            act(&mut rig, &driver, &mut queues, &mut dice);
        }
    }
    assert!(taken > ROUNDS / 10, "{taken} were taken");
}
