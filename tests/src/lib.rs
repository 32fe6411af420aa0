//! Harness of the whole-machine tests: a machine run in virtual time alone, its console captured.

#![forbid(unsafe_code)]

mod bare;
mod harness;

pub use bare::{Bits, build_kernel};
pub use harness::{Captured, Ended, Guest, guest_cache};
