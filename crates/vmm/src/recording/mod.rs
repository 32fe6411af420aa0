//! Recordings: a folder with everything it takes to run a machine again, bit for bit.
//!
//! ```text
//!   recording.json     what the machine was, and which files it came from      manifest, identity
//!   kernel, initrd     copies of what it booted from
//!   diskN.qcow2        what it wrote, over the image it was given, which stays as it was
//!   events.log         everything that entered it                              log_file
//! ```
//!
//! Twins: [`recorder`] makes one while a VM runs, [`player`] runs it again.

mod bisect;
mod debug;
mod error;
mod identity;
mod listing;
mod log_file;
mod manifest;
mod player;
mod recorder;
mod trace;

pub use bisect::{BisectSpec, Found, Predicate, bisect};
pub use debug::{DebugSpec, Listen, debug};
pub use error::RecordingError;
pub use listing::{Event, Listing};
use player::Opened;
pub(crate) use player::{LogFeed, Stretch};
pub use player::{Place, ReplayReport, ReplaySpec, replay};
pub(crate) use recorder::{Recording, set_up};
pub use trace::{TraceLine, TraceSpec, TraceWhat, trace};
