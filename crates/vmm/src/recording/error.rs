//! Why a recording cannot be made or replayed.

use std::io;
use std::path::{Path, PathBuf};

use disk::DiskError;
use journal::LogError;
use replay::ReplayError;
use travel::TravelError;

use crate::ExitStatus;

/// Why a recording cannot be made or replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The folder to be made is there.
    #[error("{0:?} is there already and not empty; a recording gets a folder of its own")]
    Occupied(PathBuf),
    /// No recording is there.
    #[error("{0:?} is no recording: it has no recording.json")]
    NotOne(PathBuf),
    /// The manifest is not what this release writes.
    #[error("{path:?}: {problem}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another release's machine would not come to the same here.
    #[error(
        "the recording was made by {maker}, whose machine has semantics {found}; {this} has \
         semantics {known} and would come to something else; replay it with that release, or with \
         --other-semantics to see where it differs"
    )]
    Semantics {
        /// Who made it.
        maker: String,
        /// What its machine does.
        found: u32,
        /// Who is to replay it.
        this: String,
        /// What this one's does.
        known: u32,
    },
    /// A file the recording needs has changed since.
    #[error(
        "{path:?} is not what it was when the recording was made: {problem}; the replay needs it \
         as it was"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// In what it differs.
        problem: String,
    },
    /// A file cannot be made, read or written.
    #[error("cannot {action} {path:?}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A disk of the recording.
    #[error("disk {index} of the recording: {source}")]
    Disk {
        /// Which one, from 0.
        index: usize,
        /// What is wrong.
        source: DiskError,
    },
    /// The log cannot be written or read.
    #[error("{path:?}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LogError,
    },
    /// The replay ended early.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A journey in the recording failed.
    #[error(transparent)]
    Travel(#[from] TravelError),
    /// The conversation with gdb failed.
    #[error(transparent)]
    Gdb(#[from] gdb::ServeError<TravelError>),
    /// Names of the guest kernel's addresses cannot be read.
    #[error("{path:?}: {why}")]
    Symbols {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A checkpoint that is not there.
    #[error("the recording has no checkpoint {0}; `doppel events` lists those that were taken")]
    NoCheckpoint(u32),
    /// A place in a recording that it does not have.
    #[error("the recording ends before {0}")]
    Beyond(String),
    /// What was asked for cannot be done to it.
    #[error("{0}")]
    Asked(String),
}

impl RecordingError {
    /// For a failed operation on a file.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| RecordingError::File { action, path: path.into(), source }
    }

    /// The exit status that goes with it.
    pub fn status(&self) -> ExitStatus {
        match self {
            RecordingError::Replay(ReplayError::Divergence(_))
            | RecordingError::Travel(TravelError::Replay(ReplayError::Divergence(_))) => {
                ExitStatus::Divergence
            }
            RecordingError::File { .. } => ExitStatus::Host,
            _ => ExitStatus::Configuration,
        }
    }
}
