//! Hardware exceptions raised inside translations: the handler continues at the trampoline that
//! leaves, and the dispatcher has the fall-back engine raise the guest's exception.
//!
//! SIGFPE, SIGSEGV, SIGILL and SIGBUS are handled once per process. When the interrupted RIP is
//! in watched code memory, RIP and RFLAGS go to RDI and RSI, which are scratch there, and the
//! trampoline takes over; otherwise the handler that was there before runs.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::TranslateError;
use crate::code_memory::CodeMemory;

/// Code memories watched at once.
const WATCHED_MAX: usize = 256;
const SIGNALS: [c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];
/// Value of `base` while an entry is being filled.
const CLAIMED: usize = 1;

/// One watched code memory; free when `base` is 0.
struct Watched {
    base: AtomicUsize,
    size: AtomicUsize,
    trampoline: AtomicUsize,
}

static WATCHED: [Watched; WATCHED_MAX] = [const {
    Watched {
        base: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        trampoline: AtomicUsize::new(0),
    }
}; WATCHED_MAX];

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; SIGNALS.len()]>);
// SAFETY: each entry is written once, before the handler that reads it is installed.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous =
    Previous(UnsafeCell::new([const { MaybeUninit::uninit() }; SIGNALS.len()]));

/// Keeps a code memory watched; ends the watch when dropped.
pub(crate) struct Watch(usize);

/// Watches `code`, whose trampoline for faults is at offset `trampoline`.
pub(crate) fn watch(code: &CodeMemory, trampoline: u32) -> Result<Watch, TranslateError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(install)
        .map_err(|errno| TranslateError::Signal(io::Error::from_raw_os_error(errno)))?;
    for (index, entry) in WATCHED.iter().enumerate() {
        let claim = entry.base.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_ok() {
            let base = code.base() as usize;
            entry.size.store(code.size(), Ordering::Release);
            entry.trampoline.store(base + trampoline as usize, Ordering::Release);
            entry.base.store(base, Ordering::Release);
            return Ok(Watch(index));
        }
    }
    Err(TranslateError::TooMany { max: WATCHED_MAX })
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED[self.0].base.store(0, Ordering::Release);
    }
}

fn install() -> Result<(), i32> {
    for (index, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: a zeroed sigaction is valid; the handler has the signature SA_SIGINFO asks for;
        // `PREVIOUS` is filled by a first call, before the handler can run.
        let result = unsafe {
            let previous = (*PREVIOUS.0.get())[index].as_mut_ptr();
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            match libc::sigaction(signal, ptr::null(), previous) {
                0 => libc::sigaction(signal, &action, ptr::null_mut()),
                failed => failed,
            }
        };
        if result != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
    }
    Ok(())
}

/// The trampoline of the code memory that `rip` is in.
fn trampoline(rip: usize) -> Option<usize> {
    WATCHED.iter().find_map(|entry| {
        let base = entry.base.load(Ordering::Acquire);
        let inside = base > CLAIMED && rip.wrapping_sub(base) < entry.size.load(Ordering::Acquire);
        inside.then(|| entry.trampoline.load(Ordering::Acquire))
    })
}

unsafe extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext to an SA_SIGINFO handler.
    let (code, registers) =
        unsafe { ((*info).si_code, &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    let rip = registers[libc::REG_RIP as usize];
    // Sent by the kernel for an instruction, not by a process (sigaction(2): si_code > 0).
    if code > 0
        && let Some(trampoline) = trampoline(rip as usize)
    {
        registers[libc::REG_RDI as usize] = rip;
        registers[libc::REG_RSI as usize] = registers[libc::REG_EFL as usize];
        registers[libc::REG_RIP as usize] = trampoline as i64;
        return;
    }
    chain(signal, info, context);
}

/// Does what the replaced handler would have done.
fn chain(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(index) = SIGNALS.iter().position(|&known| known == signal) else { return };
    // SAFETY: filled before this handler was installed, and not written since.
    let previous = unsafe { (*PREVIOUS.0.get())[index].assume_init_ref() };
    match previous.sa_sigaction {
        libc::SIG_IGN => {}
        libc::SIG_DFL => {
            // The instruction faults again, and the default action then ends the process.
            // SAFETY: restores a disposition the kernel gave us.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: SA_SIGINFO says the handler has this signature.
            let previous: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(address) };
            previous(signal, info, context);
        }
        address => {
            // SAFETY: without SA_SIGINFO the handler takes the signal alone.
            let previous: extern "C" fn(c_int) = unsafe { std::mem::transmute(address) };
            previous(signal);
        }
    }
}
