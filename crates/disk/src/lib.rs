//! Disk images: raw and qcow2 files with backing files, locked against other users, and one I/O
//! thread per disk that serves the machine's requests.
//!
//! Invariants:
//! - an image is opened for writing by one process at a time, QEMU's tools included ([`lock`]);
//! - what format an image has is never decided by bytes a guest could have written ([`open`]);
//! - no image file, however damaged or hostile, causes a panic or an unbounded allocation: headers
//!   and tables are checked here ([`header`], [`check`]) before the qcow2 library sees them, and a
//!   panic inside that library becomes a [`DiskError`];
//! - after a discard the range reads as zeroes, on every file system and in every format, so that
//!   a replay on another host sees the same bytes.
//!
//! qcow2 has no checksums: a bit flipped in guest data, or in a table so that it still is
//! plausible, cannot be noticed by any reader.

#![forbid(unsafe_code)]

mod backend;
mod before;
mod chain;
mod check;
mod commit;
mod copy;
mod error;
mod header;
mod io;
mod lock;
mod marker;
mod open;
mod overlay;
mod qcow2;
mod raw;
mod scratch;

pub use backend::{BlockBackend, Place};
pub use before::{BeforeImages, image_of_before};
pub use chain::BACKING_DEPTH_MAX;
pub use commit::{CommitState, CommitWatch, commit_now};
pub use copy::copy_disk;
pub use error::DiskError;
pub use io::{DiskHandle, DiskIo, Moment, PENDING_BYTES_MAX, REQUEST_LEN_MAX, Switched};
pub use marker::Marker;
pub use open::{DiskSpec, Format, backing_chain, open};
pub use overlay::{Overlay, Parent, Retained, TakenLayer, empty_overlay};
pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;
pub use scratch::{ScratchDisk, ScratchMoment};

/// Bytes in a sector: the granularity of every size, offset and length of a disk.
pub const SECTOR_SIZE: u64 = 512;
