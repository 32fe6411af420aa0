//! Why a checkpoint cannot be made or used, in words for the person who named it.

use std::io;
use std::path::PathBuf;

use machine::MachineError;
use memory::RamError;
use saved::RestoreError;

/// Why a checkpoint cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused something.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is something at the name the checkpoint is to have.
    #[error("{path:?} exists; a checkpoint is written to a new folder, so choose another name")]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// The folder is no checkpoint.
    #[error("{path:?} is not a checkpoint: it has no manifest.json")]
    NotACheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// It was made by a later release.
    #[error(
        "checkpoint {path:?} has format version {found}, this release reads up to {known}; use \
         the release that made it, or a later one"
    )]
    Newer {
        /// The checkpoint.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Newest version this release reads.
        known: u64,
    },
    /// A file of it is not what the checkpoint says it is.
    #[error("checkpoint {path:?} is damaged: {what}; restore from another one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// What it was taken on top of is not there.
    #[error("checkpoint {path:?} holds changes to {parent:?}: {source}")]
    Parent {
        /// The checkpoint.
        path: PathBuf,
        /// Its parent.
        parent: PathBuf,
        /// What is wrong with that one.
        source: Box<CheckpointError>,
    },
    /// The folder at the parent's place is another checkpoint.
    #[error(
        "checkpoint {path:?} holds changes to checkpoint {expected}, but at {parent:?} there is \
         {found}; put the right one there"
    )]
    OtherParent {
        /// The checkpoint.
        path: PathBuf,
        /// Where its parent should be.
        parent: PathBuf,
        /// The parent's id.
        expected: String,
        /// The id of what is there.
        found: String,
    },
    /// A chain without end, or nearly.
    #[error("checkpoint {path:?} has more than {max} others below it; merge the chain")]
    TooDeep {
        /// The checkpoint.
        path: PathBuf,
        /// Most that are allowed.
        max: usize,
    },
    /// Its sections do not make a machine.
    #[error("checkpoint {path:?}: {source}; restore from another one")]
    State {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: RestoreError,
    },
    /// The machine it describes cannot be built.
    #[error("checkpoint {path:?}: {source}")]
    Machine {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: MachineError,
    },
    /// Guest memory cannot be had.
    #[error("checkpoint {path:?}: {source}")]
    Ram {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: RamError,
    },
    /// Somebody gave it up.
    #[error("the checkpoint was cancelled")]
    Cancelled,
}
