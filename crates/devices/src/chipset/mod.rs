//! The chipset of a PC: one file per device, their ports in one table.
//!
//! Invariants: no device ticks (counters are functions of virtual time, timers are armed for the
//! next edge only); an interrupt line is pushed as an effect only when it changes; any sequence of
//! guest accesses is answered without a panic.

pub mod acpi_pm;
pub mod cmos;
pub mod debug_exit;
pub mod i8042;
pub mod ioapic;
pub mod pic;
pub mod pit;
pub mod ports;
pub mod post;
pub mod pvpanic;
mod rate;
pub mod serial;
#[cfg(test)]
mod testing;

pub use acpi_pm::AcpiPm;
pub use cmos::Cmos;
pub use debug_exit::DebugExit;
pub use i8042::I8042;
pub use ioapic::Ioapic;
pub use pic::Pic;
pub use pit::Pit;
pub use post::Post;
pub use pvpanic::Pvpanic;
pub use serial::Serial;
