//! The entries of one address space, and the engine's own words beside them.

use std::mem::size_of;

use types::PAGE_SHIFT;

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

/// Entries of all sides, and behind them a stack and room for an engine's own words, in the form
/// of entries.
const BLOCK_ENTRIES: usize = SIDES * ENTRIES + STACK_ENTRIES + SCRATCH_WORDS / WORDS;

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
pub(super) struct Block {
    words: Box<[u64]>,
    /// Index of the first entry's first word.
    first: usize,
}

impl Block {
    pub(super) fn new() -> Block {
        let align = size_of::<Entry>();
        let words = vec![0; WORDS * (BLOCK_ENTRIES + 1)].into_boxed_slice();
        let first = (words.as_ptr() as usize).wrapping_neg() % align / size_of::<u64>();
        let mut block = Block { words, first };
        for side in 0..SIDES as u8 {
            block.set(place(side, 0), empty(0));
        }
        block
    }

    #[inline]
    pub(super) fn start(&mut self) -> *mut u8 {
        self.words[self.first..].as_mut_ptr().cast()
    }

    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Entry {
        let entries: &[[u64; WORDS]] = self.words[self.first..].as_chunks().0;
        let [read, write, exec, page] = entries[place];
        Entry { read, write, exec, page }
    }

    pub(super) fn set(&mut self, place: usize, entry: Entry) {
        let Entry { read, write, exec, page } = entry;
        self.words[self.first..].as_chunks_mut().0[place] = [read, write, exec, page];
    }
}
