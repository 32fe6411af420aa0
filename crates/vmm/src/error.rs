//! Why a VM cannot be had, or ended badly, in words for the person who asked for it.

use std::io;
use std::path::PathBuf;

use boot::BootError;
use disk::DiskError;
use host::console::ConsoleError;
use host::memory_info::MemoryInfoError;
use host::net::NetError;
use host::runtime_dir::RuntimeDirError;
use host::signals::SignalError;
use machine::MachineError;

use crate::{ExitStatus, NAME_LEN_MAX, RecordingError};

/// Why a VM cannot be had, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A name that no VM can have.
    #[error(
        "--name {name:?} {problem}; a name is 1 to {NAME_LEN_MAX} of the characters A-Z a-z 0-9 . \
         _ - and does not start with a dot or a dash"
    )]
    Name {
        /// The name given.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The name belongs to a running VM.
    #[error(
        "--name {name}: a VM of this name is running (process {pid}); choose another name, or \
         `doppel stop {name}`"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// Process id of that VM, or `?`.
        pid: String,
    },
    /// An amount of memory that no machine can have.
    #[error("--memory {size} bytes {problem}; write for example --memory 512M")]
    Memory {
        /// Bytes asked for.
        size: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// More memory than there is.
    #[error(
        "--memory {}: the host has {} available; ask for less, or end something else",
        bytes(*.size), bytes(*.available)
    )]
    MemoryNotThere {
        /// Bytes asked for.
        size: u64,
        /// Bytes the host could give.
        available: u64,
    },
    /// A checkpoint cannot be restored.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    /// The amount of the host's memory cannot be found out.
    #[error(transparent)]
    MemoryInfo(#[from] MemoryInfoError),
    /// A file cannot be read.
    #[error("{flag} {path:?}: {source}{hint}")]
    File {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
        /// What to do, with its own punctuation, or empty.
        hint: &'static str,
    },
    /// The kernel, initrd or command line is no good.
    #[error("--kernel {kernel:?}: {source}")]
    Boot {
        /// The kernel file.
        kernel: PathBuf,
        /// What is wrong.
        source: BootError,
    },
    /// The initrd does not fit or is empty.
    #[error("--initrd {initrd:?}: {source}")]
    Initrd {
        /// The file.
        initrd: PathBuf,
        /// What is wrong.
        source: BootError,
    },
    /// A disk image is no good.
    #[error("--disk: {0}")]
    Disk(#[source] DiskError),
    /// The last flush of a disk failed when the VM ended.
    #[error("when the VM ended: {0}")]
    DiskFlush(#[source] DiskError),
    /// A network cannot be had.
    #[error("--net: {0}")]
    Net(#[source] NetError),
    /// A console cannot be had.
    #[error("{flag}: {source}")]
    Console {
        /// Which flag named it.
        flag: &'static str,
        /// What is wrong.
        source: ConsoleError,
    },
    /// Two flags exclude each other, or a value is out of range.
    #[error("{0}")]
    Flags(String),
    /// The machine cannot be built.
    #[error("{flag}{0}", flag = flag_of(.0))]
    Machine(#[from] MachineError),
    /// The engine cannot run on this host.
    #[error("--engine {engine}: {source}")]
    Engine {
        /// Its name.
        engine: &'static str,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The folder or a socket for running VMs cannot be made.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// `--api`: the socket cannot be made.
    #[error("--api: {0}")]
    Api(#[source] RuntimeDirError),
    /// The entry of a VM cannot be made or read.
    #[error("cannot {action} {path:?}: {source}")]
    Registry {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Signals cannot be watched.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// A thread or its runtime cannot be started.
    #[error("cannot start the {what} thread: {source}; the host may be out of processes")]
    Thread {
        /// Which.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The list of translations cannot be written.
    #[error("--perf-map {path:?}: {source}")]
    PerfMap {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log of state hashes cannot be written.
    #[error("--hash-log {path:?}: {source}")]
    HashLog {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A recording cannot be made or replayed.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Whoever waited for the VM to be ready does not want it any more.
    #[error("{0}")]
    GivenUp(String),
    /// A thread of ours panicked; the panic's own message came before.
    #[error("the {0} thread failed; this is a defect of doppel, please report it")]
    Panicked(&'static str),
}

impl VmError {
    /// The exit status that goes with it.
    pub fn status(&self) -> ExitStatus {
        match self {
            VmError::Panicked(_) => ExitStatus::Internal,
            VmError::Recording(error) => error.status(),
            VmError::MemoryInfo(_)
            | VmError::Machine(MachineError::Ram(_))
            | VmError::DiskFlush(_)
            | VmError::Engine { .. }
            | VmError::Registry { .. }
            | VmError::Signals(_)
            | VmError::Thread { .. }
            | VmError::Console { source: ConsoleError::System { .. }, .. }
            | VmError::Net(NetError::System { .. } | NetError::Passt { .. })
            | VmError::Disk(DiskError::Io { .. } | DiskError::Lock { .. }) => ExitStatus::Host,
            _ => ExitStatus::Configuration,
        }
    }
}

/// The flag that asked for what the machine refuses, where there is one to name.
fn flag_of(error: &MachineError) -> &'static str {
    match error {
        MachineError::DebugExit(..) => "--debug-exit: ",
        MachineError::Ram(_) | MachineError::Pci(_) => "",
    }
}

/// An amount of memory for people: the largest unit that divides it, or one decimal.
fn bytes(count: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "G"), (20, "M"), (10, "K")];
    for (shift, unit) in UNITS {
        if count >> shift != 0 && count.is_multiple_of(1 << shift) {
            return format!("{}{unit}", count >> shift);
        }
    }
    match UNITS.into_iter().find(|(shift, _)| count >> shift != 0) {
        Some((shift, unit)) => format!("{:.1}{unit}", count as f64 / (1u64 << shift) as f64),
        None => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_as_people_write_them() {
        for (count, text) in [
            (0, "0 bytes"),
            (1 << 20, "1M"),
            (64 << 30, "64G"),
            (1536 << 20, "1536M"),
            ((1 << 30) + 4096, "1048580K"),
            ((3 << 29) + 1, "1.5G"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
