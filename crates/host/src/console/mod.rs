//! Where a guest's serial port or console leads: this terminal, a pseudo-terminal, a file, a
//! socket, or nowhere.
//!
//! Output goes through a bounded buffer to a thread of its own. What happens when nobody reads:
//!
//! When the buffer is full:
//! - stdio and file: [`ConsoleWriter::write`] waits; nothing is lost. [`ConsoleWriter::abandon`]
//!   ends every wait, and so does an error of the terminal, pipe or file (then what comes is thrown
//!   away, and the log says so).
//! - pty and unix: the oldest of [`KEPT_BYTES_MAX`] bytes is dropped and counted; who attaches
//!   later first gets what was kept.
//! - none: everything is thrown away.
//!
//! Input arrives by a callback on a thread of this module, which must not wait for long.

mod escape;
mod output;
mod peer;
mod stdio;
mod terminal;

pub use output::{ConsoleWriter, KEPT_BYTES_MAX};
pub use terminal::restore as restore_terminal;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::runtime_dir::{Listener, RuntimeDirError};

/// A console as written after `--console`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleSpec {
    /// Standard input and output; a terminal is put in raw mode.
    Stdio,
    /// A new pseudo-terminal, see [`Console::place`].
    Pty,
    /// Output into a new file (an old one is emptied), no input.
    File(PathBuf),
    /// A socket to which one program at a time connects; a new one takes over.
    Unix(PathBuf),
    /// No input, output thrown away.
    None,
}

/// What cannot be understood as a console.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no console; write stdio, pty, file=PATH, unix=PATH or none")]
pub struct ConsoleSpecError(String);

impl FromStr for ConsoleSpec {
    type Err = ConsoleSpecError;

    fn from_str(text: &str) -> Result<ConsoleSpec, ConsoleSpecError> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(ConsoleSpec::Stdio),
            None if text == "pty" => Ok(ConsoleSpec::Pty),
            None if text == "none" => Ok(ConsoleSpec::None),
            Some(("file", path)) if !path.is_empty() => Ok(ConsoleSpec::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(ConsoleSpec::Unix(path.into())),
            _ => Err(ConsoleSpecError(text.into())),
        }
    }
}

impl fmt::Display for ConsoleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConsoleSpec::Stdio => f.write_str("stdio"),
            ConsoleSpec::Pty => f.write_str("pty"),
            ConsoleSpec::File(path) => write!(f, "file={}", path.display()),
            ConsoleSpec::Unix(path) => write!(f, "unix={}", path.display()),
            ConsoleSpec::None => f.write_str("none"),
        }
    }
}

/// What the user of a console does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// Typed bytes.
    Bytes(Vec<u8>),
    /// Ctrl-A X on a terminal.
    Quit,
    /// Standard input ended; there will be no more. Output goes on.
    Closed,
}

/// Why a console cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Standard input belongs to another console.
    #[error("stdio is a console already; use pty, file=, unix= or none for the other one")]
    StdioTaken,
    /// The file cannot be written.
    #[error("cannot write console file {path:?}: {source}; choose another with file=PATH")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("console socket: {0}")]
    Socket(#[from] RuntimeDirError),
    /// Some other system call failed.
    #[error("cannot {action} for a console: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl ConsoleError {
    fn system<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> ConsoleError {
        move |source| ConsoleError::System { action, source: source.into() }
    }
}

/// An open console. Dropping it writes out what is left (for at most a few seconds if nobody
/// reads), stops its threads, and restores the terminal.
#[derive(Debug)]
pub struct Console {
    writer: ConsoleWriter,
    place: Option<PathBuf>,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Nothing,
    Stdio(#[expect(dead_code, reason = "kept for its drop")] stdio::Stdio),
    File(#[expect(dead_code, reason = "kept for its drop")] stdio::Drain),
    Peer(#[expect(dead_code, reason = "kept for its drop")] peer::Peer),
}

impl Console {
    /// Opens a console; `on_event` gets its input.
    ///
    /// Fails if its file, socket or pseudo-terminal cannot be made, or stdio is taken.
    pub fn open(
        spec: &ConsoleSpec,
        on_event: impl FnMut(ConsoleEvent) + Send + 'static,
    ) -> Result<Console, ConsoleError> {
        let (writer, place, inner) = match spec {
            ConsoleSpec::None => (ConsoleWriter::discard()?, None, Inner::Nothing),
            ConsoleSpec::Stdio => {
                let writer = ConsoleWriter::keep_all()?;
                let stdio = stdio::Stdio::open(writer.clone(), on_event)?;
                (writer, None, Inner::Stdio(stdio))
            }
            ConsoleSpec::File(path) => {
                let writer = ConsoleWriter::keep_all()?;
                let file = std::fs::File::create(path)
                    .map_err(|source| ConsoleError::File { path: path.clone(), source })?;
                let drain = stdio::Drain::start(writer.clone(), file.into())?;
                (writer, Some(path.clone()), Inner::File(drain))
            }
            ConsoleSpec::Unix(path) => {
                let writer = ConsoleWriter::keep_latest()?;
                let listener = Listener::bind(path)?;
                let peer = peer::Peer::unix(writer.clone(), listener, on_event)?;
                (writer, Some(path.clone()), Inner::Peer(peer))
            }
            ConsoleSpec::Pty => {
                let writer = ConsoleWriter::keep_latest()?;
                let (peer, place) = peer::Peer::pty(writer.clone(), on_event)?;
                (writer, Some(place), Inner::Peer(peer))
            }
        };
        Ok(Console { writer, place, inner })
    }

    /// The output side; can be cloned and moved to the machine thread.
    pub fn writer(&self) -> ConsoleWriter {
        self.writer.clone()
    }

    /// The pseudo-terminal to attach to, the socket or the file.
    pub fn place(&self) -> Option<&std::path::Path> {
        self.place.as_deref()
    }

    /// Whether keys typed at this process's terminal go to the guest.
    pub fn is_stdio(&self) -> bool {
        matches!(self.inner, Inner::Stdio(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_reads_what_it_prints_and_refuses_the_rest() {
        for text in ["stdio", "pty", "file=/a=b", "unix=x.sock", "none"] {
            assert_eq!(text.parse::<ConsoleSpec>().unwrap().to_string(), text);
        }
        for text in ["", "tty", "file", "file=", "unix=", "stdio=1"] {
            let error = text.parse::<ConsoleSpec>().unwrap_err().to_string();
            assert!(error.contains("file=PATH"), "{error}");
        }
    }
}
