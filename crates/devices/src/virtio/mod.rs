//! Virtio 1.2 devices over PCI: modern transport only (section 4.1), split queues (section 2.7).
//!
//! Invariants: a device touches guest memory only through its [`VirtioContext`], so a queue that is
//! off, a device that failed and a function that may not master the bus are never acted for; a
//! driver's mistake is a [`Broken`], which puts the device in the failed state, never a panic;
//! nothing a device keeps for a guest grows without a `_MAX`.

pub mod blk;
mod chain;
pub mod console;
mod context;
pub mod net;
mod queue;
pub mod rng;
#[cfg(test)]
mod tests;
mod transport;

pub use chain::{Chain, Piece};
pub use context::{Broken, Kind, VirtioContext, VirtioDevice};
pub use queue::{NO_VECTOR, QueueSaved, RingSaved, VirtQueue};
pub use transport::{VirtioPci, VirtioPciSaved};

/// Transport features (virtio 1.2 section 6).
pub mod features {
    /// Descriptors may refer to tables of descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Either side says at which index it wants to be notified next.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Device status bits (virtio 1.2 section 2.1).
pub mod status {
    /// The driver noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// The device is in the failed state until it is reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}
