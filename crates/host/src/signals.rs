//! Signals as events: a handler writes the number into a pipe, a thread reads it and calls back.
//!
//! A pipe rather than signalfd, because signalfd needs the signals blocked in every thread, and
//! children would inherit that.

#![expect(unsafe_code, reason = "UNSAFETY: sigaction and the handler it installs")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};

/// A signal that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C, or `kill -INT`.
    Interrupt,
    /// Ctrl-\, or `kill -QUIT`.
    Quit,
    /// `kill`: end in good order.
    Terminate,
    /// The terminal is gone.
    HangUp,
    /// The terminal has another size.
    WindowChange,
}

impl Signal {
    const ALL: [Signal; 5] =
        [Signal::Interrupt, Signal::Quit, Signal::Terminate, Signal::HangUp, Signal::WindowChange];

    fn number(self) -> i32 {
        match self {
            Signal::Interrupt => libc::SIGINT,
            Signal::Quit => libc::SIGQUIT,
            Signal::Terminate => libc::SIGTERM,
            Signal::HangUp => libc::SIGHUP,
            Signal::WindowChange => libc::SIGWINCH,
        }
    }
}

/// Why signals cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// There is one watch for the process.
    #[error("signals are watched already; drop the other watch first")]
    Watched,
    /// The system refused.
    #[error("cannot watch signals: {0}")]
    System(#[from] io::Error),
}

/// Write end of the pipe, or -1; what the handler writes to.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// While it lives, signals are events. Dropping it gives them their earlier meaning again.
#[derive(Debug)]
pub struct SignalWatch {
    earlier: Vec<(i32, libc::sigaction)>,
    write_end: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Calls `on_signal` on a thread of its own for each of `signals`, and makes the process ignore
/// SIGPIPE, so that a reader that goes away is an error of the write.
///
/// Fails if signals are watched already.
pub fn watch(
    signals: &[Signal],
    mut on_signal: impl FnMut(Signal) + Send + 'static,
) -> Result<SignalWatch, SignalError> {
    let (read_end, write_end) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| SignalError::System(errno.into()))?;
    rustix::io::ioctl_fionbio(&write_end, true).map_err(io::Error::from)?;
    let claimed =
        PIPE.compare_exchange(-1, write_end.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst);
    if claimed.is_err() {
        return Err(SignalError::Watched);
    }
    let mut watch = SignalWatch { earlier: Vec::new(), write_end: Some(write_end), thread: None };
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut number = [0];
        loop {
            match rustix::io::read(&read_end, &mut number) {
                Ok(0) => return,
                Ok(_) => {
                    let number = i32::from(number[0]);
                    let signal = Signal::ALL.into_iter().find(|one| one.number() == number);
                    signal.into_iter().for_each(&mut on_signal);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    })?;
    watch.thread = Some(thread);
    for signal in signals {
        watch.install(signal.number(), note as *const () as libc::sighandler_t)?;
    }
    watch.install(libc::SIGPIPE, libc::SIG_IGN)?;
    Ok(watch)
}

impl SignalWatch {
    fn install(&mut self, number: i32, handler: libc::sighandler_t) -> io::Result<()> {
        self.earlier.push((number, set_handler(number, handler)?));
        Ok(())
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        for (number, earlier) in self.earlier.drain(..).rev() {
            // SAFETY: `earlier` came from sigaction for this very signal.
            unsafe { libc::sigaction(number, &earlier, std::ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::SeqCst);
        // The thread reads what is left, then the end.
        drop(self.write_end.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Installs a handler and gives back what was there before.
pub(crate) fn set_handler(number: i32, handler: libc::sighandler_t) -> io::Result<libc::sigaction> {
    // SAFETY: both structs are plain data for which all zeroes is valid; `handler` is SIG_IGN,
    // SIG_DFL or an async-signal-safe `extern "C" fn(i32)` of this crate.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut earlier: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        if libc::sigaction(number, &action, &mut earlier) == 0 {
            return Ok(earlier);
        }
    }
    Err(io::Error::last_os_error())
}

/// The handler: one byte into the pipe. A full pipe already holds 65536 signals.
extern "C" fn note(number: i32) {
    let pipe = PIPE.load(Ordering::SeqCst);
    let byte = number as u8;
    // SAFETY: write is async-signal-safe; errno is put back as it was; a closed or recycled
    // descriptor cannot be here, since the handlers are removed before the pipe is closed.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(pipe, (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::process::{Signal as Raw, getpid, kill_process};

    use super::*;

    #[test]
    fn signals_arrive_in_order_until_dropped() {
        let (sender, seen) = mpsc::channel();
        let all = [Signal::Interrupt, Signal::Terminate, Signal::HangUp, Signal::WindowChange];
        let watching = watch(&all, move |signal| sender.send(signal).unwrap()).unwrap();
        assert!(matches!(watch(&[], |_| ()), Err(SignalError::Watched)));
        let raws = [Raw::INT, Raw::TERM, Raw::HUP, Raw::WINCH];
        for (signal, raw) in all.into_iter().zip(raws) {
            kill_process(getpid(), raw).unwrap();
            assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(signal));
        }
        kill_process(getpid(), Raw::PIPE).unwrap();
        drop(watching);
        kill_process(getpid(), Raw::WINCH).unwrap();
        assert!(seen.recv_timeout(Duration::from_millis(50)).is_err());
        drop(watch(&all, |_| ()).unwrap());
    }
}
