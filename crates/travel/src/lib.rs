//! Time travel: a replay that goes to any point of its recording, forwards and backwards.
//!
//! ```text
//!   Travel  where to go, what to stop at          travel, search
//!     |-- History   checkpoints in memory         history, pages
//!     |-- Far       checkpoints kept by others    far
//!     |-- Scouts    others that search too        scouts
//!     |-- Sandbox   disks and consoles            sandbox
//!     '-- Replayer  what comes in where           crate `replay`
//! ```
//!
//! Going back is going to the last checkpoint before, and forwards from there (mechanisms L1, L2).
//! Invariants: a point is reached in the same state however it is reached; checkpoints change only
//! what it costs; what a debugger sets (breakpoints, watched bytes) is no state of the guest.

#![forbid(unsafe_code)]

mod compare;
mod far;
mod history;
mod look;
mod pages;
mod sandbox;
mod scouts;
mod search;
mod travel;
mod watched;

pub use compare::{Difference, first_difference};
pub use far::{Arrival, Far};
pub use look::{NotMapped, linear_rip, read_memory};
pub use sandbox::Sandbox;
pub use scouts::Engines;
pub use search::{Stops, Touch};
pub use travel::{Halt, More, Position, Reboot, Travel, TravelError};
pub use watched::{Piece, Watched};
