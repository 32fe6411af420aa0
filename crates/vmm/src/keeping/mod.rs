//! Keeping a running VM and getting it back: the job that takes a checkpoint, and the way from a
//! checkpoint to a VM (mechanisms C1 to C10).
//!
//! ```text
//!   API --request--> Keeper --thread--> job: overlays made (C2), saver prepared
//!                                        |--order--> machine thread: captured, disks switched (C3)
//!                                        |<-reply--'
//!                                        '--> memory saved (C6), disks copied or kept, folder
//!                                             named, overlays committed back (C9)
//! ```

mod cadence;
mod flight;
mod job;
mod keeper;
mod kept;
mod lap;
mod overlays;
mod restore;
mod status;

pub(crate) use cadence::Cadence;
pub(crate) use flight::Flight;
pub(crate) use keeper::{Keeper, KeeperParts, LiveDisk};
pub(crate) use kept::VmKept;
pub(crate) use restore::{Discard, check_unchanged, prepare};
pub use restore::{free_ports, restored_spec, state_dir};
pub use status::{
    CheckpointRequest, CheckpointStatus, Compression, Phase, RecordRequest, RecordStatus,
    SaveRecordingRequest,
};

use checkpoint::Captured;
use disk::{BeforeImages, Moment, Overlay, Switched};
use memory::CowGuest;

use crate::RecordingError;
use crate::recording::{LogFile, Note, Recording};

/// What the machine thread is to do at the stop.
#[derive(Debug)]
pub(crate) struct CaptureOrder {
    pub guest: Box<OpaqueGuest>,
    /// Overlays by number of the disk.
    pub overlays: Vec<(usize, Overlay)>,
    /// What keeps disks as they were at this instant, by number of the disk.
    pub before: Vec<(usize, BeforeImages)>,
    /// What this instant is to a recording.
    pub mark: Option<Mark>,
    pub reply: std::sync::mpsc::Sender<CapturedVm>,
}

/// What the instant of a checkpoint is to a recording.
#[derive(Debug)]
pub(crate) enum Mark {
    /// Its beginning, with the log to be written.
    Begin(LogFile),
    /// The checkpoint of this number along it.
    Along(u32),
    /// The end of one log and the beginning of the next; with a check at the end if a recording
    /// is to end there.
    Next { log: LogFile, check: bool },
}

/// What came of a mark.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub note: Option<Note>,
    /// The recording whose log ended, to be dropped by who may wait.
    pub old: Option<Recording>,
}

/// The machine's side of a copy-on-write instant.
pub(crate) struct OpaqueGuest(pub CowGuest);

impl std::fmt::Debug for OpaqueGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CowGuest")
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct CapturedVm {
    pub captured: Captured,
    pub switched: Vec<(usize, Switched)>,
    pub stun_ns: u64,
    /// Whether the mark was made, if one was to be.
    pub marked: Result<Marked, RecordingError>,
    /// Moments of disks, by number of the disk.
    pub moments: Vec<(usize, Moment)>,
}

/// Why a checkpoint was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    #[error("another checkpoint of this VM is being taken; wait for it, or cancel it")]
    Busy,
    #[error("the folder {0:?} must be an absolute path")]
    Relative(std::path::PathBuf),
    #[error(
        "{0:?} is not a checkpoint that this VM was restored from or that was taken of it since \
         it was started; leave out --incremental-from"
    )]
    NotKin(std::path::PathBuf),
    #[error("the VM is being recorded into {0:?}; end that first with `doppel record --stop`")]
    Recorded(std::path::PathBuf),
    #[error("the VM is not being recorded")]
    NotRecorded,
    #[error("the VM has a flight recorder; use `doppel save-recording`")]
    Flight,
    #[error("the VM has no flight recorder; it was started without --flight-recorder")]
    NoFlight,
    #[error("the flight recorder has no checkpoint yet; try again in a moment")]
    NothingYet,
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// What a recording needs of the VM.
    #[error("{0}")]
    Vm(String),
    #[error(
        "the checkpoint is there, but {overlay:?} could not be committed back into its image: \
         {source}; the VM goes on with it, and whoever opens the image next commits it"
    )]
    NotCommitted { overlay: std::path::PathBuf, source: Box<KeepError> },
    #[error("the VM has ended")]
    Ended,
    #[error("cannot start a thread: {0}; the host may be out of processes")]
    Thread(std::io::Error),
}
