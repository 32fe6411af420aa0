//! The shape of a virtio device, and what it is lent for the length of one call.

use journal::{DiskRequest, Output};
use memory::{NoRam, Ram};
use saved::{RestoreError, Sections};
use types::VirtualTime;

use super::chain::{gather, scatter};
use super::{Chain, Piece, VirtQueue};
use crate::pci::Delivery;
use crate::{Effect, Effects};

/// What a driver did that a device cannot go on after; the device then needs a reset
/// (section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A queue was enabled with a bad size or bad addresses.
    #[error("a queue was enabled with a bad size or address")]
    Setup,
    /// The available ring's index jumped by more than the ring holds.
    #[error("the available ring's index jumped")]
    Index,
    /// A descriptor chain is empty, endless, too long or out of order.
    #[error("a descriptor chain is malformed")]
    Chain,
    /// A buffer is not in RAM.
    #[error("a buffer is not in RAM")]
    Address,
    /// A request lacks the parts every request has.
    #[error("a request is malformed")]
    Request,
}

impl From<NoRam> for Broken {
    fn from(_: NoRam) -> Broken {
        Broken::Address
    }
}

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Broken {
        match error {
            virtio_queue::Error::InvalidAvailRingIndex => Broken::Index,
            virtio_queue::Error::InvalidDescriptorIndex => Broken::Chain,
            _ => Broken::Setup,
        }
    }
}

/// What a device is, for its identity on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Short stable name for messages and traces.
    pub name: &'static str,
    /// Virtio device id (section 5).
    pub id: u16,
    /// PCI class, subclass and interface: 0xCCSSII.
    pub class: u32,
    /// Largest size of each queue, powers of two.
    pub queue_sizes: &'static [u16],
}

/// What a device is lent for the length of one call.
pub struct VirtioContext<'a> {
    /// Virtual time of the call.
    pub now: VirtualTime,
    /// Features the driver accepted.
    pub features: u64,
    pub(super) ram: &'a mut Ram,
    pub(super) effects: &'a mut Effects,
    pub(super) queues: &'a mut [VirtQueue],
    /// Whether the driver is set up, the device works and may master the bus.
    pub(super) active: bool,
    pub(super) config_changed: bool,
}

impl VirtioContext<'_> {
    /// Whether the device may use its queues; if not, queues look empty, and what is completed or
    /// written goes nowhere.
    pub fn active(&self) -> bool {
        self.active
    }

    /// Chains waiting in queue `queue`. Take that many at most in one call: a hostile driver can
    /// lay a ring over itself so that taking never ends.
    ///
    /// # Errors
    /// [`Broken`] when the ring is inconsistent.
    pub fn available(&mut self, queue: usize) -> Result<u16, Broken> {
        match self.queues.get(queue) {
            Some(queue) if self.active => queue.available(self.ram),
            _ => Ok(0),
        }
    }

    /// Takes the next chain of queue `queue`.
    ///
    /// # Errors
    /// [`Broken`] when ring or chain are malformed.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Broken> {
        match self.queues.get_mut(queue) {
            Some(queue) if self.active => queue.pop(self.ram),
            _ => Ok(None),
        }
    }

    /// Gives back the last `count` chains taken from queue `queue`.
    pub fn unpop(&mut self, queue: usize, count: u16) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.unpop(count);
        }
    }

    /// Hands chain `head` back to the driver with `written` bytes written to it.
    ///
    /// # Errors
    /// [`Broken`] when the ring does not take it.
    pub fn push(&mut self, queue: usize, head: u16, written: u32) -> Result<(), Broken> {
        match self.queues.get_mut(queue) {
            Some(queue) if self.active => queue.push(self.ram, head, written),
            _ => Ok(()),
        }
    }

    /// Copies `pieces` out of guest memory, `len_max` bytes at most.
    ///
    /// # Errors
    /// [`Broken::Address`] when a piece is not RAM.
    pub fn read(&self, pieces: &[Piece], len_max: u64) -> Result<Vec<u8>, Broken> {
        Ok(gather(self.ram, pieces, len_max)?)
    }

    /// Copies `bytes` into `pieces` as far as both reach; returns how many.
    ///
    /// # Errors
    /// [`Broken::Address`] when a piece is not RAM.
    pub fn write(&mut self, pieces: &[Piece], bytes: &[u8]) -> Result<u32, Broken> {
        if self.active { Ok(scatter(self.ram, pieces, bytes)?) } else { Ok(0) }
    }

    /// Sends something out of the machine.
    pub fn output(&mut self, output: Output) {
        self.effects.push(Effect::Output(output));
    }

    /// Arms or disarms timer `timer` of the device.
    pub fn timer(&mut self, timer: u32, at: Option<VirtualTime>) {
        self.effects.timer(timer, at);
    }

    /// The device's configuration changed on its own: the driver is told.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }
}

/// A virtio device behind a transport: a pure state machine.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Device-type features it offers, without those of the transport.
    fn features(&self) -> u64;

    /// Its configuration structure as the driver reads it.
    fn config(&self) -> Vec<u8>;

    /// The driver writes at byte `offset` of the configuration structure.
    fn config_write(&mut self, _cx: &mut VirtioContext<'_>, _offset: u64, _from: &[u8]) {}

    /// The driver made chains available in queue `queue`.
    ///
    /// # Errors
    /// [`Broken`] when the driver's request makes going on impossible.
    fn notified(&mut self, cx: &mut VirtioContext<'_>, queue: usize) -> Result<(), Broken>;

    /// A timer fired.
    ///
    /// # Errors
    /// As [`VirtioDevice::notified`].
    fn timer_fired(&mut self, _cx: &mut VirtioContext<'_>, _timer: u32) -> Result<(), Broken> {
        Ok(())
    }

    /// Something arrives from outside.
    ///
    /// # Errors
    /// As [`VirtioDevice::notified`].
    fn deliver(&mut self, _cx: &mut VirtioContext<'_>, _what: Delivery) -> Result<(), Broken> {
        Ok(())
    }

    /// Frames that can be delivered now and will not be dropped for want of room.
    fn frame_room(&self) -> usize {
        0
    }

    /// Ids of disk requests whose time has come.
    fn due(&self, _now: VirtualTime) -> Vec<u64> {
        Vec::new()
    }

    /// Disk requests without a completion yet.
    fn outstanding(&self) -> Vec<DiskRequest> {
        Vec::new()
    }

    /// The driver resets the device: it forgets chains. What is under way outside stays known.
    fn reset(&mut self);

    /// Adds the device's section as instance `instance`.
    fn save(&self, instance: u32, sections: &mut Sections);

    /// Takes the device's section of instance `instance`.
    ///
    /// # Errors
    /// [`RestoreError`] when it is missing or not valid for this device.
    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError>;
}
