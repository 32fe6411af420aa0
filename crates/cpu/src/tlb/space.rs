//! Cached walks of one address space, and the page-table pages they went through.

use types::PAGE_SHIFT;

use super::block::{Block, empty, index_of, never, place};
use super::{Allowed, Entry, SIDE_NONE};

/// Room for page-table pages that are remembered; a power of two.
pub(super) const TABLES: usize = 1024;
/// Places where one may be.
pub(super) const PROBES: usize = 16;

/// What the entries of a page-table page are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Linear address that entry 0 is for.
    pub(crate) first: u64,
    /// Each entry is for two to the power of this bytes.
    pub(crate) shift: u32,
}

/// A page-table page that cached walks went through.
#[derive(Clone, Copy, Default)]
struct Table {
    /// [`Space::flushes`] when this was noted; another number means nothing is known.
    flushes: u64,
    page: usize,
    /// Unless it is too much to be forgotten piece by piece, or walks differ.
    reach: Option<Reach>,
}

/// What was cached of one address space.
pub(super) struct Space {
    /// Physical address of its first page table, when it is not in use.
    pub(super) root: Option<u64>,
    /// When it was put to use last.
    pub(super) turn: u64,
    pub(super) block: Block,
    /// Side and index of each entry that is not empty, in the order they were filled.
    filled: Vec<(u8, u16)>,
    flushes: u64,
    tables: Box<[Table; TABLES]>,
    /// More page-table pages were walked than are remembered.
    tables_lost: bool,
}

impl Space {
    pub(super) fn new() -> Space {
        Space {
            root: None,
            turn: 0,
            block: Block::new(),
            filled: Vec::new(),
            flushes: 1,
            tables: Box::new([Table::default(); TABLES]),
            tables_lost: false,
        }
    }

    /// Caches a walk; `page` is what the entry is to hold.
    pub(super) fn insert(&mut self, side: u8, tag: u64, page: u64, allowed: Allowed) {
        let index = index_of(tag);
        let place = place(side, index);
        let entry = self.block.get(place);
        if entry == empty(index) {
            self.filled.push((side, index as u16));
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

    pub(super) fn flush(&mut self) {
        self.flushes += 1;
        self.tables_lost = false;
        for (side, index) in self.filled.drain(..) {
            self.block.set(place(side, index as usize), empty(index as usize));
        }
    }

    /// See [`super::Tlb::note_table`].
    pub(super) fn note_table(&mut self, page: usize, reach: Option<Reach>) {
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

    /// See [`super::Tlb::forget`]. Whether there was something to be forgotten.
    pub(super) fn forget(&mut self, page: usize, index: Option<u16>) -> bool {
        if self.tables_lost {
            self.flush();
            return true;
        }
        let known = self.places(page).map(|at| self.tables[at]);
        let mut current = known.take_while(|table| table.flushes == self.flushes);
        let Some(table) = current.find(|table| table.page == page) else {
            // No walk came through it since all were forgotten.
            return false;
        };
        let pages = match (table.reach, index) {
            (Some(Reach { first, shift: PAGE_SHIFT }), None) => (first, 512),
            (Some(Reach { first, shift }), Some(index)) => {
                (first + (u64::from(index) << shift), 1 << (shift - PAGE_SHIFT))
            }
            _ => {
                self.flush();
                return true;
            }
        };
        for gva in (0..pages.1).map(|page| pages.0 + (page << PAGE_SHIFT)) {
            for side in 0..SIDE_NONE {
                self.forget_page(side, gva);
            }
        }
        true
    }

    fn forget_page(&mut self, side: u8, gva: u64) {
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
        let place = place(side, index);
        let entry = self.block.get(place);
        if entry.page == page {
            self.block.set(place, Entry { write: never(index), ..entry });
        }
    }

    /// Forgets that stores are allowed by any entry for `page`.
    pub(super) fn revoke_write(&mut self, page: u64) {
        for at in 0..self.filled.len() {
            let (side, index) = self.filled[at];
            self.revoke_write_at(side, usize::from(index), page);
        }
    }
}
