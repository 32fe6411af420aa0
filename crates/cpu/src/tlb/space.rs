//! Cached walks of one address space, and the page-table pages they went through.

use types::PAGE_SHIFT;

use super::block::{Block, empty, index_of, never, place};
use super::followed::Followed;
use super::{Allowed, Entry, SIDE_NONE};

/// Room for page-table pages that are remembered; a power of two.
pub(super) const TABLES: usize = 1024;
/// Places where one may be.
pub(super) const PROBES: usize = 16;
/// From here on kernels have their code and data: the 2 GiB that signed 32-bit displacements reach.
const TOP: u64 = 0xffff_ffff_8000_0000;
/// How many of the entries filled last, besides those at the top, a new space takes over.
const INHERITED_MAX: usize = 512;

/// What the entries of a page-table page are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Linear address that entry 0 is for.
    pub(crate) first: u64,
    /// Each entry is for two to the power of this bytes.
    pub(crate) shift: u32,
}

/// Stands for a page-table page of which nothing is cached any more.
const GONE: usize = usize::MAX;

/// A page-table page that cached walks went through.
#[derive(Clone, Copy, Default)]
struct Table {
    /// [`Space::flushes`] when this was noted; another number means nothing is known.
    flushes: u64,
    /// Its index in RAM, or [`GONE`].
    page: usize,
    /// Unless it is too much to be forgotten piece by piece, or walks differ.
    reach: Option<Reach>,
    /// Walks of addresses in the upper half came through it, behind the first table.
    upper: bool,
}

/// What was cached of one address space.
pub(super) struct Space {
    /// Physical address of its first page table, when it is not in use.
    pub(super) root: Option<u64>,
    /// When it was put to use last.
    pub(super) turn: u64,
    pub(super) block: Block,
    /// Side and index of each entry that is not empty, in the order they were filled: those whose
    /// first address was at the top, and the others.
    filled_top: Vec<(u8, u16)>,
    filled: Vec<(u8, u16)>,
    flushes: u64,
    tables: Box<[Table; TABLES]>,
    /// More page-table pages were walked than are remembered.
    tables_lost: bool,
    followed: Option<Followed>,
}

impl Space {
    pub(super) fn new() -> Space {
        Space {
            root: None,
            turn: 0,
            block: Block::new(),
            filled_top: Vec::new(),
            filled: Vec::new(),
            flushes: 1,
            tables: Box::new([Table::default(); TABLES]),
            tables_lost: false,
            followed: None,
        }
    }

    pub(super) fn follow(&mut self, side: u8) {
        let mut followed = Followed::of(side);
        for &(_, index) in self.filled.iter().filter(|(of, _)| *of == side) {
            let entry = self.block.get(place(side, usize::from(index)));
            if entry.exec != never(usize::from(index)) {
                followed.fetch(entry.exec, entry.page);
            }
        }
        self.followed = Some(followed);
    }

    pub(super) fn end_following(&mut self) {
        self.followed = None;
    }

    #[inline]
    pub(super) fn followed(&mut self) -> Option<&mut Followed> {
        self.followed.as_mut()
    }

    pub(super) fn following(&self) -> Option<&Followed> {
        self.followed.as_ref()
    }

    /// Caches a walk; `page` is what the entry is to hold.
    pub(super) fn insert(&mut self, side: u8, tag: u64, page: u64, allowed: Allowed) {
        let index = index_of(tag);
        let place = place(side, index);
        let entry = self.block.get(place);
        if entry == empty(index) {
            let filled = if tag >= TOP { &mut self.filled_top } else { &mut self.filled };
            filled.push((side, index as u16));
        }
        if let Some(followed) = self.followed.as_mut().filter(|followed| followed.side == side) {
            followed.meet(tag, page);
            if allowed.exec {
                followed.fetch(tag, page);
            }
        }
        let (never, same) = (never(index), entry.page == page);
        let keep = |old: u64| if old == tag && same { tag } else { never };
        let merged = |allow: bool, old: u64| if allow { tag } else { keep(old) };
        let merged = Entry {
            read: merged(allowed.read, entry.read),
            write: merged(allowed.write, entry.write),
            exec: merged(allowed.exec, entry.exec),
            page,
        };
        self.block.set(place, merged);
    }

    /// Whether nothing is cached.
    pub(super) fn is_empty(&self) -> bool {
        self.filled_top.is_empty() && self.filled.is_empty()
    }

    pub(super) fn flush(&mut self) {
        self.flushes += 1;
        self.tables_lost = false;
        self.followed.iter_mut().for_each(Followed::lose_all);
        for (side, index) in self.filled_top.drain(..).chain(self.filled.drain(..)) {
            self.block.set(place(side, index as usize), empty(index as usize));
        }
    }

