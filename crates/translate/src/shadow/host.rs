//! The host's page tables: guest pages mapped into claimed address space, and taken out of it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use types::PAGE_SIZE;

/// Flags of a mapping with nothing in it.
pub(super) const EMPTY: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Pages that follow each other both at their addresses and in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) pages: u64,
    /// Of the first page in RAM.
    pub(super) offset: u64,
    pub(super) write: bool,
}

/// Maps pages of RAM over claimed address space; false if the host refuses.
pub(super) fn map(ram: BorrowedFd<'_>, run: Run) -> bool {
    let Run { start, pages, offset, write } = run;
    let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE | libc::MAP_NORESERVE;
    let size = (pages * PAGE_SIZE) as usize;
    let at = ptr::without_provenance_mut(start as usize);
    // SAFETY: the pages are claimed (`Claims::has`), so nothing but guest pages is replaced, to
    // which no reference exists: translated code alone goes there.
    let got = unsafe { libc::mmap(at, size, protection, flags, ram.as_raw_fd(), offset as i64) };
    got != libc::MAP_FAILED
}

/// Takes everything out of claimed address space.
///
/// # Panics
/// If the host refuses: translated code would go on to use what it must not.
pub(super) fn empty(start: u64, size: u64) {
    let at = ptr::without_provenance_mut(start as usize);
    let flags = EMPTY | libc::MAP_FIXED;
    // SAFETY: as in `map`.
    let got = unsafe { libc::mmap(at, size as usize, libc::PROT_NONE, flags, -1, 0) };
    assert!(got != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
}

/// Gives address space back.
#[cfg(test)]
pub(super) fn release(start: u64, size: u64) {
    // SAFETY: tests release what they reserved.
    unsafe { libc::munmap(ptr::without_provenance_mut(start as usize), size as usize) };
}
