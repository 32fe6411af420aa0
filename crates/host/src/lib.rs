//! The operating system behind small interfaces: clock, console, network, signals, sockets and
//! what memory there is.
//!
//! Invariants:
//! - nothing here knows the guest: bytes and frames go in and out, callbacks run on threads of
//!   this crate, and the machine thread is never made to wait without a way to end the wait;
//! - every thread, child process, socket file and terminal setting made here is undone on drop;
//! - unsafe code only where the system call has no safe form: tap's ioctl, signal handlers, and
//!   the moment between fork and exec.

pub mod clock;
pub mod console;
pub mod memory_info;
pub mod net;
pub mod runtime_dir;
pub mod signals;
mod wake;
