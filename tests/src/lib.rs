//! Harness of the whole-machine tests: the real `doppel` as a process, or a machine run in virtual
//! time alone.
//!
//! Tests that need guest images or a release build are ignored tests in `tests/`; those that take
//! minutes are in files named `slow_*`, those with two lengths in `soak_*`. `cargo xtask test
//! [--slow]` and `cargo xtask soak` build what they need and run them.

#![forbid(unsafe_code)]

mod bare;
pub mod debian;
pub mod debian_boot;
pub mod disk_boots;
pub mod dmesg;
pub mod doppel;
mod harness;
pub mod images;
pub mod kept;
pub mod live;
pub mod net;
pub mod random;
pub mod recordings;
pub mod rsp;
pub mod scratch;
pub mod shell;
pub mod soak;
pub mod terminal;
pub mod writer;

pub use bare::{Bits, build_kernel};
pub use harness::{Captured, Ended, Guest, guest_cache};
