//! The write trap: per page, in which epoch it was last written, which of its bytes are code, and
//! whether TLB entries were derived from it as a page table.
//!
//! A consumer of dirty pages (hash, migration, checkpoint) opens an epoch and later asks for the
//! pages whose last write is in it or after. Opening one costs a counter and a TLB drop, whatever
//! the size of RAM (mechanisms M4, C3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cow::{CowGuest, Pages};
use crate::mapping::PageReader;
use crate::present::Present;
use crate::words::Words;

/// Largest number of an epoch: twice it, and one more, fit a word.
const EPOCH_MAX: u32 = (1 << 31) - 1;

/// Number of an epoch; the first is 1. A page never written has epoch 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub(crate) u32);

/// Bytes of a page that one bit of its code mask stands for.
pub(crate) const GRANULE_SIZE: u64 = 64;

pub(crate) struct Traps {
    epoch: u32,
    /// Written by the machine alone, read by savers too.
    written: Words,
    /// For copy on write: the instant each page was last settled for.
    settled: Words,
    cow: Option<CowGuest>,
    present: Arc<Present>,
    code: Vec<u64>,
    generation: Vec<u32>,
    code_writes: u64,
    table: Vec<u8>,
    table_writes: u64,
    /// What of page-table pages was overwritten, in order.
    overwritten: Vec<Overwritten>,
}

/// Writes to a page-table page without effect on cached walks after which it counts as data again.
const TABLE_QUIET_WRITES_MAX: u8 = 64;
/// An overwritten present entry that a TLB can forget by itself counts as so many of them.
const TABLE_ENTRY_COST: u8 = 8;
/// What of a page-table page, by its index in RAM, was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwritten {
    /// One present entry, by its index among the page's quadwords.
    Entry(usize, u16),
    /// So much that the page is no longer watched.
    Table(usize),
}

/// Overwritten entries noted before all cached walks are dropped instead.
const OVERWRITTEN_MAX: usize = 8;

impl Traps {
    pub(crate) fn new(pages: usize) -> Traps {
        Traps {
            epoch: 1,
            written: Words::new(pages),
            settled: Words::new(pages),
            cow: None,
            present: Arc::default(),
            code: vec![0; pages],
            generation: vec![0; pages],
            code_writes: 0,
            table: vec![0; pages],
            table_writes: 0,
            overwritten: Vec::with_capacity(OVERWRITTEN_MAX),
        }
    }

    /// What a saver on another thread needs.
    pub(crate) fn pages(&self, reader: PageReader) -> Pages {
        let (written, settled) = (self.written.clone(), self.settled.clone());
        Pages { reader, written, settled, present: Arc::clone(&self.present) }
    }

    /// Pages with contents from elsewhere, which count as written in epoch 0.
    pub(crate) fn set_present(&mut self, present: Present) {
        self.present = Arc::new(present);
    }

    pub(crate) fn begin_epoch(&mut self) -> Epoch {
        assert!(self.epoch < EPOCH_MAX, "fewer than 2^31 - 1 epochs");
        self.epoch += 1;
        Epoch(self.epoch)
    }

    /// Opens an epoch whose first writes preserve the pages as they are now (mechanism C3).
    pub(crate) fn begin_copy_on_write(&mut self, mut guest: CowGuest) -> Epoch {
        let epoch = self.begin_epoch();
        guest.open(epoch.0);
        self.cow = Some(guest);
        epoch
    }

    /// Runs before the first write to `page` in an epoch; cheap on every later one. Whether
    /// copy on write had to look at the page, which takes its time.
    #[inline]
    pub(crate) fn before_write(&mut self, page: usize) -> bool {
        let word = self.written.at(page);
        let written = word.load(Ordering::Relaxed);
        if written == self.epoch {
            return false;
        }
        let preserved = self.cow.is_some() && self.preserve(page, written);
        self.written.at(page).store(self.epoch, Ordering::Release);
        preserved
    }

    #[cold]
    fn preserve(&mut self, page: usize, written: u32) -> bool {
        let Some(cow) = &mut self.cow else { return false };
        if cow.is_over() {
            self.cow = None;
            return false;
        }
        cow.before_write(page, written);
        true
    }

    #[inline]
    pub(crate) fn written_since(&self, page: usize, epoch: Epoch) -> bool {
        self.written.at(page).load(Ordering::Relaxed) >= epoch.0
    }

