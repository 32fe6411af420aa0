//! Virtio: a driver that misprograms every register, queue field and descriptor, resets with
//! requests in flight, and is saved and restored in the middle.
//!
//! Input: which device, whether a proper driver sets it up first, then actions. What must hold:
//! no panic, few effects an action, bounded requests, and a device restored from saved state that
//! saves the same bytes.

use std::collections::BTreeMap;

use devices::pci::{Delivery, HOLE_START, PciBus, PciFunction, interrupt_gsi};
use devices::virtio::{VirtioPci, blk, console, net, rng};
use devices::{DeviceContext, Effect, Effects};
use journal::{DiskCompletion, DiskFailed, DiskOperation, Output};
use memory::Ram;
use saved::Sections;
use types::{Gpa, VirtualTime};

use crate::input::Input;

const RAM_SIZE: u64 = 1 << 20;
const SLOT: u8 = 1;
const ACTIONS_MAX: usize = 400;
/// Most effects of one action: a full queue of 256, with an interrupt or two.
const EFFECTS_MAX: usize = 1024;
/// Most bytes of disk requests under way.
const UNDER_WAY_MAX: u64 = 24 << 20;

const COMMON: u64 = HOLE_START;
const NOTIFY: u64 = HOLE_START + 0x1000;
const MSIX: u64 = HOLE_START + 0x4000;
/// Where queue `n` is put by the proper driver: descriptors, then the rings a page each.
const QUEUES: u64 = 0x1_0000;
const QUEUE_STEP: u64 = 0x4000;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u8() % 5;
    let mut rig = Rig::new(kind);
    if input.u8() & 1 == 0 {
        rig.set_up(u64::from(input.u8()));
    }
    for _ in 0..ACTIONS_MAX {
        if input.is_empty() {
            break;
        }
        rig.act(&mut input);
        rig.settle();
    }
    rig.save_and_restore();
    rig.with(|bus, _| bus.reset());
    rig.save_and_restore();
}

