//! Walks that an engine has made something of, in one address space and on one side: they are right
//! until something they came from changes, as those in the entries are, but none makes room for
//! another.

use std::collections::BTreeMap;

use types::{PAGE_MASK, PAGE_SIZE};

use super::block::{ENTRIES, index_of};

/// Most pages of a run: those of a large page.
const RUN_MAX: u64 = 512;

/// See the module. Pages are by what an entry holds for them.
pub(super) struct Followed {
    pub(super) side: u8,
    /// By first linear address; they do not overlap.
    runs: BTreeMap<u64, Run>,
    /// First linear addresses of runs that may be written, by their first page.
    writers: BTreeMap<u64, Vec<u64>>,
    /// A bit for each index that any of the pages has.
    indices: Box<[u64; ENTRIES / 64]>,
    lost: Vec<Lost>,
    /// Pages that code was fetched from.
    fetched: BTreeMap<u64, u64>,
    fetched_lost: Vec<u64>,
}

/// Pages that follow each other in linear addresses and in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    page: u64,
    pages: u64,
    write: bool,
}

impl Run {
    fn size(self) -> u64 {
        self.pages * PAGE_SIZE
    }

    /// What is left of it from `from` to `to`, offsets in bytes.
    fn part(self, from: u64, to: u64) -> Run {
        Run { page: self.page + from, pages: (to - from) / PAGE_SIZE, ..self }
    }
}

/// Followed pages of which some may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Linear address of the first.
    pub gva: u64,
    /// How many follow each other.
    pub pages: u64,
}

impl Followed {
    pub(super) fn of(side: u8) -> Followed {
        Followed {
            side,
            runs: BTreeMap::new(),
            writers: BTreeMap::new(),
            indices: Box::new([0; ENTRIES / 64]),
            lost: Vec::new(),
            fetched: BTreeMap::new(),
            fetched_lost: Vec::new(),
        }
    }

    fn mark(&mut self, gva: u64) {
        let index = index_of(gva);
        self.indices[index / 64] |= 1 << (index % 64);
    }

    /// Code may be fetched from `page` at `gva`.
    pub(super) fn fetch(&mut self, gva: u64, page: u64) {
        self.mark(gva);
        self.fetched.insert(gva, page);
    }

    /// Follows `pages` pages from `page` on at `gva`; what was known of them does not count any
    /// more.
    pub(super) fn add(&mut self, gva: u64, page: u64, pages: u64, write: bool) {
        assert!((1..=RUN_MAX).contains(&pages));
        let end = gva + pages * PAGE_SIZE;
        while let Some((start, run)) =
            self.last_before(end).filter(|(at, run)| at + run.size() > gva)
        {
            self.take(start, run);
            if start < gva {
                self.put(start, run.part(0, gva - start));
            }
            if start + run.size() > end {
                self.put(end, run.part(end - start, run.size()));
            }
        }
        self.put(gva, Run { page, pages, write });
        (gva..end).step_by(PAGE_SIZE as usize).for_each(|gva| self.mark(gva));
    }

    fn last_before(&self, end: u64) -> Option<(u64, Run)> {
        self.runs.range(..end).next_back().map(|(&gva, &run)| (gva, run))
    }

    /// The run with the page at `gva`, and its first address.
    fn covering(&self, gva: u64) -> Option<(u64, Run)> {
        let (start, run) = self.last_before(gva.checked_add(1)?)?;
        (gva - start < run.size()).then_some((start, run))
    }

    /// Whether the page at `gva` is followed, and whether it may be written.
    pub(super) fn find(&self, gva: u64) -> Option<bool> {
        self.covering(gva).map(|(_, run)| run.write)
    }

    fn put(&mut self, gva: u64, run: Run) {
        self.runs.insert(gva, run);
        if run.write {
            self.writers.entry(run.page).or_default().push(gva);
        }
    }

    fn take(&mut self, gva: u64, run: Run) {
        self.runs.remove(&gva);
        if run.write
            && let Some(writers) = self.writers.get_mut(&run.page)
        {
            writers.retain(|writer| *writer != gva);
            if writers.is_empty() {
                self.writers.remove(&run.page);
            }
        }
    }

    fn lose_run(&mut self, gva: u64, run: Run) {
        self.take(gva, run);
        self.lost.push(Lost { gva, pages: run.pages });
    }

    /// What a walk at `gva` comes to may have changed.
    #[inline]
    pub(super) fn lose(&mut self, gva: u64) {
        let index = index_of(gva);
        if self.indices[index / 64] & 1 << (index % 64) != 0 {
            self.lose_page(gva);
        }
    }

    fn lose_page(&mut self, gva: u64) {
        if let Some((start, run)) = self.covering(gva) {
            self.lose_run(start, run);
        }
        self.lose_fetched(gva);
    }

    fn lose_fetched(&mut self, gva: u64) {
        if self.fetched.remove(&gva).is_some() {
            self.fetched_lost.push(gva);
        }
    }

    /// A walk at `gva` came to `page`.
    #[inline]
    pub(super) fn meet(&mut self, gva: u64, page: u64) {
        let index = index_of(gva);
        if self.indices[index / 64] & 1 << (index % 64) != 0 {
            self.compare(gva, page);
        }
    }

    fn compare(&mut self, gva: u64, page: u64) {
        if let Some((start, run)) = self.covering(gva)
            && run.page + (gva - start) != page
        {
            self.lose_run(start, run);
        }
        if self.fetched.get(&gva).is_some_and(|fetched| *fetched != page) {
            self.lose_fetched(gva);
        }
    }

