//! Hardware exceptions raised inside translations: the thread continues at the trampoline that
//! leaves, with RIP and RFLAGS in RDI and RSI, which are scratch there, and the dispatcher has the
//! fall-back engine raise the guest's exception.

use native::signal::{self, Interrupted, Watch};

use crate::TranslateError;
use crate::code_memory::CodeMemory;

/// Watches `code`, whose trampoline for faults is at offset `trampoline`.
pub(crate) fn watch(code: &CodeMemory, trampoline: u32) -> Result<Watch, TranslateError> {
    let (base, size) = (code.base() as usize, code.size());
    // SAFETY: `leave` touches its arguments only; the trampoline is code of this code memory, which
    // is mapped as long as it is watched, and keeps the contract of translations.
    let watch = unsafe { signal::watch(base, size, trampoline as usize, leave) };
    Ok(watch?)
}

fn leave(trampoline: usize, base: usize, at: &mut Interrupted) -> bool {
    at.rdi = at.rip;
    at.rsi = at.rflags;
    at.rip = (base + trampoline) as u64;
    true
}
