//! Memory of an engine's own: words, and behind them address space in which every access faults
//! until a page of it is opened.
//!
//! UNSAFETY: this file owns the raw mapping; its users see slices of words.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use types::PAGE_SIZE;

/// Where areas are put if there is room: far from where a process has its programs, libraries and
/// stacks, and a guest's processes theirs; at no address that tests think of.
const HINT: usize = 0x3a6d_9000_0000;
/// How far apart, and how many there are before they are put where others were.
const HINT_STEP: usize = 1 << 32;
const HINTS: usize = 1 << 12;

/// See the module. The words begin at a page's start, as zeroes that take no memory until they are
/// touched.
pub struct Area {
    base: NonNull<u64>,
    words: usize,
    /// Bytes in all, and how many of them, at the end, are closed at first.
    size: usize,
    closed: usize,
}

// SAFETY: the area is plain memory that nobody else has a pointer to.
unsafe impl Send for Area {}
// SAFETY: shared references only read.
unsafe impl Sync for Area {}

fn reserve(size: usize) -> Option<NonNull<u64>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % HINTS;
    let hint = std::ptr::without_provenance_mut(HINT + number * HINT_STEP);
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
    let got = unsafe { libc::mmap(hint, size, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED { None } else { NonNull::new(got.cast()) }
}

/// Whether the process may have only so much address space (RLIMIT_AS), which is for its memory.
fn is_limited() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure it is given.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
    known && limit.rlim_cur != libc::RLIM_INFINITY
}

impl Area {
    /// `words` words of zeroes, and behind them, from the next page on, `closed` bytes of address
    /// space; none if the host does not give that much, or limits it.
    ///
    /// # Panics
    /// If there is not even memory for the words.
    pub fn new(words: usize, closed: usize) -> Area {
        let open = (words * size_of::<u64>()).next_multiple_of(PAGE_SIZE as usize);
        let reserved = if is_limited() { None } else { reserve(open + closed) };
        let (base, closed) = match reserved {
            Some(base) => (base, closed),
            None => (reserve(open).expect("memory for a TLB"), 0),
        };
        let area = Area { base, words, size: open + closed, closed };
        area.protect(0, open, libc::PROT_READ | libc::PROT_WRITE).expect("memory for a TLB");
        area
    }

    fn protect(&self, from: usize, size: usize, protection: i32) -> Option<()> {
        assert!(from + size <= self.size);
        // SAFETY: the range is inside the mapping; its first part is opened before anybody has a
        // reference to it, and the rest is never referred to.
        let done =
            unsafe { libc::mprotect(self.base.as_ptr().byte_add(from).cast(), size, protection) };
        (done == 0).then_some(())
    }

    /// Whether there is closed address space behind the words.
    pub fn has_closed(&self) -> bool {
        self.closed != 0
    }

    /// Lets page `page` of the closed part be read from now on: zeroes. False if there is no such
    /// page, or the host refuses.
    pub fn open(&mut self, page: usize) -> bool {
        let (from, size) = (page.saturating_mul(PAGE_SIZE as usize), PAGE_SIZE as usize);
        if from >= self.closed {
            return false;
        }
        self.protect(self.size - self.closed + from, size, libc::PROT_READ).is_some()
    }

    /// Lets no page of that part be read any more.
    ///
    /// # Panics
    /// If the host refuses, which it does not when it has less to remember.
    pub fn close(&mut self) {
        let from = self.size - self.closed;
        self.protect(from, self.closed, libc::PROT_NONE).expect("one mapping instead of many");
    }

    /// Address of the first word.
    pub fn start(&mut self) -> *mut u64 {
        self.base.as_ptr()
    }

    /// The words.
    #[inline(always)]
    pub fn words(&self) -> &[u64] {
        // SAFETY: so many words are mapped and readable as long as the area lives, and whoever
        // writes them by address does so while no reference to them is used.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    /// The words, to be changed.
    #[inline(always)]
    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`; they are writable.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: base and size are those of a mapping of ours, which ends with its owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_behind_the_words_are_opened_one_by_one() {
        let mut area = Area::new(1000, 3 << 12);
        assert!(area.has_closed() && area.words().iter().all(|word| *word == 0));
        area.words_mut()[999] = 7;
        assert_eq!(area.words()[999], 7);
        assert!(area.open(2) && !area.open(3) && !area.open(usize::MAX));
        // SAFETY: the first word of page 2 of the closed part, which was opened just now.
        assert_eq!(unsafe { area.start().byte_add(4 << 12).read_volatile() }, 0);
        let mut small = Area::new(1, usize::MAX / 2);
        assert!(!small.has_closed() && !small.open(0));
        assert_eq!(small.words(), [0]);
    }
}
