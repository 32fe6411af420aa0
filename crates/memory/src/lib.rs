//! Guest RAM: one shared mapping, the write trap, epochs, copy on write, code pages, marks of
//! executed code, and page hashes.
//!
//! Invariants: every write by the guest or a device runs the write trap of its page first, once an
//! epoch; no Rust reference into guest memory ever exists, only copies in and out; RAM is never
//! moved or hole-punched while mapped.

mod accesses;
mod area;
mod cow;
mod mapping;
mod present;
mod ram;
mod restored;
mod traps;
mod view;
mod visits;
mod words;

pub use accesses::AccessWatch;
pub use area::Area;
pub use cow::{CowCounts, CowGuest, CowSaver, Page, PageSink, Pages, Taken};
pub use mapping::RamError;
pub use ram::{Layout, NoRam, Ram, RamOffset};
pub use restored::{PageRun, RamLayer, RestoredRam};
pub use traps::{Epoch, Overwritten};
pub use view::RamView;
pub use visits::{VISIT_SIZE, Visited};
