//! Why a verb failed, and the exit status that goes with it.

use std::io;

use vmm::client::ClientError;
use vmm::{ExitStatus, VmError};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Fail {
    /// A VM cannot be had, or ended badly.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A checkpoint is no good.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    /// A running VM did not do what it was asked.
    #[error("{name}: {source}")]
    Client {
        /// Its name.
        name: String,
        /// What happened.
        source: ClientError,
    },
    /// There is no such VM.
    #[error("no VM named {0:?} is running; `doppel list` shows those that are")]
    NoVm(String),
    /// What was asked for is wrong.
    #[error("{0}")]
    Usage(String),
    /// The host failed.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl Fail {
    /// The exit status.
    pub fn status(&self) -> ExitStatus {
        match self {
            Fail::Vm(error) => error.status(),
            Fail::Client { source: ClientError::Refused(_), .. } => ExitStatus::Configuration,
            Fail::Client { .. } | Fail::Host { .. } => ExitStatus::Host,
            Fail::NoVm(_) | Fail::Checkpoint(_) | Fail::Usage(_) => ExitStatus::Configuration,
        }
    }
}
