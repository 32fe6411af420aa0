//! The process around one machine: what may be asked for, the thread that runs it, its lifecycle,
//! and the doors through which the outside reaches it.
//!
//! ```text
//!   signals, API, terminal --> Control --> Inbox --> Driver (machine thread) --> Machine
//!   consoles, networks ----------------------^         |
//!   consoles, disks, networks <--------- Ports <-------'
//! ```
//!
//! Invariants:
//! - one thread owns the machine; everybody else leaves a word in the [`inbox`], which the thread
//!   reads between quanta, so that the outside enters only at an execution point;
//! - nothing is made or changed on the host before a [`VmSpec`] is found good ([`prepare`]);
//! - on every way out disks are flushed, locks released, sockets removed, the terminal restored;
//! - what ends a VM is an [`End`], and each has one exit status.

#![forbid(unsafe_code)]

pub mod api;
mod boot_files;
pub mod client;
mod clock;
mod control;
mod debugging;
mod driver;
mod end;
mod error;
mod hash_log;
mod inbox;
mod keeping;
mod lifecycle;
mod name;
mod overwrite;
mod ports;
mod prepare;
mod process;
mod recording;
pub mod registry;
mod spec;
mod status;

pub use debugging::{DebugReply, DebugRequest, Listen};
pub use end::{End, Status as ExitStatus};
pub use error::VmError;
pub use keeping::{
    CheckpointRequest, CheckpointStatus, Compression, Phase, RecordRequest, RecordStatus,
    SaveRecordingRequest, free_ports, restored_spec, state_dir,
};
pub use lifecycle::State;
pub use name::{NAME_LEN_MAX, check_name};
pub use process::run;
pub use recording::{
    BisectSpec, ConsoleBytes, DebugSpec, Event, Found, From, Listing, Place, Predicate,
    RecordingError, ReplayReport, ReplaySpec, TraceLine, TraceSpec, TraceWhat, bisect,
    compare_engines, debug, replay, trace,
};
pub use spec::{
    Checks, EngineKind, FlightSpec, GRACE_DEFAULT, MEMORY_SIZE_DEFAULT, MEMORY_SIZE_MIN, NetKind,
    NetSpec, RestoreSpec, VmSpec,
};
pub use status::{ConsoleInfo, DiskInfo, EngineCounter, Metrics, NetInfo, VmInfo};

pub use cpu::cpuid::Model;
pub use disk::{DiskSpec, Format};
pub use host::console::{Console, ConsoleEvent, ConsoleSpec};
pub use host::net::Forward;
pub use types::VirtualTime;
