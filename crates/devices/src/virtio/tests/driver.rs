//! A machine of one device, and the guest driver that uses it through ports, MMIO and RAM only.

use memory::Ram;
use saved::Sections;
use types::{Gpa, VirtualTime};

use crate::pci::{Delivery, PciBus, PciFunction};
use crate::virtio::{features, status};
use crate::{DeviceContext, Effect, Effects};

/// Guest RAM of a rig, bytes.
pub const RAM_SIZE: u64 = 4 << 20;
/// Slot of the device under test.
pub const SLOT: u8 = 1;
const MSI_ADDRESS: u64 = 0xfee0_1000;

/// Bus, RAM and clock around one device.
pub struct Rig {
    pub bus: PciBus,
    pub ram: Ram,
    pub effects: Effects,
    pub now: VirtualTime,
}

impl Rig {
    pub fn new(function: impl PciFunction + 'static) -> Rig {
        Rig::of(Box::new(function))
    }

    pub fn of(function: Box<dyn PciFunction>) -> Rig {
        let mut bus = PciBus::new();
        assert_eq!(bus.plug(function).unwrap(), SLOT);
        let ram = Ram::new(RAM_SIZE).unwrap();
        Rig { bus, ram, effects: Effects::default(), now: VirtualTime(1_000) }
    }

    pub fn with<R>(&mut self, f: impl FnOnce(&mut PciBus, &mut DeviceContext<'_>) -> R) -> R {
        let Rig { bus, ram, effects, now } = self;
        f(bus, &mut DeviceContext { now: *now, ram, effects })
    }

    pub fn drain(&mut self) -> Vec<Effect> {
        self.effects.drain().collect()
    }

    pub fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        let address = 0x8000_0000 | u32::from(SLOT) << 11 | u32::from(offset & 0xfc);
        self.with(|bus, cx| {
            assert!(bus.port_write(cx, 0xcf8, 4, address));
            bus.port_read(cx, 0xcfc + (offset & 3), size).unwrap()
        })
    }

