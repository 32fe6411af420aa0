//! The event log: append-only, framed, checksummed, readable to the last whole frame
//! (mechanisms L1, L5). See docs/formats/event-log.md.
//!
//! ```text
//! magic "DOPPELEV"  version u32  | frame | frame | ...
//! frame: size u32  crc32 u32  body   body: entries, each coded as the difference to the last
//! ```

mod code;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::io;

use types::{ExecutionPoint, VirtualTime};

use crate::Input;

pub use read::LogReader;
pub use write::LogWriter;

/// First bytes of a log.
const MAGIC: [u8; 8] = *b"DOPPELEV";
/// Version this release writes, and the only one it reads.
pub const VERSION: u32 = 2;
/// Bytes before the first frame.
const HEADER_SIZE: usize = MAGIC.len() + 4;
/// Largest body of a frame, bytes: one input of the largest size fits.
const FRAME_SIZE_MAX: u32 = 4 << 20;
/// Bytes of entries gathered before a frame is written.
const FRAME_SIZE: usize = 32 << 10;
/// Most section hashes in one check.
const HASHES_MAX: u64 = 4096;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the machine was.
    pub point: ExecutionPoint,
    /// Virtual time before the entry, in whole microseconds.
    pub at: VirtualTime,
    /// What happened there.
    pub what: What,
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Something entered.
    Input(Input),
    /// What the machine was, to be compared.
    Check(Check),
    /// The checkpoint of this number was taken.
    Checkpoint(u32),
    /// The recording ended here in good order.
    End,
}

/// A digest of everything at one point of an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Low 64 bits of the hash of RAM and of every section, in their order.
    pub sections: Vec<u64>,
    /// Digest of everything that left the machine since the recording began.
    pub output: u64,
}

/// Why a log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file does not begin as a log does.
    #[error("not an event log: it does not begin with DOPPELEV")]
    Magic,
    /// Written by another release.
    #[error("the event log has version {found}; this release reads version {VERSION}")]
    Version {
        /// Version in the file.
        found: u32,
    },
    /// A frame is not what was written.
    #[error("the event log is damaged at byte {at}: {what}")]
    Damaged {
        /// Offset of the frame.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// The host failed.
    #[error("the event log cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

impl Entry {
    /// Virtual time as a log keeps it: whole microseconds.
    pub fn time(at: VirtualTime) -> VirtualTime {
        VirtualTime(at.0 / 1000 * 1000)
    }
}
