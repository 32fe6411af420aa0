//! The vocabulary every other crate speaks: guest addresses, execution points, virtual time.
//!
//! Invariants: no address or time is a bare integer across a crate boundary; nothing here knows
//! the host.

#![forbid(unsafe_code)]

mod address;
mod time;

pub use address::{Gfn, Gpa, Gva, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
pub use time::{ExecutionPoint, VirtualTime};
