//! Standard input and output as a console, and files: output by blocking writes on a thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};

use super::escape::{EscapeFilter, HELP, Typed};
use super::terminal::RawMode;
use super::{ConsoleError, ConsoleEvent, ConsoleWriter};
use crate::wake::{Wake, poll_all, readable};

/// How long closing waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(3);

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The claim on standard input and output.
#[derive(Debug)]
struct Claim;

impl Drop for Claim {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::SeqCst);
    }
}

/// Standard input and output. Fields are dropped in order: input stops, output is written out,
/// the terminal is restored.
#[derive(Debug)]
pub(super) struct Stdio {
    _input: Input,
    _output: Drain,
    _raw: Option<RawMode>,
    _claim: Claim,
}

impl Stdio {
    pub fn open(
        writer: ConsoleWriter,
        on_event: impl FnMut(ConsoleEvent) + Send + 'static,
    ) -> Result<Stdio, ConsoleError> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(ConsoleError::StdioTaken);
        }
        let claim = Claim;
        let output = rustix::io::fcntl_dupfd_cloexec(stdout(), 0)
            .map_err(ConsoleError::system("open standard output"))?;
        let raw = RawMode::enter()?;
        let output = Drain::start(writer.clone(), output)?;
        // Scripts pipe any bytes in; only at a terminal is Ctrl-A special.
        let filter = raw.is_some().then(EscapeFilter::default);
        let input = Input::start(writer, filter, on_event)?;
        Ok(Stdio { _input: input, _output: output, _raw: raw, _claim: claim })
    }
}

/// The thread that reads standard input.
#[derive(Debug)]
struct Input {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Input {
    fn start(
        writer: ConsoleWriter,
        filter: Option<EscapeFilter>,
        on_event: impl FnMut(ConsoleEvent) + Send + 'static,
    ) -> Result<Input, ConsoleError> {
        let wake = Arc::new(Wake::new().map_err(ConsoleError::system("make an eventfd"))?);
        let for_thread = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name("console input".into())
            .spawn(move || read_input(&for_thread, &writer, filter, on_event))
            .map_err(ConsoleError::system("start a thread"))?;
        Ok(Input { wake, thread: Some(thread) })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn read_input(
    wake: &Wake,
    writer: &ConsoleWriter,
    mut filter: Option<EscapeFilter>,
    mut on_event: impl FnMut(ConsoleEvent),
) {
    let mut buffer = [0; 4096];
    loop {
        let mut fds =
            [PollFd::from_borrowed_fd(stdin(), PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        if poll_all(&mut fds).is_err() || readable(&fds[1]) {
            return;
        }
        let typed = match rustix::io::read(stdin(), &mut buffer) {
            Ok(0) => return on_event(ConsoleEvent::Closed),
            Ok(count) => &buffer[..count],
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // A terminal that is gone, or one that is another job's now.
            Err(_) => return on_event(ConsoleEvent::Closed),
        };
        let Some(filter) = &mut filter else {
            on_event(ConsoleEvent::Bytes(typed.to_vec()));
            continue;
        };
        for found in filter.feed(typed) {
            match found {
                Typed::Bytes(bytes) => on_event(ConsoleEvent::Bytes(bytes)),
                Typed::Quit => on_event(ConsoleEvent::Quit),
                Typed::Help => writer.write(HELP.as_bytes()),
            }
        }
    }
}

/// The thread that writes a console's output to a file descriptor, losing nothing.
#[derive(Debug)]
pub(super) struct Drain {
    writer: ConsoleWriter,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    pub fn start(writer: ConsoleWriter, to: OwnedFd) -> Result<Drain, ConsoleError> {
        let from = writer.clone();
        let thread = std::thread::Builder::new()
            .name("console output".into())
            .spawn(move || {
                while let Some(chunk) = from.next_chunk() {
                    if let Err(error) = write_all(to.as_fd(), &chunk) {
                        tracing::warn!("console output is lost from here on: {error}");
                        return from.abandon();
                    }
                }
            })
            .map_err(ConsoleError::system("start a thread"))?;
        Ok(Drain { writer, thread: Some(thread) })
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let written = self.writer.close(PATIENCE);
        // A write to a stopped terminal cannot be ended; leave its thread to the process's end.
        if let Some(thread) = self.thread.take().filter(|_| written) {
            let _ = thread.join();
        }
        self.writer.abandon();
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