    /// The page may not be written any more.
    pub(super) fn revoke_write(&mut self, page: u64) {
        let first = page.saturating_sub((RUN_MAX - 1) * PAGE_SIZE);
        let writers = self.writers.range(first..=page).flat_map(|(_, writers)| writers);
        let runs = writers.filter_map(|gva| Some((*gva, *self.runs.get(gva)?)));
        let has = |(_, run): &(u64, Run)| page - run.page < run.size();
        for (gva, run) in runs.filter(has).collect::<Vec<_>>() {
            self.lose_run(gva, run);
        }
    }

    /// All may have changed.
    pub(super) fn lose_all(&mut self) {
        self.writers.clear();
        self.indices.fill(0);
        self.fetched_lost.extend(std::mem::take(&mut self.fetched).into_keys());
        let runs = std::mem::take(&mut self.runs).into_iter();
        self.lost.extend(runs.map(|(gva, run)| Lost { gva, pages: run.pages }));
    }

    pub(super) fn lost(&mut self) -> &mut Vec<Lost> {
        &mut self.lost
    }

    pub(super) fn fetched_lost(&mut self) -> &mut Vec<u64> {
        &mut self.fetched_lost
    }
}

const _: () = assert!(PAGE_SIZE - 1 == PAGE_MASK);

#[cfg(test)]
mod tests {
    use super::*;

    const ALIAS: u64 = (ENTRIES as u64) << 12;

    fn lost(followed: &mut Followed) -> Vec<(u64, u64)> {
        followed.lost().drain(..).map(|lost| (lost.gva, lost.pages)).collect()
    }

    #[test]
    fn what_may_have_changed_is_lost_once() {
        let mut followed = Followed::of(0);
        for (gva, page, write) in [
            (0x5000, 0x7000, false),
            (0x5000 + ALIAS, 0x8000, true),
            (0x6000, 0x8000, true),
            (0x7000, 0x9000, true),
        ] {
            followed.add(gva, page, 1, write);
        }
        assert_eq!(followed.find(0x5000), Some(false));
        followed.lose(0x5000 + 2 * ALIAS);
        followed.meet(0x5000, 0x7000);
        followed.revoke_write(0x7000);
        assert_eq!(lost(&mut followed), []);
        followed.meet(0x5000, 0x6000);
        followed.lose(0x5000);
        assert_eq!(lost(&mut followed), [(0x5000, 1)]);
        followed.revoke_write(0x8000);
        followed.revoke_write(0x8000);
        assert_eq!(lost(&mut followed), [(0x5000 + ALIAS, 1), (0x6000, 1)]);
        followed.add(0x7000, 0x9000, 1, false);
        followed.revoke_write(0x9000);
        assert_eq!((followed.find(0x7000), lost(&mut followed)), (Some(false), vec![]));
        for (gva, page) in [(0x5000, 1), (0x6000, 2), (0x7000, 0x9000), (0x8000, 3)] {
            followed.fetch(gva, page);
        }
        followed.lose(0x5000);
        followed.meet(0x6000, 2);
        followed.meet(0x7000, 0xa000);
        assert_eq!(followed.fetched_lost(), &[0x5000, 0x7000]);
        assert_eq!(lost(&mut followed), [(0x7000, 1)]);
        followed.add(0x7000, 0x9000, 1, false);
        followed.lose_all();
        followed.lose_all();
        assert_eq!(lost(&mut followed), [(0x7000, 1)]);
        assert_eq!(followed.fetched_lost(), &[0x5000, 0x7000, 0x6000, 0x8000]);
    }

    #[test]
    fn runs_are_lost_whole_and_cut_by_others() {
        let large = 512 * PAGE_SIZE;
        let mut followed = Followed::of(0);
        followed.add(large, 4 * large, 512, true);
        assert_eq!(followed.find(2 * large - 1), Some(true));
        assert_eq!((followed.find(2 * large), followed.find(large - 1)), (None, None));
        followed.revoke_write(4 * large - PAGE_SIZE);
        followed.revoke_write(5 * large);
        assert_eq!(lost(&mut followed), []);
        followed.revoke_write(5 * large - PAGE_SIZE);
        assert_eq!(lost(&mut followed), [(large, 512)]);
        followed.add(large, 4 * large, 512, false);
        let inside = large + 3 * PAGE_SIZE;
        followed.add(inside, 4 * large + 3 * PAGE_SIZE, 2, true);
        assert_eq!(followed.find(inside + PAGE_SIZE), Some(true));
        followed.meet(inside + 2 * PAGE_SIZE, 4 * large + 5 * PAGE_SIZE);
        followed.meet(inside - PAGE_SIZE, 4 * large + 2 * PAGE_SIZE);
        assert_eq!(lost(&mut followed), []);
        followed.lose(inside - PAGE_SIZE);
        followed.lose(inside + 2 * PAGE_SIZE);
        followed.lose(inside);
        assert_eq!(lost(&mut followed), [(large, 3), (inside + 2 * PAGE_SIZE, 507), (inside, 2)]);
        followed.add(large, 0, 4, true);
        followed.add(large + 2 * PAGE_SIZE, 0x10_0000, 4, false);
        followed.add(large, 0x20_0000, 6, true);
        followed.revoke_write(0);
        assert_eq!(lost(&mut followed), []);
        followed.lose(large + 5 * PAGE_SIZE);
        assert_eq!(lost(&mut followed), [(large, 6)]);
    }
}
