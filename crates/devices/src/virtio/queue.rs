//! A split virtqueue: what the driver programs (section 4.1.4.3), and the ring once enabled.

use std::sync::atomic::Ordering;

use memory::{Ram, RamView};
use minicbor::{Decode, Encode};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Broken, Chain};

/// The MSI-X vector that means none.
pub const NO_VECTOR: u16 = 0xffff;

/// The driver's wish not to be interrupted, in the available ring's flags (section 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// One queue of a device.
#[derive(Debug)]
pub struct VirtQueue {
    pub(super) size_max: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) descriptors: u64,
    pub(super) driver_area: u64,
    pub(super) device_area: u64,
    ring: Option<Queue>,
    /// Chains were taken in this call: the driver must learn how far.
    taken: bool,
    /// Chains were used in this call: the driver may want an interrupt.
    used: bool,
}

/// Saved form of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct QueueSaved {
    /// Elements.
    #[n(0)]
    pub size: u16,
    /// MSI-X vector.
    #[n(1)]
    pub vector: u16,
    /// Address of the descriptor table.
    #[n(2)]
    pub descriptors: u64,
    /// Address of the available ring.
    #[n(3)]
    pub driver_area: u64,
    /// Address of the used ring.
    #[n(4)]
    pub device_area: u64,
    /// The ring, if the queue is enabled.
    #[n(5)]
    pub ring: Option<RingSaved>,
}

/// Saved form of an enabled ring.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RingSaved {
    /// Index of the next chain to take.
    #[n(0)]
    pub next_avail: u16,
    /// Index of the next used element.
    #[n(1)]
    pub next_used: u16,
    /// Whether `VIRTIO_F_RING_EVENT_IDX` was negotiated.
    #[n(2)]
    pub event_idx: bool,
}

impl VirtQueue {
    /// A disabled queue of at most `size_max` elements, a power of two.
    pub(super) fn new(size_max: u16) -> VirtQueue {
        assert!(size_max.is_power_of_two(), "queue of {size_max} elements");
        VirtQueue {
            size_max,
            size: size_max,
            vector: NO_VECTOR,
            descriptors: 0,
            driver_area: 0,
            device_area: 0,
            ring: None,
            taken: false,
            used: false,
        }
    }

    /// Whether the driver enabled it.
    pub fn enabled(&self) -> bool {
        self.ring.is_some()
    }

    /// Turns the ring on.
    ///
    /// # Errors
    /// [`Broken::Setup`] for a size that is no power of two or too large, a misaligned address, or
    /// rings that are not in RAM.
    pub(super) fn enable(&mut self, ram: &mut Ram, event_idx: bool) -> Result<(), Broken> {
        let ring = self.ring_at(&RingSaved { next_avail: 0, next_used: 0, event_idx })?;
        // The available ring at address 0 means "not ready" to the queue library.
        if self.driver_area == 0 || !ring.is_valid(&ram.view()) {
            return Err(Broken::Setup);
        }
        self.ring = Some(ring);
        Ok(())
    }

    fn ring_at(&self, at: &RingSaved) -> Result<Queue, Broken> {
        let RingSaved { next_avail, next_used, event_idx } = *at;
        let state = QueueState {
            max_size: self.size_max,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.descriptors,
            avail_ring: self.driver_area,
            used_ring: self.device_area,
        };
        Queue::try_from(state).map_err(|_| Broken::Setup)
    }

    /// Chains the driver made available and nobody took yet.
    pub(super) fn available(&self, ram: &mut Ram) -> Result<u16, Broken> {
        let Some(ring) = &self.ring else { return Ok(0) };
        let index = ring.avail_idx(&ram.view(), Ordering::Acquire)?;
        let count = index.0.wrapping_sub(ring.next_avail());
        if count > ring.size() { Err(Broken::Index) } else { Ok(count) }
    }

    /// Takes the next chain.
    pub(super) fn pop(&mut self, ram: &mut Ram) -> Result<Option<Chain>, Broken> {
        if self.available(ram)? == 0 {
            return Ok(None);
        }
        let Some(ring) = &mut self.ring else { return Ok(None) };
        let chain = {
            let view: &RamView<'_> = &ram.view();
            let next = ring.iter(view)?.next();
            Chain::take(next.ok_or(Broken::Index)?)?
        };
        chain.check(ram)?;
        self.taken = true;
        Ok(Some(chain))
    }

    /// Gives back the last `count` chains taken, unused.
    pub(super) fn unpop(&mut self, count: u16) {
        if let Some(ring) = &mut self.ring {
            ring.set_next_avail(ring.next_avail().wrapping_sub(count));
            self.taken = true;
        }
    }

    /// Puts chain `head` with `written` bytes into the used ring.
    pub(super) fn push(&mut self, ram: &mut Ram, head: u16, written: u32) -> Result<(), Broken> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        ring.add_used(&ram.view(), head, written)?;
        self.used = true;
        Ok(())
    }

    /// Ends a call into the device: tells the driver how far the device read, and returns whether
    /// it wants an interrupt for what was used.
    pub(super) fn settle(&mut self, ram: &mut Ram) -> Result<bool, Broken> {
        let (taken, used) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.used));
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let view = ram.view();
        if taken && ring.event_idx_enabled() {
            ring.enable_notification(&view)?;
        }
        if !used {
            return Ok(false);
        }
        if ring.event_idx_enabled() {
            return Ok(ring.needs_notification(&view)?);
        }
        let flags = GuestAddress(ring.avail_ring());
        let flags: u16 = view.read_obj(flags).map_err(|_| Broken::Setup)?;
        Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
    }

    /// Back to disabled.
    pub(super) fn reset(&mut self) {
        *self = VirtQueue::new(self.size_max);
    }

    pub(super) fn save(&self) -> QueueSaved {
        let VirtQueue {
            size_max: _,
            size,
            vector,
            descriptors,
            driver_area,
            device_area,
            ring,
            taken: _,
            used: _,
        } = self;
        QueueSaved {
            size: *size,
            vector: *vector,
            descriptors: *descriptors,
            driver_area: *driver_area,
            device_area: *device_area,
            ring: ring.as_ref().map(|ring| RingSaved {
                next_avail: ring.next_avail(),
                next_used: ring.next_used(),
                event_idx: ring.event_idx_enabled(),
            }),
        }
    }

    pub(super) fn restore(&mut self, saved: &QueueSaved) -> Result<(), Broken> {
        let QueueSaved { size, vector, descriptors, driver_area, device_area, ring } = saved;
        self.reset();
        self.size = *size;
        self.vector = *vector;
        self.descriptors = *descriptors;
        self.driver_area = *driver_area;
        self.device_area = *device_area;
        self.ring = ring.as_ref().map(|ring| self.ring_at(ring)).transpose()?;
        Ok(())
    }
}
