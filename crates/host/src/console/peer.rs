//! Consoles at which somebody may be attached or not: a pseudo-terminal or a listening socket.
//! One thread polls for input, room for output, and new connections.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::{ConsoleError, ConsoleEvent, ConsoleWriter};
use crate::runtime_dir::Listener;
use crate::wake::{poll_all, readable};

/// How long closing waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_millis(200);

const TAKEN_OVER: &[u8] = b"\r\n[another program took over this console]\r\n";

/// A pseudo-terminal or socket.
#[derive(Debug)]
pub(super) struct Peer {
    writer: ConsoleWriter,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// One program at a time, at a socket.
    pub fn unix(
        writer: ConsoleWriter,
        listener: Listener,
        on_event: impl FnMut(ConsoleEvent) + Send + 'static,
    ) -> Result<Peer, ConsoleError> {
        listener.socket().set_nonblocking(true).map_err(ConsoleError::system("set up a socket"))?;
        Peer::start(writer, Ends { listener: Some(listener), peer: None, slave: None }, on_event)
    }

    /// A new pseudo-terminal in raw mode; gives the path to attach to as well.
    ///
    /// The slave stays open here, so that coming and going at it is not noticed and its settings
    /// persist.
    pub fn pty(
        writer: ConsoleWriter,
        on_event: impl FnMut(ConsoleEvent) + Send + 'static,
    ) -> Result<(Peer, PathBuf), ConsoleError> {
        let failed = ConsoleError::system("make a pseudo-terminal");
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(&failed)?;
        grantpt(&master).map_err(&failed)?;
        unlockpt(&master).map_err(&failed)?;
        let name = ptsname(&master, Vec::new()).map_err(&failed)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, flags, Mode::empty()).map_err(&failed)?;
        let mut settings = tcgetattr(&slave).map_err(&failed)?;
        settings.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &settings).map_err(&failed)?;
        rustix::io::ioctl_fionbio(&master, true).map_err(&failed)?;
        let place = PathBuf::from(name.to_string_lossy().into_owned());
        let master = Arc::new(master);
        writer.attach(Some(Arc::clone(&master)));
        let ends = Ends { listener: None, peer: Some(master), slave: Some(slave) };
        Ok((Peer::start(writer, ends, on_event)?, place))
    }

    fn start(
        writer: ConsoleWriter,
        ends: Ends,
        on_event: impl FnMut(ConsoleEvent) + Send + 'static,
    ) -> Result<Peer, ConsoleError> {
        let from = writer.clone();
        let thread = std::thread::Builder::new()
            .name("console".into())
            .spawn(move || ends.run(&from, on_event))
            .map_err(ConsoleError::system("start a thread"))?;
        Ok(Peer { writer, thread: Some(thread) })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.writer.close(PATIENCE);
        self.writer.abandon();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// The thread's file descriptors.
struct Ends {
    listener: Option<Listener>,
    peer: Option<Arc<OwnedFd>>,
    /// Held open only; see [`Peer::pty`].
    slave: Option<OwnedFd>,
}

impl Ends {
    fn run(mut self, writer: &ConsoleWriter, mut on_event: impl FnMut(ConsoleEvent)) {
        // Closing leaves the loop when all is written, or when `abandon` empties the buffer.
        while !(writer.is_closing() && writer.is_empty()) {
            let Ok((new, input)) = self.wait(writer) else { return };
            writer.clear_wake();
            if new {
                self.accept(writer);
            }
            if input && !self.read(&mut on_event) {
                self.lose_peer(writer);
            }
            if !self.write(writer) {
                self.lose_peer(writer);
            }
        }
    }

    /// Waits until something is to do: (a new connection, input).
    fn wait(&self, writer: &ConsoleWriter) -> std::io::Result<(bool, bool)> {
        let events = if writer.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::from_borrowed_fd(writer.wake_fd(), PollFlags::IN)];
        let listener = self.listener.as_ref().map(|listener| {
            fds.push(PollFd::new(listener.socket(), PollFlags::IN));
            fds.len() - 1
        });
        let peer = self.peer.as_ref().map(|peer| {
            fds.push(PollFd::new(peer, events));
            fds.len() - 1
        });
        poll_all(&mut fds)?;
        let ready = |index: Option<usize>| index.is_some_and(|index| readable(&fds[index]));
        Ok((ready(listener), ready(peer)))
    }

    fn accept(&mut self, writer: &ConsoleWriter) {
        let Some(listener) = &self.listener else { return };
        let Ok((new, _)) = listener.socket().accept() else { return };
        if new.set_nonblocking(true).is_err() {
            return;
        }
        let new = Arc::new(OwnedFd::from(new));
        writer.attach(Some(Arc::clone(&new)));
        if let Some(old) = self.peer.replace(new) {
            let _ = rustix::io::write(&old, TAKEN_OVER);
        }
    }

    /// Takes in what is typed; false if the peer is gone.
    fn read(&self, on_event: &mut impl FnMut(ConsoleEvent)) -> bool {
        let Some(peer) = &self.peer else { return true };
        let mut buffer = [0; 4096];
        match rustix::io::read(peer, &mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                on_event(ConsoleEvent::Bytes(buffer[..count].to_vec()));
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// Writes what the peer takes; false if it is gone.
    fn write(&self, writer: &ConsoleWriter) -> bool {
        let Some(peer) = &self.peer else { return true };
        loop {
            match writer.write_some(|bytes| rustix::io::write(peer, bytes)) {
                Ok(true) | Err(Errno::INTR) => {}
                Ok(false) | Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    /// A socket's peer that is gone makes room for the next; a pseudo-terminal stays.
    fn lose_peer(&mut self, writer: &ConsoleWriter) {
        if self.slave.is_none() {
            writer.attach(None);
            self.peer = None;
        }
    }
}
