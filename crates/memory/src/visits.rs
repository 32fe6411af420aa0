//! Which code was executed: marks of its bytes, for who looks for that in the past.
//!
//! A byte of marks stands for [`VISIT_SIZE`] bytes of RAM and is anything but 0 once one of them
//! was executed. It takes memory where code is, and only where it was asked for. By which linear
//! addresses RAM was executed is noted when a TLB entry is about to allow it.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

use types::{PAGE_SHIFT, PAGE_SIZE};

use crate::mapping::{Mapping, RamError};

/// Bytes of RAM for each mark. Compilers align functions to as many or more.
pub const VISIT_SIZE: u64 = 16;
/// Bytes of marks for a page.
const MARKS: usize = (PAGE_SIZE / VISIT_SIZE) as usize;

/// Executed code of a page: a bit for each [`VISIT_SIZE`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visited([u64; MARKS / 64]);

impl Visited {
    /// The byte at `offset` of the page alone.
    pub fn at(offset: u64) -> Visited {
        let mut visited = Visited::default();
        visited.add((offset / VISIT_SIZE) as usize % MARKS);
        visited
    }

    /// All of the page.
    pub const ANYWHERE: Visited = Visited([u64::MAX; MARKS / 64]);

    fn add(&mut self, mark: usize) {
        self.0[mark / 64] |= 1 << (mark % 64);
    }

    /// Whether both have something in common.
    pub fn meets(&self, other: &Visited) -> bool {
        self.0.iter().zip(&other.0).any(|(one, other)| one & other != 0)
    }

    /// Adds what is in `other`.
    pub fn join(&mut self, other: &Visited) {
        self.0.iter_mut().zip(&other.0).for_each(|(one, other)| *one |= other);
    }
}

/// The marks of all of RAM.
pub(crate) struct Visits {
    marks: Mapping,
    /// Linear pages, by number, and RAM pages at them.
    places: BTreeSet<(u64, usize)>,
}

impl Visits {
    pub(crate) fn new(ram_size: u64) -> Result<Visits, RamError> {
        let marks = Mapping::private(ram_size / VISIT_SIZE)?;
        Ok(Visits { marks, places: BTreeSet::new() })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.marks.base()
    }

    /// RAM page `page` can be executed at linear address `gva` from now on.
    pub(crate) fn place(&mut self, gva: u64, page: usize) {
        self.places.insert((gva >> PAGE_SHIFT, page));
    }

    /// `len` bytes (1 or more) at RAM offset `at` are executed.
    pub(crate) fn note(&mut self, at: u64, len: u64) {
        for mark in at / VISIT_SIZE..=(at + len.max(1) - 1) / VISIT_SIZE {
            self.marks.store(mark, [u8::MAX]);
        }
    }

    /// What was executed since the last call, by linear page.
    pub(crate) fn take(&mut self) -> BTreeMap<u64, Visited> {
        let places = std::mem::take(&mut self.places);
        let (mut by_page, mut visits) = (BTreeMap::new(), BTreeMap::new());
        for (number, page) in places {
            let visited = by_page.entry(page).or_insert_with(|| self.take_page(page));
            visits.entry(number).or_insert_with(Visited::default).join(visited);
        }
        visits
    }

    fn take_page(&mut self, page: usize) -> Visited {
        let at = (page * MARKS) as u64;
        let marks: [u8; MARKS] = self.marks.load(at);
        let mut visited = Visited::default();
        if marks != [0; MARKS] {
            let marked = marks.iter().enumerate().filter(|(_, mark)| **mark != 0);
            marked.for_each(|(mark, _)| visited.add(mark));
            self.marks.store(at, [0; MARKS]);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_tell_sixteen_bytes_apart_and_are_taken_once() {
        let mut visits = Visits::new(1 << 20).unwrap();
        visits.place(0x1234_5678, 2);
        visits.place(0x9000, 2);
        visits.place(0x9000, 1);
        visits.note(2 * PAGE_SIZE + 31, 2);
        visits.note(2 * PAGE_SIZE + 4095, 1);
        let taken = visits.take();
        assert_eq!(taken.keys().collect::<Vec<_>>(), [&9, &0x12345]);
        assert_eq!(taken[&9], taken[&0x12345]);
        let visited = taken[&9];
        for (offset, is_in) in [(15, false), (16, true), (47, true), (48, false), (4080, true)] {
            assert_eq!(visited.meets(&Visited::at(offset)), is_in, "{offset}");
        }
        visits.place(0x9000, 2);
        assert_eq!(visits.take()[&9], Visited::default());
        let mut both = Visited::at(48);
        both.join(&visited);
        assert!(both.meets(&Visited::at(4095)) && both.meets(&Visited::at(48)));
        assert!(Visited::ANYWHERE.meets(&Visited::at(700)));
    }
}
