//! Block device (virtio 1.2 section 5.2): private buffers, deterministic completion times.
//!
//! A request leaves as an output the moment it is taken from the queue, and completes at a virtual
//! time computed from the request alone; the host has until then, and the machine waits for it if
//! it is late. So completions need no journal (mechanism F12), and a request stays in the table of
//! those in flight, to be issued again, until then (F13).

mod device;
mod regs;
mod request;
mod saved;

pub use device::{Blk, BlkSpec};
pub use saved::{BlkSaved, InFlightSaved, OperationSaved};
