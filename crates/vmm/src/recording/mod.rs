//! Recordings: a folder with everything it takes to run a machine again, bit for bit.
//!
//! ```text
//!   recording.json     what the machine was, and which files it came from      manifest, identity
//!   kernel, initrd     copies of what it booted from
//!   diskN.qcow2        what it wrote, over the image it was given, which stays as it was
//!   start              the checkpoint it begins with, if not with power-on     live
//!   checkpoint-N       checkpoints along the way, if they were asked for      along
//!   events.log         everything that entered it                              log_file
//! ```
//!
//! Twins: [`recorder`] makes one from power-on and [`live`] one of a running VM; [`player`] runs
//! it again from what [`opened`] finds.

mod along;
mod bisect;
mod debug;
mod error;
mod identity;
mod listing;
mod live;
mod log_file;
mod manifest;
mod opened;
mod player;
mod recorder;
mod trace;

pub(crate) use along::{NOTE, Note, folder};
pub use bisect::{BisectSpec, Found, Predicate, bisect};
pub use debug::{DebugSpec, compare_engines, debug};
pub use error::RecordingError;
pub use listing::{Event, Listing};
pub(crate) use live::LiveRecording;
pub(crate) use log_file::LogFile;
pub(crate) use manifest::LOG;
use opened::Opened;
pub use player::{From, Place, ReplayReport, ReplaySpec, replay};
pub(crate) use player::{LogFeed, Stretch};
pub(crate) use recorder::{Recorded, Recording, set_up};
pub use trace::{ConsoleBytes, TraceLine, TraceSpec, TraceWhat, trace};
