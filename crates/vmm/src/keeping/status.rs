//! What is asked of a checkpoint, and how far it is.

use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bytes of originals that may wait in memory when nobody says how many.
pub(crate) const COW_LIMIT_DEFAULT: u64 = 256 << 20;

fn yes() -> bool {
    true
}

/// How guest memory is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard, at a fast level.
    Zstd,
}

/// A checkpoint to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// The new folder, absolute.
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Keep the disks' images as part of the checkpoint, and let the VM go on with overlays; else
    /// the images are copied and the VM keeps them.
    #[serde(default)]
    pub keep_parent: bool,
    /// Save only what changed since this checkpoint.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub incremental_from: Option<PathBuf>,
    /// Compress memory. It is smaller, and restores read all of it before the guest goes on.
    #[serde(default)]
    pub compress: Option<Compression>,
    /// Bytes of original pages that may wait in memory for the saver.
    #[serde(default)]
    pub cow_limit: Option<u64>,
    /// Make it durable before it gets its name.
    #[serde(default = "yes")]
    pub durable: bool,
}

/// Where a checkpoint is in its making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The VM runs; folder and overlays are made.
    Preparing,
    /// The VM runs again; memory is saved.
    Saving,
    /// Disks are copied or taken note of.
    Disks,
    /// The checkpoint is there; disks go back to their images.
    Committing,
    /// All is done.
    Done,
    /// It failed; nothing of it is left, unless the error says that it is there.
    Failed,
    /// It was cancelled; nothing of it is left.
    Cancelled,
}

impl Phase {
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Phase::Done | Phase::Failed | Phase::Cancelled)
    }

    /// Whether the checkpoint can be restored.
    pub const fn is_there(self) -> bool {
        matches!(self, Phase::Committing | Phase::Done)
    }
}

/// The last checkpoint of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointStatus {
    /// Where it is in its making.
    pub phase: Phase,
    /// Its folder.
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Its id, once it has one.
    pub id: Option<String>,
    /// Pages of memory to look at, and looked at.
    pub pages: u64,
    /// See `pages`.
    pub pages_done: u64,
    /// Bytes of memory saved.
    pub bytes: u64,
    /// Bytes that they take in the folder, once that is known.
    pub stored_bytes: u64,
    /// Original pages that were copied because the guest wrote to them.
    pub copied: u64,
    /// Of them, those that the guest's thread saved itself, at the limit.
    pub overflowed: u64,
    /// How long the guest stood still, nanoseconds.
    pub stun_ns: Option<u64>,
    /// Bytes of disks to copy, and copied.
    pub disk_bytes: u64,
    /// See `disk_bytes`.
    pub disk_bytes_done: u64,
    /// Bytes that went from overlays back into images.
    pub committed_bytes: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// The images that the VM writes now.
    #[schema(value_type = Vec<String>)]
    pub disks: Vec<PathBuf>,
}

/// A recording to be made from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// Its folder, absolute, new or empty.
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Take checkpoints along it, one each so many milliseconds, ever more rarely as they become
    /// many.
    #[serde(default)]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub checkpoint_every_ms: Option<NonZeroU64>,
}

/// A recording to be made of what the flight recorder has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveRecordingRequest {
    /// Its folder, absolute, new or empty.
    #[schema(value_type = String)]
    pub folder: PathBuf,
}

/// The recording that is being made of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecordStatus {
    /// Its folder.
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Bytes of its log so far, but for what still waits in memory.
    pub log_bytes: u64,
}
