//! Devices as pure state machines: chipset, PCI and virtio.
//!
//! Invariants: a device knows no host; what it wants done comes out as an [`Effect`], in order;
//! time is the virtual time it is called with; every device saves all it is in one section.

#![forbid(unsafe_code)]

pub mod chipset;
mod device;
pub mod pci;
pub mod virtio;

pub use device::{Device, DeviceContext, Effect, Effects, PortRange, PowerEvent};
