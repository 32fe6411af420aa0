//! What is in a recording's log, for people and programs.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use journal::{Entry, Input, LogReader, What};

use super::RecordingError;
use super::manifest::{LOG, Manifest};

/// An entry of a log with its number and the bytes it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number, from 0.
    pub number: u64,
    /// What it is.
    pub entry: Entry,
    /// Bytes it takes in the log.
    pub size: usize,
}

/// The entries of a recording's log, one after the other.
pub struct Listing {
    path: PathBuf,
    log: LogReader<BufReader<File>>,
}

impl Listing {
    /// The log of the recording in `dir`.
    ///
    /// # Errors
    /// [`RecordingError`] if there is none that this release reads.
    pub fn open(dir: &Path) -> Result<Listing, RecordingError> {
        Manifest::read(dir)?;
        let path = dir.join(LOG);
        let file = File::open(&path).map_err(RecordingError::file("read", &path))?;
        match LogReader::new(BufReader::new(file)) {
            Ok(log) => Ok(Listing { path, log }),
            Err(source) => Err(RecordingError::Log { path, source }),
        }
    }

    /// The next event; `None` at the log's end.
    ///
    /// # Errors
    /// [`RecordingError::Log`] where the log is damaged.
    pub fn next_event(&mut self) -> Result<Option<Event>, RecordingError> {
        let number = self.log.entries();
        let next = self.log.next_entry();
        let next =
            next.map_err(|source| RecordingError::Log { path: self.path.clone(), source })?;
        let size = self.log.entry_size();
        Ok(next.map(|entry| Event { number, entry, size }))
    }
}

impl Event {
    /// What [`Event::kind`] can be.
    pub const KINDS: [&str; 10] = [
        "clock",
        "console",
        "frame",
        "power-button",
        "link",
        "generation",
        "address",
        "check",
        "checkpoint",
        "end",
    ];

    /// One word for what it is.
    pub fn kind(&self) -> &'static str {
        match &self.entry.what {
            What::Input(Input::ClockAnchor { .. }) => "clock",
            What::Input(Input::Console { .. }) => "console",
            What::Input(Input::NetReceive { .. }) => "frame",
            What::Input(Input::PowerButton) => "power-button",
            What::Input(Input::NetLink { .. }) => "link",
            What::Input(Input::Generation { .. }) => "generation",
            What::Input(Input::NetAddress { .. }) => "address",
            What::Check(_) => "check",
            What::Checkpoint(_) => "checkpoint",
            What::End => "end",
        }
    }

    /// The frame that was received, if it is one.
    pub fn frame(&self) -> Option<&[u8]> {
        match &self.entry.what {
            What::Input(Input::NetReceive { frame, .. }) => Some(frame),
            _ => None,
        }
    }

    /// What was typed at the first serial port, if it is that.
    pub fn typed(&self) -> Option<&[u8]> {
        match &self.entry.what {
            What::Input(Input::Console { port: 0, bytes }) => Some(bytes),
            _ => None,
        }
    }

    /// What there is to say about it, in a few words.
    pub fn detail(&self) -> String {
        match &self.entry.what {
            What::Input(Input::ClockAnchor { advance_ns, rate_millins }) => {
                let rate = *rate_millins as f64 / 1000.0;
                format!("forward {advance_ns} ns, then {rate:.3} ns a branch")
            }
            What::Input(Input::Console { port, bytes }) => {
                format!("port {port}, {:?}", String::from_utf8_lossy(bytes))
            }
            What::Input(Input::NetReceive { nic, frame }) => {
                format!("nic {nic}, {} bytes", frame.len())
            }
            What::Input(Input::NetLink { nic, up }) => {
                format!("nic {nic}, {}", if *up { "up" } else { "down" })
            }
            What::Input(Input::Generation { id }) => {
                id.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            What::Input(Input::NetAddress { nic, mac }) => {
                format!("nic {nic}, {}", crate::prepare::mac_text(*mac))
            }
            What::Check(check) => format!("{} sections", check.sections.len()),
            What::Checkpoint(number) => format!("checkpoint {number}"),
            What::Input(Input::PowerButton) | What::End => String::new(),
        }
    }
}