fn device(kind: u8) -> Box<dyn PciFunction> {
    let disk =
        |read_only| blk::BlkSpec { disk: 0, size: 1 << 20, read_only, id: "fuzz".to_owned() };
    match kind {
        0 => Box::new(VirtioPci::new(blk::Blk::new(disk(false)))),
        1 => Box::new(VirtioPci::new(blk::Blk::new(disk(true)))),
        2 => {
            let spec = net::NetSpec { nic: 0, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
            Box::new(VirtioPci::new(net::Net::new(spec)))
        }
        3 => Box::new(VirtioPci::new(rng::Rng::new([7; 32]))),
        _ => Box::new(VirtioPci::new(console::Console::new(2))),
    }
}

struct Rig {
    kind: u8,
    bus: PciBus,
    ram: Ram,
    effects: Effects,
    now: VirtualTime,
    timers: BTreeMap<u32, VirtualTime>,
    avail: [u16; 4],
}

impl Rig {
    fn new(kind: u8) -> Rig {
        let mut bus = PciBus::new();
        assert_eq!(bus.plug(device(kind)), Ok(SLOT));
        Rig {
            kind,
            bus,
            ram: Ram::new(RAM_SIZE).expect("a megabyte"),
            effects: Effects::default(),
            now: VirtualTime(1_000),
            timers: BTreeMap::new(),
            avail: [0; 4],
        }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut PciBus, &mut DeviceContext<'_>) -> R) -> R {
        let Rig { bus, ram, effects, now, .. } = self;
        f(bus, &mut DeviceContext { now: *now, ram, effects })
    }

    fn write(&mut self, gpa: u64, size: usize, value: u64) {
        self.with(|bus, cx| bus.mmio_write(cx, Gpa(gpa), &value.to_le_bytes()[..size]));
    }

    fn read(&mut self, gpa: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.with(|bus, cx| bus.mmio_read(cx, Gpa(gpa), &mut bytes[..size]));
        u64::from_le_bytes(bytes)
    }

    fn config_write(&mut self, offset: u8, size: u8, value: u32) {
        let address = 0x8000_0000 | u32::from(SLOT) << 11 | u32::from(offset & 0xfc);
        self.with(|bus, cx| {
            bus.port_write(cx, 0xcf8, 4, address);
            bus.port_write(cx, 0xcfc + u16::from(offset & 3), size, value);
            bus.port_read(cx, 0xcfc + u16::from(offset & 3), size);
        });
    }

    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let _ = self.ram.write(Gpa(gpa), bytes);
    }

    /// What a proper driver does, from reset to DRIVER_OK, accepting all features but `refused`.
    fn set_up(&mut self, refused: u64) {
        self.config_write(4, 2, 0x406);
        for status in [0, 1, 3] {
            self.write(COMMON + 0x14, 1, status);
        }
        for half in [0, 1] {
            self.write(COMMON, 4, half);
            let offered = self.read(COMMON + 4, 4);
            let refused = if half == 0 { (refused & 0x3f) << 24 | refused >> 6 } else { 0 };
            self.write(COMMON + 8, 4, half);
            self.write(COMMON + 12, 4, offered & !refused);
        }
        self.write(COMMON + 0x14, 1, 11);
        for vector in 0..4 {
            self.write(MSIX + 16 * vector, 8, 0xfee0_0000);
            self.write(MSIX + 16 * vector + 8, 8, 0x40 + vector);
        }
        self.config_write(0x42, 2, 0x8000);
        let queues = self.read(COMMON + 0x12, 2).min(4);
        (0..queues).for_each(|queue| self.enable(queue, [0, 0x1000, 0x2000], 64));
        self.write(COMMON + 0x14, 1, 15);
    }

    fn enable(&mut self, queue: u64, areas: [u64; 3], size: u64) {
        self.write(COMMON + 0x16, 2, queue);
        self.write(COMMON + 0x18, 2, size);
        self.write(COMMON + 0x1a, 2, queue + 1);
        for (register, area) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
            let gpa = QUEUES.wrapping_add(queue * QUEUE_STEP).wrapping_add(area);
            self.write(COMMON + register, 8, gpa);
        }
        self.write(COMMON + 0x1c, 2, 1);
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() % 18 {
            0 => {
                let (offset, size, value) = (input.u8(), input.size(), input.u32());
                self.config_write(offset, size, value);
            }
            1..=2 => {
                let gpa = HOLE_START + u64::from(input.u16() % 0x6000);
                let size = input.pick(&[1, 2, 4, 8]);
                let value = input.u64();
                self.write(gpa, size, value);
                self.read(gpa, size);
            }
            3 => {
                let (offset, size) = (u64::from(input.u8() % 0x3c), input.pick(&[1, 2, 4, 8]));
                let value = input.u64();
                self.write(COMMON + offset, size, value);
            }
            4 => {
                let (gpa, len) = (address(input), usize::from(input.u8()));
                let bytes = input.take(len).to_vec();
                self.put(gpa, &bytes);
            }
            5..=7 => self.describe(input),
            8..=9 => self.offer(input),
            10..=11 => {
                let queue = u64::from(input.u8() % 4);
                self.write(NOTIFY + 4 * queue, 2, queue);
            }
            12 => self.arrive(input),
            13 => self.complete(input),
            14 => self.pass_time(input),
            15 => self.reset(input),
            16 => self.save_and_restore(),
            _ => {
                let queue = u64::from(input.u8() % 4);
                let areas = [0u64, 0x1000, 0x2000]
                    .map(|area| if input.u8() & 1 == 0 { area } else { address(input) });
                let size = input.pick(&[64, 1, 2, 256, 0, 3, 0x8000, 0xffff]);
                self.enable(queue, areas, size);
            }
        }
    }

    fn describe(&mut self, input: &mut Input<'_>) {
        let (queue, at) = (u64::from(input.u8() % 4), u64::from(input.u8()));
        let (gpa, len) = (address(input), length(input));
        let (flags, next) = (u16::from(input.u8() & 7), u16::from(input.u8()));
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(QUEUES + queue * QUEUE_STEP + 16 * at, &bytes);
        if flags & 4 == 0 && input.u8() & 1 == 0 {
            // The header of a disk request, likely.
            let (kind, sector) = (u32::from(input.u8() % 16), u64::from(input.u16()));
            self.put(gpa, &kind.to_le_bytes());
            self.put(gpa.wrapping_add(8), &sector.to_le_bytes());
        }
    }

    fn offer(&mut self, input: &mut Input<'_>) {
        let (queue, head, count) = (input.u8() % 4, input.u8(), input.u8() % 4);
        let base = QUEUES + u64::from(queue) * QUEUE_STEP + 0x1000;
        let avail = &mut self.avail[usize::from(queue)];
        let at = base + 4 + 2 * u64::from(*avail % 64);
        *avail = avail.wrapping_add(count.into());
        let index = avail.to_le_bytes();
        self.put(at, &u16::from(head).to_le_bytes());
        self.put(base + 2, &index);
        self.write(NOTIFY + 4 * u64::from(queue), 2, queue.into());
    }

    fn arrive(&mut self, input: &mut Input<'_>) {
        let (what, len) = (input.u8() % 4, usize::from(input.u16() % 20_000));
        let what = match what {
            0 => Delivery::Link(len & 1 == 0),
            1 => Delivery::Console(vec![1; len]),
            2 => {
                let id = u64::from(input.u8());
                Delivery::Disk(DiskCompletion { id, result: Ok(vec![2; len]) })
            }
            _ => Delivery::Frame(vec![3; len]),
        };
        self.with(|bus, cx| bus.deliver(cx, SLOT, what));
    }

    /// Completes what is due, rightly or wrongly.
    fn complete(&mut self, input: &mut Input<'_>) {
        let outstanding = self.bus.outstanding(SLOT);
        for id in self.bus.due(SLOT, self.now) {
            let request = outstanding.iter().find(|r| r.id == id).expect("due is outstanding");
            let len = match &request.operation {
                DiskOperation::Read { len, .. } => *len as usize,
                _ => 0,
            };
            let result = match input.u8() % 8 {
                1 => Err(DiskFailed),
                2 => Ok(vec![5; len / 2]),
                3 => Ok(vec![5; len + 1]),
                _ => Ok(vec![4; len]),
            };
            let done = Delivery::Disk(DiskCompletion { id, result });
            self.with(|bus, cx| bus.deliver(cx, SLOT, done));
        }
    }

    /// Goes to the next timer, or by a jump, and fires what is due.
    fn pass_time(&mut self, input: &mut Input<'_>) {
        let jump = match input.u8() {
            0..128 => self.timers.values().min().map_or(0, |at| at.ns_since(self.now)),
            128..250 => u64::from(input.u32()),
            _ => input.u64(),
        };
        self.now = self.now.saturating_add_ns(jump);
        let due: Vec<u32> =
            self.timers.iter().filter(|(_, at)| **at <= self.now).map(|(id, _)| *id).collect();
        for timer in due {
            self.timers.remove(&timer);
            self.with(|bus, cx| bus.timer_fired(cx, timer));
        }
    }

    fn reset(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => self.with(|bus, _| bus.reset()),
            1 => self.write(COMMON + 0x14, 1, 0),
            2 => {
                let status = u64::from(input.u8());
                self.write(COMMON + 0x14, 1, status);
            }
            _ => {
                self.avail = [0; 4];
                (0..4).for_each(|queue| self.put(QUEUES + queue * QUEUE_STEP, &[0; 0x3000]));
                self.set_up(u64::from(input.u8()));
            }
        }
    }

    /// Goes on with a twin made from saved state.
    fn save_and_restore(&mut self) {
        let save = |bus: &PciBus| {
            let mut sections = Sections::default();
            bus.save(&mut sections);
            sections
        };
        let before = save(&self.bus);
        let outstanding = self.bus.outstanding(SLOT);
        let mut twin = PciBus::new();
        assert_eq!(twin.plug(device(self.kind)), Ok(SLOT));
        let mut sections = before.clone();
        twin.restore(&mut sections).expect("a device takes what it saved");
        sections.finish().expect("nothing is left over");
        assert!(save(&twin) == before, "saved state changed on the way");
        assert!(twin.outstanding(SLOT) == outstanding, "requests changed on the way");
        self.bus = twin;
    }

    /// Takes up effects and checks what must hold.
    fn settle(&mut self) {
        let effects: Vec<Effect> = self.effects.drain().collect();
        assert!(effects.len() <= EFFECTS_MAX, "{} effects", effects.len());
        for effect in effects {
            match effect {
                Effect::Timer { timer, at: Some(at) } => drop(self.timers.insert(timer, at)),
                Effect::Timer { timer, at: None } => drop(self.timers.remove(&timer)),
                Effect::Line { gsi, .. } => assert_eq!(gsi, interrupt_gsi(SLOT, 1)),
                Effect::Output(Output::NetTransmit { frame, .. }) => assert!(frame.len() < 1 << 17),
                Effect::Output(_) | Effect::Msi { .. } => {}
                Effect::Power(event) => panic!("a virtio device cannot {event:?}"),
            }
        }
        let bytes = |request: &journal::DiskRequest| match &request.operation {
            DiskOperation::Read { len, .. } => u64::from(*len),
            DiskOperation::Write { data, .. } => data.len() as u64,
            _ => 0,
        };
        let under_way: u64 = self.bus.outstanding(SLOT).iter().map(bytes).sum();
        assert!(under_way <= UNDER_WAY_MAX, "{under_way} bytes under way");
    }
}

/// An address: mostly RAM, sometimes at its edge or anywhere.
fn address(input: &mut Input<'_>) -> u64 {
    match input.u8() % 8 {
        0 => input.u64(),
        1 => RAM_SIZE - u64::from(input.u8()),
        2 => QUEUES + u64::from(input.u16()),
        3 => input.pick(&[0, u64::MAX, u64::MAX - 15, 1 << 32, 0xfee0_0000]),
        _ => 0x4_0000 + (u64::from(input.u16()) << 3),
    }
}

fn length(input: &mut Input<'_>) -> u32 {
    match input.u8() % 4 {
        0 => input.u32(),
        1 => input.pick(&[0, 1, 11, 12, 15, 16, 17, 512, 513, u32::MAX]),
        2 => 512 * u32::from(input.u8()),
        _ => u32::from(input.u16() % 2048),
    }
}
