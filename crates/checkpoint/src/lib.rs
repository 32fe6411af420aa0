//! A machine at one execution point, kept: captured while it runs, saved in the background to a
//! folder, restored lazily, any number of times (mechanisms C1 to C10).
//!
//! ```text
//!   prepare (runs)  -> capture (stops) -> save (runs)         -> a folder, named when it is whole
//!   folder, opened  -> restore: RAM mapped, sections loaded   -> a machine that goes on
//! ```
//!
//! Invariants:
//! - the stop does nothing whose cost grows with RAM, allocates nothing of that order, and touches
//!   no file;
//! - what is at a checkpoint's final name is whole: it is written elsewhere, made durable, renamed;
//! - nothing in a folder is believed: sizes are bounded before they are used, everything but RAM is
//!   checked when it is opened, RAM when it is read through ([`Checkpoint::verify`], eager
//!   restores);
//! - what the running VM has and what the checkpoint has are different values here: `CowGuest` and
//!   `CowSaver`, an overlay and what it covers (C10).
//!
//! The format is described in docs/formats/checkpoint.md.

#![forbid(unsafe_code)]

mod capture;
mod error;
mod index;
mod leftovers;
mod lineage;
mod manifest;
mod memory_file;
mod open;
mod save;
mod sections;
mod store;

pub use capture::{Captured, capture};
pub use error::CheckpointError;
pub use lineage::{adopt, merge, prune};
pub use manifest::{DiskKept, DiskPolicy, Id, Manifest, PackedKept, Parent};
pub use open::{Checkpoint, DEPTH_MAX, RestoredMachine};
pub use save::{Progress, SaveOptions, SavedSaver, Saver, Since, Summary, save_now};
pub use sections::DiskReads;