    pub fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        let address = 0x8000_0000 | u32::from(SLOT) << 11 | u32::from(offset & 0xfc);
        self.with(|bus, cx| {
            assert!(bus.port_write(cx, 0xcf8, 4, address));
            assert!(bus.port_write(cx, 0xcfc + (offset & 3), size, value));
        });
    }

    pub fn read(&mut self, gpa: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.with(|bus, cx| bus.mmio_read(cx, Gpa(gpa), &mut bytes[..size])));
        u64::from_le_bytes(bytes)
    }

    pub fn write(&mut self, gpa: u64, size: usize, value: u64) {
        let bytes = value.to_le_bytes();
        assert!(self.with(|bus, cx| bus.mmio_write(cx, Gpa(gpa), &bytes[..size])));
    }

    /// As `write`, where perhaps nothing is decoded.
    pub fn poke(&mut self, gpa: u64, size: usize, value: u64) {
        self.with(|bus, cx| bus.mmio_write(cx, Gpa(gpa), &value.to_le_bytes()[..size]));
    }

    pub fn deliver(&mut self, what: Delivery) {
        self.with(|bus, cx| bus.deliver(cx, SLOT, what));
    }

    pub fn save(&self) -> Sections {
        let mut sections = Sections::default();
        self.bus.save(&mut sections);
        sections
    }

    pub fn put(&mut self, gpa: u64, bytes: &[u8]) {
        self.ram.write(Gpa(gpa), bytes).unwrap();
    }

    pub fn get(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    pub fn get_u16(&self, gpa: u64) -> u16 {
        let bytes = self.get(gpa, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }
}

/// The data of the messages among `effects`.
pub fn messages(effects: &[Effect]) -> Vec<u32> {
    let message = |effect: &Effect| match effect {
        Effect::Msi { address, data } => {
            assert_eq!(*address, MSI_ADDRESS);
            Some(*data)
        }
        _ => None,
    };
    effects.iter().filter_map(message).collect()
}

/// A virtqueue as its driver keeps it.
pub struct GuestQueue {
    pub index: u16,
    pub size: u16,
    pub base: u64,
    pub avail_idx: u16,
    pub used_seen: u16,
    descriptor_next: u16,
}

impl GuestQueue {
    pub fn new(index: u16, size: u16) -> GuestQueue {
        let base = 0x1_0000 + u64::from(index) * 0x1_0000;
        GuestQueue { index, size, base, avail_idx: 0, used_seen: 0, descriptor_next: 0 }
    }

    pub fn descriptors(&self) -> u64 {
        self.base
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// Writes one descriptor of the table at `table`.
    pub fn describe(rig: &mut Rig, table: u64, at: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        rig.put(table + 16 * u64::from(at), &bytes);
    }

    /// Makes chain `head` available.
    pub fn offer(&mut self, rig: &mut Rig, head: u16) {
        let at = self.avail() + 4 + 2 * u64::from(self.avail_idx % self.size);
        rig.put(at, &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        rig.put(self.avail() + 2, &self.avail_idx.to_le_bytes());
    }

    /// Describes `buffers` (address, length, device-writable) and makes them available.
    pub fn submit(&mut self, rig: &mut Rig, buffers: &[(u64, u32, bool)], indirect: bool) -> u16 {
        let head = self.descriptor_next;
        let (table, first) = if indirect {
            let table = self.base + 0x4000 + u64::from(head % 32) * 0x200;
            Self::describe(rig, self.base, head, table, buffers.len() as u32 * 16, 4, 0);
            self.descriptor_next = (head + 1) % self.size;
            (table, 0)
        } else {
            self.descriptor_next = (head + buffers.len() as u16) % self.size;
            (self.base, head)
        };
        for (i, &(gpa, len, write)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(write) << 1;
            let wrap = if indirect { u16::MAX } else { self.size };
            let (at, next) = ((first + i as u16) % wrap, (first + i as u16 + 1) % wrap);
            Self::describe(rig, table, at, gpa, len, flags, next);
        }
        self.offer(rig, head);
        head
    }

    /// Used elements (head, written) that the driver has not seen.
    pub fn take_used(&mut self, rig: &Rig) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        while self.used_seen != rig.get_u16(self.used() + 2) {
            let bytes = rig.get(self.used() + 4 + 8 * u64::from(self.used_seen % self.size), 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            taken.push((word(0), word(4)));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        taken
    }

    /// Asks for an interrupt when used index passes `index` (EVENT_IDX).
    pub fn set_used_event(&self, rig: &mut Rig, index: u16) {
        rig.put(self.avail() + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    pub fn avail_event(&self, rig: &Rig) -> u16 {
        rig.get_u16(self.used() + 4 + 8 * u64::from(self.size))
    }
}

/// Where the driver found the device's registers, by walking the capability list.
#[derive(Clone, Default)]
pub struct Driver {
    pub common: u64,
    pub notify: u64,
    pub isr: u64,
    pub device: u64,
    pub window: u16,
    pub msix: u16,
    stride: u64,
}

impl Driver {
    /// Finds the register blocks as Linux's `virtio_pci_modern_dev` does.
    pub fn probe(rig: &mut Rig) -> Driver {
        assert_eq!(rig.config_read(0, 2), 0x1af4);
        assert!(rig.config_read(2, 2) >= 0x1040);
        assert_ne!(rig.config_read(6, 2) & 0x10, 0, "capability list");
        let mut driver = Driver::default();
        let mut at = rig.config_read(0x34, 1) as u16;
        while at != 0 {
            match rig.config_read(at, 1) {
                0x11 => driver.msix = at,
                0x09 => driver.take_capability(rig, at),
                other => panic!("capability {other:#x}"),
            }
            at = rig.config_read(at + 1, 1) as u16;
        }
        rig.config_write(4, 2, 0x406);
        driver
    }

    fn take_capability(&mut self, rig: &mut Rig, at: u16) {
        let bar = rig.config_read(at + 4, 1) as u16;
        let base = u64::from(rig.config_read(0x10 + 4 * bar, 4) & !0xf);
        let offset = u64::from(rig.config_read(at + 8, 4));
        match rig.config_read(at + 3, 1) {
            1 => self.common = base + offset,
            2 => {
                self.notify = base + offset;
                self.stride = rig.config_read(at + 16, 4).into();
            }
            3 => self.isr = base + offset,
            4 => self.device = base + offset,
            5 => self.window = at,
            other => panic!("cfg_type {other}"),
        }
    }

    /// Table BAR's address.
    pub fn msix_table(&self, rig: &mut Rig) -> u64 {
        let place = rig.config_read(self.msix + 4, 4);
        let bar = rig.config_read(0x10 + 4 * (place & 7) as u16, 4) & !0xf;
        u64::from(bar + (place & !7))
    }

    /// Sets every vector `v` to message 0x40 + v, unmasked, and turns MSI-X on.
    pub fn enable_msix(&self, rig: &mut Rig) {
        let table = self.msix_table(rig);
        let count = (rig.config_read(self.msix + 2, 2) & 0x7ff) + 1;
        for vector in 0..u64::from(count) {
            rig.write(table + 16 * vector, 4, MSI_ADDRESS);
            rig.write(table + 16 * vector + 4, 4, 0);
            rig.write(table + 16 * vector + 8, 4, 0x40 + vector);
            rig.write(table + 16 * vector + 12, 4, 0);
        }
        rig.config_write(self.msix + 2, 2, 0x8000);
    }

    pub fn offered(&self, rig: &mut Rig) -> u64 {
        rig.write(self.common, 4, 0);
        let low = rig.read(self.common + 4, 4);
        rig.write(self.common, 4, 1);
        low | rig.read(self.common + 4, 4) << 32
    }

    pub fn set_status(&self, rig: &mut Rig, value: u8) {
        rig.write(self.common + 0x14, 1, value.into());
    }

    /// Device status; 0 where nothing is decoded.
    pub fn status(&self, rig: &mut Rig) -> u8 {
        let mut status = [0];
        rig.with(|bus, cx| bus.mmio_read(cx, Gpa(self.common + 0x14), &mut status));
        status[0]
    }

    /// Reset to FEATURES_OK with `features`.
    pub fn negotiate(&self, rig: &mut Rig, accepted: u64) {
        self.set_status(rig, 0);
        assert_eq!(self.status(rig), 0);
        self.set_status(rig, status::ACKNOWLEDGE);
        self.set_status(rig, status::ACKNOWLEDGE | status::DRIVER);
        rig.write(self.common + 8, 4, 0);
        rig.write(self.common + 12, 4, accepted & 0xffff_ffff);
        rig.write(self.common + 8, 4, 1);
        rig.write(self.common + 12, 4, accepted >> 32);
        self.set_status(rig, 11);
    }

    /// Enables `queue` with MSI-X vector index + 1.
    pub fn enable_queue(&self, rig: &mut Rig, queue: &GuestQueue) {
        rig.put(queue.base, &[0; 0x3000]);
        rig.write(self.common + 0x16, 2, queue.index.into());
        rig.write(self.common + 0x18, 2, queue.size.into());
        rig.write(self.common + 0x1a, 2, u64::from(queue.index) + 1);
        for (at, gpa) in [(0x20, queue.descriptors()), (0x28, queue.avail()), (0x30, queue.used())]
        {
            rig.write(self.common + at, 4, gpa & 0xffff_ffff);
            rig.write(self.common + at + 4, 4, gpa >> 32);
        }
        rig.write(self.common + 0x1c, 2, 1);
    }

    /// The whole way to DRIVER_OK with `sizes` of queues and features masked by `mask`.
    pub fn start(rig: &mut Rig, sizes: &[u16], mask: u64) -> (Driver, Vec<GuestQueue>) {
        let driver = Driver::probe(rig);
        let accepted = driver.offered(rig) & (mask | features::VERSION_1);
        driver.negotiate(rig, accepted);
        assert_ne!(driver.status(rig) & status::FEATURES_OK, 0);
        driver.enable_msix(rig);
        rig.write(driver.common + 0x10, 2, 0);
        let mut queues = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            let queue = GuestQueue::new(index as u16, size);
            driver.enable_queue(rig, &queue);
            queues.push(queue);
        }
        driver.set_status(rig, 15);
        assert_eq!(driver.status(rig), 15);
        (driver, queues)
    }

    pub fn kick(&self, rig: &mut Rig, queue: &GuestQueue) {
        rig.write(self.notify + u64::from(queue.index) * self.stride, 2, queue.index.into());
    }
}
