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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Loads.
    pub read: bool,
    /// Stores: the page is writable, dirty in the page table, trapped in this epoch, not watched.
    pub write: bool,
    /// Fetches.
    pub exec: bool,
}

/// Room for page-table pages that are remembered; a power of two.
const TABLES: usize = 1024;
/// Places where one may be.
const PROBES: usize = 16;

/// A page-table page that cached walks went through.
#[derive(Clone, Copy, Default)]
struct Table {
    /// [`Tlb::flushes`] when this was noted; another number means nothing is known.
    flushes: u64,
    page: usize,
    /// Unless it is too much to be forgotten piece by piece, or walks differ.
    reach: Option<Reach>,
}

/// What the entries of a page-table page are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Linear address that entry 0 is for.
    pub(crate) first: u64,
    /// Each entry is for two to the power of this bytes.
    pub(crate) shift: u32,
}

/// The TLB of one vCPU.
pub struct Tlb {
    block: Box<[Entry; BLOCK_ENTRIES]>,
    /// Side and index of each entry that is not empty, in the order they were filled.
    filled: Vec<(u8, u16)>,
    bias: u64,
    changes: u64,
    flushes: u64,
    tables: Box<[Table; TABLES]>,
    /// More page-table pages were walked than are remembered.
    tables_lost: bool,
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
        Tlb {
            block,
            filled: Vec::new(),
            bias: 0,
            changes: 0,
            flushes: 1,
            tables: Box::new([Table::default(); TABLES]),
            tables_lost: false,
            table_writes: 0,
        }
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
        self.flushes += 1;
        self.tables_lost = false;
        for (side, index) in self.filled.drain(..) {
            self.block[place(side, index as usize)] = empty(index as usize);
        }
    }

    /// Notes that a walk read an entry of the RAM page at index `page`.
    pub(crate) fn note_table(&mut self, page: usize, reach: Option<Reach>) {
        let flushes = self.flushes;
        let found = self.places(page).find(|&at| {
            let table = &self.tables[at];
            table.flushes != flushes || table.page == page
        });
        let Some(at) = found else {
            self.tables_lost = true;
            return;
        };
        let table = &mut self.tables[at];
        if table.flushes != flushes {
            *table = Table { flushes, page, reach };
        } else if table.reach != reach {
            table.reach = None;
        }
    }

    /// Where among the tables `page` may be.
    fn places(&self, page: usize) -> impl Iterator<Item = usize> + use<> {
        (0..PROBES).map(move |probe| (page + probe) % TABLES)
    }

    /// Forgets what was derived from entry `index` of the RAM page at index `page`, or from all of
    /// its entries; everything if it is not known what that is.
    pub(crate) fn forget(&mut self, page: usize, index: Option<u16>) {
        if self.tables_lost {
            return self.flush();
        }
        let known = self.places(page).map(|at| self.tables[at]);
        let mut current = known.take_while(|table| table.flushes == self.flushes);
        let Some(table) = current.find(|table| table.page == page) else {
            // No walk came through it since all were forgotten.
            return;
        };
        let pages = match (table.reach, index) {
            (Some(Reach { first, shift: PAGE_SHIFT }), None) => (first, 512),
            (Some(Reach { first, shift }), Some(index)) => {
                (first + (u64::from(index) << shift), 1 << (shift - PAGE_SHIFT))
            }
            _ => return self.flush(),
        };
        self.changes += 1;
        for gva in (0..pages.1).map(|page| pages.0 + (page << PAGE_SHIFT)) {
            for side in 0..SIDE_NONE {
                self.forget_page(side, gva);
            }
        }
    }

    fn forget_page(&mut self, side: u8, gva: u64) {
        let index = (gva >> PAGE_SHIFT) as usize % ENTRIES;
        let never = never(index);
        // It stays different from an empty entry, being in the list of filled ones.
        let entry = &mut self.block[place(side, index)];
        for tag in [&mut entry.read, &mut entry.write, &mut entry.exec] {
            if *tag == gva {
                *tag = never;
            }
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
    fn tlb_forgets_what_came_from_overwritten_entries() {
        let reach = |first, shift| Some(Reach { first, shift });
        let filled = |tables: &[(usize, Option<Reach>)]| {
            let mut tlb = Tlb::new();
            for &(page, reach) in tables {
                tlb.note_table(page, reach);
            }
            tlb.insert(SIDE_USER, 0x20_3000, 0x7000, ALL);
            tlb.insert(SIDE_SUPERVISOR, 0x20_3000, 0x7000, ALL);
            tlb.insert(SIDE_USER, 0x20_4000, 0x9000, ALL);
            tlb.insert(SIDE_USER, 0x40_0000, 0xb000, ALL);
            tlb
        };
        let left = |tlb: &Tlb| {
            [
                (SIDE_USER, 0x20_3000),
                (SIDE_SUPERVISOR, 0x20_3000),
                (SIDE_USER, 0x20_4000),
                (SIDE_USER, 0x40_0000),
            ]
            .map(|(side, gva)| tlb.lookup_exec(side, gva).is_some())
        };
        let (known, above) = ((5, reach(0x20_0000, 12)), (6, reach(0, 21)));
        let differs = (5, reach(0x40_0000, 12));
        let alike: Vec<_> = (0..=PROBES).map(|n| (5 + n * TABLES, known.1)).collect();
        for (tables, page, index, expected) in [
            (&[known, above][..], 5, Some(3), [false, false, true, true]),
            (&[known, above], 5, None, [false, false, false, true]),
            (&[known, above], 6, Some(1), [false, false, false, true]),
            (&[known, above], 6, None, [false; 4]),
            (&[known, above], 7, Some(3), [true; 4]),
            (&[known, above], alike[1].0, None, [true; 4]),
            (&[known, differs], 5, Some(3), [false; 4]),
            (&[known, (5, None)], 5, Some(3), [false; 4]),
            (&[(5, None)], 5, Some(3), [false; 4]),
            (&alike[..PROBES], 7, Some(3), [true; 4]),
            (&alike[..PROBES], alike[PROBES - 1].0, Some(4), [true, true, false, true]),
            (&alike, 5, Some(3), [false; 4]),
            (&alike, 7, Some(3), [false; 4]),
        ] {
            let mut tlb = filled(tables);
            tlb.forget(page, index);
            assert_eq!(left(&tlb), expected, "{page} {index:?}");
            tlb.insert(SIDE_USER, 0x20_3000, 0xa000, ALL);
            assert_eq!(tlb.lookup_read(SIDE_USER, 0x20_3000), Some(0xa000));
            tlb.flush();
            assert_eq!(left(&tlb), [false; 4]);
        }
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
