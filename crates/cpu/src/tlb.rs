//! Cached page walks: linear page to RAM offset, per kind of access and privilege.
//!
//! The guest cannot see this TLB: a write to a page-table entry that a cached walk went through
//! drops it (`Ram::table_writes`), so what an access does is always what a fresh walk would do.
//! Flushing it at any time is therefore free of effect, and it is never saved.

use types::{PAGE_MASK, PAGE_SHIFT};

/// Entries on each side; a power of two.
const ENTRIES: usize = 4096;

/// Accesses at CPL 3.
pub const SIDE_USER: u8 = 0;
/// Accesses at CPL 0 to 2, and system accesses, that SMAP keeps from user pages.
pub const SIDE_SUPERVISOR: u8 = 1;
/// Accesses at CPL 0 to 2 with EFLAGS.AC set, or without SMAP.
pub const SIDE_SUPERVISOR_ANY: u8 = 2;
/// A side that caches nothing, so that every access is checked for alignment.
pub const SIDE_NONE: u8 = 3;
const SIDES: usize = 4;

/// Words that an engine may use beside the entries; see [`layout::SCRATCH`].
const SCRATCH_WORDS: usize = 128;
/// Room between entries and words, in entries: the stack of generated code.
const STACK_ENTRIES: usize = (64 << 10) / size_of::<Entry>();

/// One cached walk: the linear address of the page for each kind of access that is allowed, or
/// the entry's `never`.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    read: u64,
    write: u64,
    exec: u64,
    /// RAM offset of the page, plus the TLB's bias.
    page: u64,
}

/// A tag that no address looked up in entry `index` has: another entry's page.
const fn never(index: usize) -> u64 {
    ((index ^ 1) as u64) << PAGE_SHIFT
}

const fn empty(index: usize) -> Entry {
    let never = never(index);
    Entry { read: never, write: never, exec: never, page: 0 }
}

/// Entries of all sides, and behind them a stack and room for an engine's own words, in the form
/// of entries.
const BLOCK_ENTRIES: usize = SIDES * ENTRIES + STACK_ENTRIES + SCRATCH_WORDS / 4;

const fn place(side: u8, index: usize) -> usize {
    side as usize % SIDES * ENTRIES + index % ENTRIES
}

/// Where generated code finds things in the block at [`Tlb::block`]. An entry is hit if its tag
/// for the kind of access, exclusive-or the linear address, is an offset in a page.
pub mod layout {
    use super::{ENTRIES, Entry, SIDES};
    use std::mem::offset_of;

    /// Bytes of an entry; entry `page number % ENTRIES_COUNT` of a side is the one to look in.
    pub const ENTRY_SIZE: usize = size_of::<Entry>();
    /// Entries of a side; a power of two.
    pub const ENTRIES_COUNT: usize = ENTRIES;
    /// Offset in an entry of the tag for loads.
    pub const READ: usize = offset_of!(Entry, read);
    /// Offset in an entry of the tag for stores.
    pub const WRITE: usize = offset_of!(Entry, write);
    /// Offset in an entry of the tag for fetches.
    pub const EXEC: usize = offset_of!(Entry, exec);
    /// Offset in an entry of the RAM offset of the page, plus the bias.
    pub const PAGE: usize = offset_of!(Entry, page);
    /// Offset of the engine's own words; generated code's stack ends there, for it uses the stack
    /// pointer to address them.
    pub const SCRATCH: usize = (SIDES * ENTRIES + super::STACK_ENTRIES) * ENTRY_SIZE;
    /// How many of them there are.
    pub const SCRATCH_WORDS: usize = super::SCRATCH_WORDS;

    /// Offset of a side's first entry.
    pub const fn side(side: u8) -> usize {
        side as usize % SIDES * ENTRIES * ENTRY_SIZE
    }
}

/// What a walk allows on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Loads.
    pub read: bool,
    /// Stores: the page is writable, dirty in the page table, trapped in this epoch, not watched.
    pub write: bool,
    /// Fetches.
    pub exec: bool,
}

