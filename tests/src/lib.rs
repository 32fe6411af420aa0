//! Harness of the whole-machine tests: a machine run in virtual time alone, its console captured.

#![forbid(unsafe_code)]

mod harness;

pub use harness::{Captured, Ended, Guest, guest_cache};
