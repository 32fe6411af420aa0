//! PCI: functions, configuration space, MSI-X and the one bus (PCI Local Bus Specification 3.0).
//!
//! Invariants: a function never sees where its BARs lie, only offsets in them; no configuration
//! or BAR access of a guest panics; lines and windows are derived, never saved.

mod bridge;
mod bus;
mod config;
mod function;
mod msix;
mod saved;
#[cfg(test)]
mod tests;

pub use bridge::Bridge;
pub use bus::{BusError, CONFIG_PORTS, GSI_FIRST, HOLE_END, HOLE_START, PciBus, SLOTS_MAX};
pub use bus::{interrupt_gsi, timer_name, timer_slot};
pub use config::{Bar, BarWidth, ConfigSpace, Identity, command};
pub use function::{Delivery, PciFunction};
pub use msix::{Msix, VECTORS_MAX};
pub use saved::{BusSaved, ConfigSpaceSaved, MsixSaved};
