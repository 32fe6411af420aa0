//! Raw mode of the terminal at standard input, undone on every way out of the process.
//!
//! The ways: dropping [`RawMode`] (an unwinding panic included); `exit` (an `atexit` function); a
//! signal that ends the process and that nobody else handles, abort included (a handler restores,
//! then lets the signal do its work); being stopped (SIGTSTP restores, SIGCONT sets raw mode
//! again). A panic hook is not among them on purpose: a panic that is caught must not end raw mode,
//! and one that is not ends in one of the ways above. SIGKILL cannot be helped: `reset` does.
//!
//! Post-processing of output stays on, so that messages of this process to standard error remain
//! readable.

#![expect(unsafe_code, reason = "UNSAFETY: what runs in signal handlers and at exit")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use super::ConsoleError;
use crate::signals::set_handler;

const TERMINAL: i32 = libc::STDIN_FILENO;
const FATAL: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGABRT];

/// Settings to go back to, and raw ones; leaked, because a handler may read them at any time.
static SAVED: AtomicPtr<libc::termios> = AtomicPtr::new(std::ptr::null_mut());
static RAW: AtomicPtr<libc::termios> = AtomicPtr::new(std::ptr::null_mut());
/// Raw mode is wanted, that is, there is a `RawMode`.
static WANTED: AtomicBool = AtomicBool::new(false);

/// While it lives, the terminal is in raw mode.
#[derive(Debug)]
pub(super) struct RawMode {
    handlers: Vec<(i32, libc::sigaction)>,
}

impl RawMode {
    /// Sets raw mode; `None` if standard input is no terminal.
    pub fn enter() -> Result<Option<RawMode>, ConsoleError> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        static AT_EXIT: Once = Once::new();
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(saved) = settings() else { return Ok(None) };
        let mut raw = saved;
        // SAFETY: `raw` is a termios filled by tcgetattr.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag = saved.c_oflag;
        SAVED.store(Box::into_raw(Box::new(saved)), Ordering::SeqCst);
        RAW.store(Box::into_raw(Box::new(raw)), Ordering::SeqCst);
        // SAFETY: `at_exit` is an `extern "C" fn()` that neither panics nor exits.
        AT_EXIT.call_once(|| _ = unsafe { libc::atexit(at_exit) });
        let mut mode = RawMode { handlers: Vec::new() };
        WANTED.store(true, Ordering::SeqCst);
        for signal in FATAL {
            mode.install(signal, on_fatal)?;
        }
        mode.install(libc::SIGTSTP, on_stop)?;
        mode.install(libc::SIGCONT, on_continue)?;
        if !apply(&RAW) {
            return Err(ConsoleError::system("set up the terminal")(io::Error::last_os_error()));
        }
        Ok(Some(mode))
    }

    /// Installs a handler unless somebody else has.
    fn install(&mut self, signal: i32, handler: extern "C" fn(i32)) -> Result<(), ConsoleError> {
        let failed = ConsoleError::system("handle signals");
        let handler = handler as *const () as libc::sighandler_t;
        let earlier = set_handler(signal, handler).map_err(failed)?;
        if earlier.sa_sigaction == libc::SIG_DFL {
            self.handlers.push((signal, earlier));
        } else {
            put_back(signal, &earlier);
        }
        Ok(())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
        for (signal, earlier) in self.handlers.drain(..) {
            let ours = [on_fatal, on_stop, on_continue]
                .map(|one: extern "C" fn(i32)| one as *const () as libc::sighandler_t);
            // A watch of signals may have replaced ours since.
            if let Ok(current) = set_handler(signal, libc::SIG_DFL)
                && !ours.contains(&current.sa_sigaction)
            {
                put_back(signal, &current);
            } else {
                put_back(signal, &earlier);
            }
        }
    }
}

/// Gives the terminal the settings it had before raw mode, if it is in raw mode; for ways out of
/// the process that run no destructors. Safe to call at any time, any number of times.
pub fn restore() {
    if WANTED.swap(false, Ordering::SeqCst) {
        apply(&SAVED);
    }
}

fn settings() -> Option<libc::termios> {
    // SAFETY: termios is plain data for which all zeroes is valid, filled by tcgetattr.
    unsafe {
        let mut settings = std::mem::zeroed();
        (libc::tcgetattr(TERMINAL, &mut settings) == 0).then_some(settings)
    }
}

fn put_back(signal: i32, action: &libc::sigaction) {
    // SAFETY: `action` came from sigaction for this signal.
    unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
}

/// Applies settings unless the terminal is another job's now, which would stop us (SIGTTOU).
/// Async-signal-safe.
fn apply(settings: &AtomicPtr<libc::termios>) -> bool {
    let settings = settings.load(Ordering::SeqCst);
    if settings.is_null() {
        return true;
    }
    // SAFETY: the pointer comes from a leaked box; tcgetpgrp, getpgrp and tcsetattr are
    // async-signal-safe.
    unsafe {
        let foreground = libc::tcgetpgrp(TERMINAL);
        let ours = foreground < 0 || foreground == libc::getpgrp();
        !ours || libc::tcsetattr(TERMINAL, libc::TCSANOW, settings) == 0
    }
}

extern "C" fn at_exit() {
    restore();
}

/// Restores, then lets the signal end the process: it is delivered when this returns.
extern "C" fn on_fatal(signal: i32) {
    restore();
    // SAFETY: signal and raise are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_stop(_: i32) {
    // SAFETY: errno is this thread's; raise is async-signal-safe.
    unsafe {
        let errno = *libc::__errno_location();
        apply(&SAVED);
        libc::raise(libc::SIGSTOP);
        *libc::__errno_location() = errno;
    }
}

extern "C" fn on_continue(_: i32) {
    // SAFETY: errno is this thread's.
    unsafe {
        let errno = *libc::__errno_location();
        if WANTED.load(Ordering::SeqCst) {
            apply(&RAW);
        }
        *libc::__errno_location() = errno;
    }
}
