//! Recording what enters a machine, and running it again: the same inputs at the same execution
//! points (mechanisms L1, L2, L5).
//!
//! Invariants: a recorded machine is one that is watched, nothing about it differs; a replayed one
//! gets inputs from the log alone; what leaves a machine is never logged, only its digest, which
//! the replay compares.

#![forbid(unsafe_code)]

mod digest;
mod record;
mod replay;

pub use digest::{OutputDigest, Watched};
pub use record::{Recorder, check_of};
pub use replay::{Divergence, Entries, Progress, ReplayError, Replayer, Target};