/// The TLB of one vCPU.
pub struct Tlb {
    block: Box<[Entry; BLOCK_ENTRIES]>,
    /// Side and index of each entry that is not empty, in the order they were filled.
    filled: Vec<(u8, u16)>,
    bias: u64,
    changes: u64,
    /// `Ram::table_writes` when the entries were last known right.
    pub(crate) table_writes: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        Tlb::new()
    }
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Tlb {
        let entries: Vec<Entry> = (0..BLOCK_ENTRIES).map(|at| empty(at % ENTRIES)).collect();
        let block = entries.into_boxed_slice().try_into();
        let block = block.unwrap_or_else(|_| unreachable!("length is BLOCK_ENTRIES"));
        Tlb { block, filled: Vec::new(), bias: 0, changes: 0, table_writes: 0 }
    }

    /// The entries and the engine's own words, for generated code; see [`layout`]. Good as long
    /// as the TLB lives.
    pub fn block(&mut self) -> *mut u8 {
        (&raw mut *self.block).cast()
    }

    /// Makes entries hold `bias` more than RAM offsets: a host address, where code is generated.
    pub fn set_bias(&mut self, bias: u64) {
        if self.bias != bias {
            self.flush();
            self.bias = bias;
        }
    }

    #[inline(always)]
    fn entry(&self, side: u8, gva: u64) -> &Entry {
        let index = (gva >> PAGE_SHIFT) as usize % ENTRIES;
        &self.block[place(side, index)]
    }

    #[inline(always)]
    fn offset(&self, entry: &Entry, gva: u64) -> u64 {
        (entry.page | (gva & PAGE_MASK)).wrapping_sub(self.bias)
    }

    /// RAM offset for a load at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_read(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.read == gva & !PAGE_MASK).then(|| self.offset(entry, gva))
    }

    /// RAM offset for a store at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_write(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.write == gva & !PAGE_MASK).then(|| self.offset(entry, gva))
    }

    /// RAM offset for a fetch at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_exec(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.exec == gva & !PAGE_MASK).then(|| self.offset(entry, gva))
    }

    /// Caches a walk: the page of `gva` is RAM at `offset` (of the page's first byte).
    pub fn insert(&mut self, side: u8, gva: u64, offset: u64, allowed: Allowed) {
        if side == SIDE_NONE {
            return;
        }
        let tag = gva & !PAGE_MASK;
        let index = (gva >> PAGE_SHIFT) as usize % ENTRIES;
        let entry = &mut self.block[place(side, index)];
        if *entry == empty(index) {
            self.filled.push((side, index as u16));
        }
        let page = offset.wrapping_add(self.bias);
        let (never, same) = (never(index), entry.page == page);
        let keep = |old: u64| if old == tag && same { tag } else { never };
        let merged = |allow: bool, old: u64| if allow { tag } else { keep(old) };
        let merged = Entry {
            read: merged(allowed.read, entry.read),
            write: merged(allowed.write, entry.write),
            exec: merged(allowed.exec, entry.exec),
            page,
        };
        *entry = merged;
    }

    /// Counts up when something that was allowed may not be any more.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.changes += 1;
        for (side, index) in self.filled.drain(..) {
            self.block[place(side, index as usize)] = empty(index as usize);
        }
    }

    /// Forgets that stores to the RAM page at index `page` are allowed.
    pub fn revoke_write(&mut self, page: usize) {
        self.changes += 1;
        let page = ((page as u64) << PAGE_SHIFT).wrapping_add(self.bias);
        for &(side, index) in &self.filled {
            let entry = &mut self.block[place(side, index as usize)];
            if entry.page == page {
                entry.write = never(index as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Allowed = Allowed { read: true, write: true, exec: true };
    const KERNEL: u64 = 0xffff_ffff_8123_4000;

    #[test]
    fn tlb_hit_gives_offset_until_flush() {
        let mut tlb = Tlb::new();
        tlb.insert(SIDE_USER, KERNEL + 5, 0x7000, ALL);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL + 0x123), Some(0x7123));
        assert_eq!(tlb.lookup_read(SIDE_SUPERVISOR, KERNEL + 0x123), None);
        tlb.flush();
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL + 0x123), None);
    }

    #[test]
    fn tlb_empty_entry_is_hit_by_no_address() {
        let tlb = Tlb::new();
        for page in (0..4 * ENTRIES as u64).chain([u64::MAX >> PAGE_SHIFT]) {
            let gva = page << PAGE_SHIFT;
            assert_eq!(tlb.lookup_read(SIDE_USER, gva), None);
            assert_eq!(tlb.lookup_exec(SIDE_USER, gva | PAGE_MASK), None);
        }
    }

    #[test]
    fn tlb_bias_does_not_show_in_lookups() {
        let mut tlb = Tlb::new();
        tlb.set_bias(0x7fff_1234_5000);
        tlb.insert(SIDE_USER, KERNEL, 0x7000, ALL);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL + 8), Some(0x7008));
        tlb.revoke_write(7);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL + 8), None);
        tlb.set_bias(0);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), None);
    }

    #[test]
    fn tlb_revoke_write_keeps_reads() {
        let mut tlb = Tlb::new();
        tlb.insert(SIDE_USER, KERNEL, 0x7000, ALL);
        tlb.insert(SIDE_USER, KERNEL + 0x1000, 0x8000, ALL);
        tlb.revoke_write(7);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL), None);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), Some(0x7000));
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL + 0x1000), Some(0x8000));
    }
}
