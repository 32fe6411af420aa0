//! Hardware exceptions raised inside stubs, turned into values.
//!
//! The handler of SIGFPE, SIGSEGV, SIGILL and SIGBUS is installed once per process. When the
//! interrupted RIP is inside code memory, it continues at the stub's fault exit with the kind of
//! fault in EAX; otherwise it does what the handler it replaced would have done.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::NativeError;
use crate::code_memory::{CODE_SIZE, CodeMemory, EXIT_GRAIN};

/// Exception that the instruction raised (SDM vol. 3, 6.15). Registers are as before it, except
/// for what the hardware records in MXCSR before #XM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NativeFault {
    /// #DE, vector 0.
    DivideError = 1,
    /// #UD, vector 6.
    InvalidOpcode = 2,
    /// #GP, vector 13: an operand that must be aligned is not, or a reserved bit is set.
    GeneralProtection = 3,
    /// #MF, vector 16: an unmasked x87 exception was pending.
    X87 = 4,
    /// #XM, vector 19: an unmasked SIMD exception.
    Simd = 5,
    /// #AC, vector 17. Stubs never load RFLAGS.AC, so only a host that forces it can cause this.
    AlignmentCheck = 6,
}

impl NativeFault {
    pub(crate) fn from_code(code: u32) -> NativeFault {
        match code {
            1 => NativeFault::DivideError,
            2 => NativeFault::InvalidOpcode,
            3 => NativeFault::GeneralProtection,
            4 => NativeFault::X87,
            5 => NativeFault::Simd,
            6 => NativeFault::AlignmentCheck,
            _ => unreachable!("fault exits are entered by the handler only"),
        }
    }

    fn from_vector(vector: i64) -> Option<NativeFault> {
        Some(match vector {
            0 => NativeFault::DivideError,
            6 => NativeFault::InvalidOpcode,
            13 => NativeFault::GeneralProtection,
            16 => NativeFault::X87,
            17 => NativeFault::AlignmentCheck,
            19 => NativeFault::Simd,
            _ => return None,
        })
    }
}

/// Code memories watched at once.
const WATCHED_MAX: usize = 256;
const SIGNALS: [c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];

/// One watched code memory; free when `base` is 0.
struct Watched {
    base: AtomicUsize,
    exits: AtomicPtr<u32>,
}

static WATCHED: [Watched; WATCHED_MAX] =
    [const { Watched { base: AtomicUsize::new(0), exits: AtomicPtr::new(ptr::null_mut()) } };
        WATCHED_MAX];

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; SIGNALS.len()]>);
// SAFETY: each entry is written once, before the handler that reads it is installed.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous =
    Previous(UnsafeCell::new([const { MaybeUninit::uninit() }; SIGNALS.len()]));

/// Keeps a code memory watched; ends the watch when dropped.
pub(crate) struct Watch(usize);

/// Value of `base` while an entry is being filled.
const CLAIMED: usize = 1;

/// Watches `code`, installing the handler if this is the first.
pub(crate) fn watch(code: &CodeMemory) -> Result<Watch, NativeError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(install)
        .map_err(|errno| NativeError::Signal(io::Error::from_raw_os_error(errno)))?;
    for (index, entry) in WATCHED.iter().enumerate() {
        let claim = entry.base.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_ok() {
            entry.exits.store(code.exits(), Ordering::Release);
            entry.base.store(code.base() as usize, Ordering::Release);
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

/// The fault exit of the stub that `rip` is in.
fn fault_exit(rip: usize) -> Option<usize> {
    for entry in &WATCHED {
        let base = entry.base.load(Ordering::Acquire);
        if base > CLAIMED && rip.wrapping_sub(base) < CODE_SIZE {
            let exits = entry.exits.load(Ordering::Acquire);
            // SAFETY: the table has an entry for each EXIT_GRAIN bytes of the CODE_SIZE, and
            // lives as long as it is watched.
            let exit = unsafe { exits.add((rip - base) / EXIT_GRAIN).read() };
            return (exit != 0).then(|| base + exit as usize);
        }
    }
    None
}

unsafe extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext to an SA_SIGINFO handler.
    let (code, registers) =
        unsafe { ((*info).si_code, &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    // Sent by the kernel for an instruction, not by a process (sigaction(2): si_code > 0).
    if code > 0
        && let Some(exit) = fault_exit(registers[libc::REG_RIP as usize] as usize)
        && let Some(fault) = NativeFault::from_vector(registers[libc::REG_TRAPNO as usize])
    {
        registers[libc::REG_RIP as usize] = exit as i64;
        registers[libc::REG_RAX as usize] = fault as i64;
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
