//! Hardware exceptions in generated code: one handler for the process, and a list of the code
//! memories whose owners say where a thread that faulted in them goes on.
//!
//! The handler of SIGFPE, SIGSEGV, SIGILL and SIGBUS is installed once per process. When the
//! interrupted RIP is in no watched code memory, or its owner declines, it does what the handler
//! it replaced would have done.

use std::arch::global_asm;
use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::NativeError;

/// Code memories watched at once.
const WATCHED_MAX: usize = 512;
const SIGNALS: [c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];
/// Value of `base` while an entry is being filled.
const CLAIMED: usize = 1;

/// A thread that faulted in generated code: what its owner may look at and change.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    /// Where it faulted, and goes on.
    pub rip: u64,
    /// RAX.
    pub rax: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RSP, which it keeps.
    pub rsp: u64,
    /// RFLAGS, which it keeps.
    pub rflags: u64,
    /// Where the access was, if it was a page fault.
    pub address: u64,
    /// Vector of the exception (SDM vol. 3, table 6-1).
    pub vector: i64,
}

/// Changes `at` to where the thread goes on, or declines by returning false. `base` is that of the
/// code memory, `data` what it was watched with. It runs in a signal handler.
pub type Redirect = fn(data: usize, base: usize, at: &mut Interrupted) -> bool;

/// One watched code memory; free when `base` is 0.
struct Watched {
    base: AtomicUsize,
    size: AtomicUsize,
    data: AtomicUsize,
    redirect: AtomicPtr<()>,
}

static WATCHED: [Watched; WATCHED_MAX] = [const {
    Watched {
        base: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        data: AtomicUsize::new(0),
        redirect: AtomicPtr::new(ptr::null_mut()),
    }
}; WATCHED_MAX];

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; SIGNALS.len()]>);
// SAFETY: each entry is written once, before the handler that reads it is installed.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous =
    Previous(UnsafeCell::new([const { MaybeUninit::uninit() }; SIGNALS.len()]));

/// Keeps a code memory watched; ends the watch when dropped.
#[derive(Debug)]
pub struct Watch(usize);

/// Watches the `size` bytes of generated code at `base`, installing the handler if this is the
/// first.
///
/// # Errors
/// When the handler cannot be installed, or too many code memories are watched.
///
/// # Safety
/// `redirect` does nothing that a signal handler may not do, and leads the thread to code that
/// can go on from there; what `data` stands for lives as long as the watch.
pub unsafe fn watch(
    base: usize,
    size: usize,
    data: usize,
    redirect: Redirect,
) -> Result<Watch, NativeError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(install)
        .map_err(|errno| NativeError::Signal(io::Error::from_raw_os_error(errno)))?;
    for (index, entry) in WATCHED.iter().enumerate() {
        let claim = entry.base.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_ok() {
            entry.size.store(size, Ordering::Release);
            entry.data.store(data, Ordering::Release);
            entry.redirect.store(redirect as *mut (), Ordering::Release);
            entry.base.store(base, Ordering::Release);
            return Ok(Watch(index));
        }
    }
    Err(NativeError::TooMany { max: WATCHED_MAX })
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
            action.sa_sigaction = native_signal_entry as *const () as usize;
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

/// Asks the owner of the code memory that the thread is in.
fn redirect(at: &mut Interrupted) -> bool {
    let rip = at.rip as usize;
    for entry in &WATCHED {
        let base = entry.base.load(Ordering::Acquire);
        if base > CLAIMED && rip.wrapping_sub(base) < entry.size.load(Ordering::Acquire) {
            let redirect = entry.redirect.load(Ordering::Acquire);
            // SAFETY: `watch` stored a function of this type, before `base`.
            let redirect: Redirect = unsafe { std::mem::transmute(redirect) };
            return redirect(entry.data.load(Ordering::Acquire), base, at);
        }
    }
    false
}

// The kernel enters a handler with the RFLAGS.AC of what it interrupted, and compiled code's
// accesses are not aligned: cleared before any of it runs. Sigreturn brings it back.
global_asm!(
    ".text",
    "native_signal_entry:",
    "pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq",
    "jmp {handler}",
    handler = sym handler,
);

unsafe extern "sysv64" {
    fn native_signal_entry();
}

unsafe extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext to an SA_SIGINFO handler.
    let (code, registers) =
        unsafe { ((*info).si_code, &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    let mut at = Interrupted {
        rip: registers[libc::REG_RIP as usize] as u64,
        rax: registers[libc::REG_RAX as usize] as u64,
        rsi: registers[libc::REG_RSI as usize] as u64,
        rdi: registers[libc::REG_RDI as usize] as u64,
        rsp: registers[libc::REG_RSP as usize] as u64,
        rflags: registers[libc::REG_EFL as usize] as u64,
        address: registers[libc::REG_CR2 as usize] as u64,
        vector: registers[libc::REG_TRAPNO as usize],
    };
    // Sent by the kernel for an instruction, not by a process (sigaction(2): si_code > 0).
    if code > 0 && redirect(&mut at) {
        registers[libc::REG_RIP as usize] = at.rip as i64;
        registers[libc::REG_RAX as usize] = at.rax as i64;
        registers[libc::REG_RSI as usize] = at.rsi as i64;
        registers[libc::REG_RDI as usize] = at.rdi as i64;
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

#[cfg(test)]
mod tests {
    use super::*;

    // Faults at a UD2 with RFLAGS.AC set; returns what RFLAGS was behind it.
    global_asm!(
        ".text",
        "native_signal_test:",
        "pushfq",
        "or dword ptr [rsp], 0x40000",
        "popfq",
        "ud2",
        "pushfq",
        "pop rax",
        "pushfq",
        "and dword ptr [rsp], 0xfffbffff",
        "popfq",
        "ret",
    );

    unsafe extern "sysv64" {
        fn native_signal_test() -> u64;
    }

    #[test]
    fn code_with_alignment_checks_on_may_fault() {
        let base = native_signal_test as *const () as usize;
        let past_ud2: Redirect = |_, _, at| {
            at.rip += 2;
            true
        };
        // SAFETY: behind the UD2 the function goes on; no data is passed.
        let _watch = unsafe { watch(base, 32, 0, past_ud2) }.expect("the handler is installed");
        // SAFETY: it keeps the calling convention.
        let flags = unsafe { native_signal_test() };
        assert_ne!(flags & 1 << 18, 0, "sigreturn restores AC");
    }
}