    /// See [`super::Tlb::note_table`].
    pub(super) fn note_table(&mut self, page: usize, reach: Option<Reach>, upper: bool) {
        if let Some(at) = self.table(page) {
            let table = &mut self.tables[at];
            table.upper |= upper;
            if table.reach != reach {
                table.reach = None;
            }
            return;
        }
        let flushes = self.flushes;
        let is_free = |table: &Table| table.flushes != flushes || table.page == GONE;
        match self.places(page).find(|&at| is_free(&self.tables[at])) {
            Some(at) => self.tables[at] = Table { flushes, page, reach, upper },
            None => self.tables_lost = true,
        }
    }

    /// Takes over what was cached of the upper half in `other`: what is at the top, and what was
    /// cached last besides. Walks there begin with the same entries. Side, index and page of each
    /// entry that allows stores is told to `writer`.
    pub(super) fn inherit_upper(&mut self, other: &Space, mut writer: impl FnMut(u8, usize, u64)) {
        if other.tables_lost {
            return;
        }
        let known =
            |table: &&Table| table.flushes == other.flushes && table.page != GONE && table.upper;
        for table in other.tables.iter().filter(known) {
            self.note_table(table.page, table.reach, true);
        }
        let last = other.filled.len().saturating_sub(INHERITED_MAX);
        for &(side, index) in other.filled_top.iter().chain(&other.filled[last..]) {
            let place = place(side, usize::from(index));
            let (entry, never) = (other.block.get(place), never(usize::from(index)));
            let tags = [entry.read, entry.write, entry.exec];
            let Some(&tag) = tags.iter().find(|tag| **tag != never) else { continue };
            if tag >> 63 == 0 {
                continue;
            }
            let [read, write, exec] = tags.map(|tag| tag != never);
            if write {
                writer(side, usize::from(index), entry.page);
            }
            self.insert(side, tag, entry.page, Allowed { read, write, exec });
        }
    }

    /// Where among the tables `page` may be.
    fn places(&self, page: usize) -> impl Iterator<Item = usize> + use<> {
        (0..PROBES).map(move |probe| (page + probe) % TABLES)
    }

    /// Where among them it is.
    fn table(&self, page: usize) -> Option<usize> {
        let mut current =
            self.places(page).take_while(|&at| self.tables[at].flushes == self.flushes);
        current.find(|&at| self.tables[at].page == page)
    }

    /// Nothing is cached any more of what lower tables are for in the two to the power of `shift`
    /// bytes from `first` on: a guest may use those pages for something else, or elsewhere.
    fn drop_tables(&mut self, first: u64, shift: u32) {
        let flushes = self.flushes;
        for table in self.tables.iter_mut().filter(|table| table.flushes == flushes) {
            if let Some(reach) = table.reach
                && reach.shift < shift
                && (reach.first ^ first) >> shift == 0
            {
                table.page = GONE;
            }
        }
    }

    /// See [`super::Tlb::forget`]. Whether there was something to be forgotten.
    pub(super) fn forget(&mut self, page: usize, index: Option<u16>) -> bool {
        if self.tables_lost {
            self.flush();
            return true;
        }
        let Some(at) = self.table(page) else {
            // No walk came through it since all were forgotten.
            return false;
        };
        let (first, pages) = match (self.tables[at].reach, index) {
            (Some(Reach { first, shift: PAGE_SHIFT }), None) => {
                self.tables[at].page = GONE;
                (first, 512)
            }
            (Some(Reach { first, shift }), Some(index)) => {
                let first = first + (u64::from(index) << shift);
                if shift > PAGE_SHIFT {
                    self.drop_tables(first, shift);
                }
                (first, 1 << (shift - PAGE_SHIFT))
            }
            _ => {
                self.flush();
                return true;
            }
        };
        for gva in (0..pages).map(|page| first + (page << PAGE_SHIFT)) {
            for side in 0..SIDE_NONE {
                self.forget_page(side, gva);
            }
        }
        true
    }

    fn forget_page(&mut self, side: u8, gva: u64) {
        if let Some(followed) = self.followed.as_mut().filter(|followed| followed.side == side) {
            followed.lose(gva);
        }
        let index = index_of(gva);
        let never = never(index);
        // It stays different from an empty entry, being in the list of filled ones.
        let place = place(side, index);
        let mut entry = self.block.get(place);
        let before = entry;
        for tag in [&mut entry.read, &mut entry.write, &mut entry.exec] {
            if *tag == gva {
                *tag = never;
            }
        }
        if entry != before {
            self.block.set(place, entry);
        }
    }

    /// Forgets that stores are allowed by the entry at this place, if it is for `page`.
    pub(super) fn revoke_write_at(&mut self, side: u8, index: usize, page: u64) {
        revoke_write(&mut self.block, side, index, page);
    }

    /// Forgets that stores are allowed by any entry for `page`.
    pub(super) fn revoke_write(&mut self, page: u64) {
        for filled in [&self.filled_top, &self.filled] {
            for &(side, index) in filled {
                revoke_write(&mut self.block, side, usize::from(index), page);
            }
        }
    }
}

fn revoke_write(block: &mut Block, side: u8, index: usize, page: u64) {
    let place = place(side, index);
    let entry = block.get(place);
    if entry.page == page {
        block.set(place, Entry { write: never(index), ..entry });
    }
}
