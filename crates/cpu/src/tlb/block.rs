//! The entries of one address space, and the engine's own words beside them.

use std::mem::size_of;

use memory::Area;
use types::{PAGE_SHIFT, PAGE_SIZE};

/// Entries on each side; a power of two. Those of pages not in use are never touched, and memory
/// that nobody touched is none.
pub(super) const ENTRIES: usize = 16384;
pub(super) const SIDES: usize = 4;
/// Words that an engine may use beside the entries; see `SCRATCH` of the TLB's layout.
pub(super) const SCRATCH_WORDS: usize = 128;
/// Room between entries and words, in entries: the stack of generated code.
pub(super) const STACK_ENTRIES: usize = (64 << 10) / size_of::<Entry>();

/// One cached walk: the linear address of the page for each kind of access that is allowed, or
/// the entry's `never`.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) read: u64,
    pub(super) write: u64,
    pub(super) exec: u64,
    /// RAM offset of the page, plus the TLB's bias.
    pub(super) page: u64,
}

/// Words of an entry.
const WORDS: usize = size_of::<Entry>() / size_of::<u64>();

/// A tag that no address looked up in entry `index` has: another entry's page. It is 0 but for one
/// of them, so that memory of zeroes is a TLB almost empty.
pub(super) const fn never(index: usize) -> u64 {
    ((index == 0) as u64) << PAGE_SHIFT
}

pub(super) const fn empty(index: usize) -> Entry {
    let never = never(index);
    Entry { read: never, write: never, exec: never, page: 0 }
}

/// Offset of the words. Their address ends in six bits that are a count: generated code shifts by
/// the register it addresses them with.
pub(super) const SCRATCH: usize = (SIDES * ENTRIES + STACK_ENTRIES) * size_of::<Entry>() + SHIFT;
pub(super) const SHIFT: usize = 16;
const _: () = assert!((SCRATCH - SHIFT).is_multiple_of(64) && SHIFT < 64);
/// Entries of all sides, behind them a stack and room for an engine's own words.
const BLOCK_WORDS: usize = SCRATCH / size_of::<u64>() + SCRATCH_WORDS;
/// Offset of what is behind them: a byte for each of the lower half's addresses, shifted by that
/// count, none of which can be read until its page is opened.
pub(super) const PASS: usize =
    (BLOCK_WORDS * size_of::<u64>()).next_multiple_of(PAGE_SIZE as usize);
pub(super) const PASS_SIZE: usize = 1 << (47 - SHIFT);

/// Where an entry is.
pub(super) const fn place(side: u8, index: usize) -> usize {
    side as usize % SIDES * ENTRIES + index % ENTRIES
}

/// The index on its side of the entry for an address.
#[inline(always)]
pub(super) const fn index_of(gva: u64) -> usize {
    (gva >> PAGE_SHIFT) as usize % ENTRIES
}

/// The entries and what is behind them, each in one cache line, in memory that is there once it is
/// touched.
pub(super) struct Block(Area);

impl Block {
    pub(super) fn new() -> Block {
        // Behind the last byte nothing can be read either: addresses beyond the lower half.
        let mut block = Block(Area::new(BLOCK_WORDS, PASS_SIZE + PAGE_SIZE as usize));
        for side in 0..SIDES as u8 {
            block.set(place(side, 0), empty(0));
        }
        block
    }

    #[inline]
    pub(super) fn start(&mut self) -> *mut u8 {
        self.0.start().cast()
    }

    /// See [`super::Tlb::open_pass`].
    pub(super) fn open_pass(&mut self, page: usize) -> bool {
        page < PASS_SIZE / PAGE_SIZE as usize && self.0.open(page)
    }

    /// See [`super::Tlb::has_pass`].
    pub(super) fn has_pass(&self) -> bool {
        self.0.has_closed()
    }

    /// See [`super::Tlb::close_pass`].
    pub(super) fn close_pass(&mut self) {
        self.0.close();
    }

    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Entry {
        let entries: &[[u64; WORDS]] = self.0.words().as_chunks().0;
        let [read, write, exec, page] = entries[place];
        Entry { read, write, exec, page }
    }

    pub(super) fn set(&mut self, place: usize, entry: Entry) {
        let Entry { read, write, exec, page } = entry;
        self.0.words_mut().as_chunks_mut().0[place] = [read, write, exec, page];
    }
}
