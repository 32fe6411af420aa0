//! What a PCI function is to the bus, and what the machine may deliver to one.

use journal::{DiskCompletion, DiskRequest};
use saved::{RestoreError, Sections};
use types::VirtualTime;

use super::ConfigSpace;
use crate::DeviceContext;

/// Something from outside the machine for a function that asked for it or accepts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// What became of a disk request that was due.
    Disk(DiskCompletion),
    /// An Ethernet frame without FCS for a network card.
    Frame(Vec<u8>),
    /// The link of a network card went up or down.
    Link(bool),
    /// The network card has another Ethernet address.
    Address([u8; 6]),
    /// The machine is another one from now on: whoever makes random numbers makes others.
    Generation([u8; 16]),
    /// Bytes typed at a console.
    Console(Vec<u8>),
}

/// A single-function PCI device. It emits effects through its context; timers in them are its own
/// numbers below 2^16, which the bus makes unique.
pub trait PciFunction: Send {
    /// Short stable name for messages and traces.
    fn name(&self) -> &'static str;

    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, for the bus to place BARs as firmware would.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads configuration bytes at `offset`; what lies beyond byte 255 reads as ones.
    fn config_read(&mut self, _cx: &mut DeviceContext<'_>, offset: usize, into: &mut [u8]) {
        self.config().read(offset, into);
    }

    /// Writes configuration bytes at `offset`.
    fn config_write(&mut self, cx: &mut DeviceContext<'_>, offset: usize, from: &[u8]) {
        self.config_mut().write(offset, from, cx.effects);
    }

    /// Reads at byte `offset` of BAR `bar`; the access starts inside it. `into` is all ones.
    fn bar_read(&mut self, _: &mut DeviceContext<'_>, _bar: u8, _offset: u64, _into: &mut [u8]) {}

    /// Writes at byte `offset` of BAR `bar`; the access starts inside it.
    fn bar_write(&mut self, _: &mut DeviceContext<'_>, _bar: u8, _offset: u64, _from: &[u8]) {}

    /// A timer armed by this function fired.
    fn timer_fired(&mut self, _cx: &mut DeviceContext<'_>, _timer: u32) {}

    /// Something arrives from outside; what the function does not take is dropped.
    fn deliver(&mut self, _cx: &mut DeviceContext<'_>, _what: Delivery) {}

    /// Frames that can be delivered now and will not be dropped for want of room.
    fn frame_room(&self) -> usize {
        0
    }

    /// Ids of disk requests whose time has come at `now`, in the order to complete them.
    fn due(&self, _now: VirtualTime) -> Vec<u64> {
        Vec::new()
    }

    /// All disk requests not completed yet, oldest first: to be issued again after a restore or
    /// on going live (mechanism F13).
    fn outstanding(&self) -> Vec<DiskRequest> {
        Vec::new()
    }

    /// Whether the function asserts its INTx pin now.
    fn intx(&self) -> bool {
        false
    }

    /// Back to power-up state, BARs unset. The caller disarms timers and drives lines low.
    fn reset(&mut self);

    /// Adds the function's sections as instance `instance`.
    fn save(&self, instance: u32, sections: &mut Sections);

    /// Takes the function's sections of instance `instance`.
    ///
    /// # Errors
    /// [`RestoreError`] when one is missing or not valid for this function.
    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError>;
}
