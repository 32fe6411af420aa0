//! The vCPU: everything about an x86-64 processor but how its instructions are executed.
//!
//! Invariants: no host fact is visible to the guest; guest faults are values ([`Exception`]),
//! never errors or panics; what is derived (TLB, mode) is never saved.

#![forbid(unsafe_code)]

mod bus;
pub mod lapic;
mod registers;

pub use bus::Bus;
pub use registers::{FxArea, Registers, StatusFlags, flag, gpr};
