//! Recording what enters a machine, and running it again (mechanisms L1, L2, L5).
//!
//! Twins: [`Recorder`] writes every input with its execution point; [`Replayer`] runs a machine of
//! the same beginning to each point and lets the same input in. Invariants: the replayer lets in
//! nothing that is not in the log; a state hash in the log that the machine does not have is
//! reported with its point, and nothing after it is run.

#![forbid(unsafe_code)]

mod record;
mod replay;

pub use record::Recorder;
pub use replay::{Divergence, Progress, ReplayError, Replayer};