    pub(crate) fn ever_written(&self, page: usize) -> bool {
        self.written.at(page).load(Ordering::Relaxed) != 0 || self.present.contains(page)
    }

    /// Marks `len` bytes at `offset` of `page` as decoded code; true if the page held none before.
    pub(crate) fn mark_code(&mut self, page: usize, offset: u64, len: u64) -> bool {
        let fresh = self.code[page] == 0;
        self.code[page] |= granules(offset, len);
        fresh
    }

    #[cfg(test)]
    pub(crate) fn holds_code(&self, page: usize) -> bool {
        self.code[page] != 0
    }

    /// Marks `page` as read by a page walk; true if it was not marked before.
    pub(crate) fn mark_table(&mut self, page: usize) -> bool {
        std::mem::replace(&mut self.table[page], TABLE_QUIET_WRITES_MAX) == 0
    }

    /// Whether a write to `page` must take the slow path.
    #[inline]
    pub(crate) fn is_watched(&self, page: usize) -> bool {
        self.code[page] != 0 || self.table[page] != 0
    }

    #[inline]
    pub(crate) fn is_table(&self, page: usize) -> bool {
        self.table[page] != 0
    }

    #[inline]
    pub(crate) fn table_writes(&self) -> u64 {
        self.table_writes
    }

    /// A page-table page is about to be written; `was_present` if an entry that a TLB may hold
    /// goes. Only then, or when there were many others, cached walks through it are dropped.
    pub(crate) fn table_written(&mut self, page: usize, was_present: bool) {
        self.table[page] = if was_present { 0 } else { self.table[page] - 1 };
        if self.table[page] != 0 {
            return;
        }
        if self.overwritten.len() == OVERWRITTEN_MAX {
            self.table_writes += 1;
        } else {
            self.overwritten.push(Overwritten::Table(page));
        }
    }

    /// The present entry `index` of a page-table page is about to be overwritten, and nothing else
    /// of it: what a TLB has of that entry is to be forgotten. So the page stays watched, but not
    /// for long if that goes on, as when an address space is taken down.
    pub(crate) fn table_entry_written(&mut self, page: usize, index: u16) {
        let left = self.table[page].saturating_sub(TABLE_ENTRY_COST);
        if left == 0 || self.overwritten.len() == OVERWRITTEN_MAX {
            return self.table_written(page, true);
        }
        self.table[page] = left;
        self.overwritten.push(Overwritten::Entry(page, index));
    }

    #[inline]
    pub(crate) fn overwritten(&mut self) -> &mut Vec<Overwritten> {
        &mut self.overwritten
    }

    /// Whether the trap of `page` ran in this epoch.
    #[inline]
    pub(crate) fn is_trapped(&self, page: usize) -> bool {
        self.written.at(page).load(Ordering::Relaxed) == self.epoch
    }

    #[inline]
    pub(crate) fn generation(&self, page: usize) -> u32 {
        self.generation[page]
    }

    #[inline]
    pub(crate) fn code_writes(&self) -> u64 {
        self.code_writes
    }

    /// Drops what engines derived from `page` if the written bytes were code.
    #[inline]
    pub(crate) fn invalidate_code(&mut self, page: usize, offset: u64, len: u64) {
        if self.code[page] & granules(offset, len) != 0 {
            self.code[page] = 0;
            self.generation[page] = self.generation[page].wrapping_add(1);
            self.code_writes += 1;
        }
    }
}

/// The mask bits of `len` bytes (1 or more) at `offset` of a page.
fn granules(offset: u64, len: u64) -> u64 {
    let first = offset / GRANULE_SIZE;
    let last = (offset + len.max(1) - 1).min(4095) / GRANULE_SIZE;
    let count = last - first + 1;
    let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
    ones << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_cover_exactly_the_bytes() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 0b11);
        assert_eq!(granules(0, 4096), u64::MAX);
        assert_eq!(granules(4095, 1), 1 << 63);
    }

    #[test]
    fn code_write_outside_granule_keeps_generation() {
        let mut traps = Traps::new(2);
        assert!(traps.mark_code(1, 128, 10));
        assert!(!traps.mark_code(1, 140, 10));
        traps.invalidate_code(1, 0, 64);
        assert_eq!(traps.generation(1), 0);
        traps.invalidate_code(1, 100, 29);
        assert_eq!(traps.generation(1), 1);
        assert!(!traps.holds_code(1));
    }
}
