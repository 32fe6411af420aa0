//! Walks that an engine has made something of, in one address space and on one side: they are right
//! until something they came from changes, as those in the entries are, but none makes room for
//! another.

use std::collections::BTreeMap;

use super::block::{ENTRIES, index_of};

/// See the module. Pages are by what an entry holds for them.
pub(super) struct Followed {
    pub(super) side: u8,
    walks: BTreeMap<u64, Walk>,
    /// Linear addresses at which pages may be written.
    writers: BTreeMap<u64, Vec<u64>>,
    /// A bit for each index that any of them has.
    indices: Box<[u64; ENTRIES / 64]>,
    lost: Vec<u64>,
}

/// What one came to.
#[derive(Clone, Copy)]
struct Walk {
    page: u64,
    write: bool,
}

impl Followed {
    pub(super) fn of(side: u8) -> Followed {
        Followed {
            side,
            walks: BTreeMap::new(),
            writers: BTreeMap::new(),
            indices: Box::new([0; ENTRIES / 64]),
            lost: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.walks.len()
    }

    pub(super) fn add(&mut self, gva: u64, page: u64, write: bool) {
        let index = index_of(gva);
        self.indices[index / 64] |= 1 << (index % 64);
        let old = self.walks.insert(gva, Walk { page, write });
        if let Some(old) = old {
            self.end_writing(gva, old);
        }
        if write {
            self.writers.entry(page).or_default().push(gva);
        }
    }

    /// Whether the page at `gva` is among them, and whether it may be written.
    pub(super) fn find(&self, gva: u64) -> Option<bool> {
        self.walks.get(&gva).map(|walk| walk.write)
    }

    fn end_writing(&mut self, gva: u64, walk: Walk) {
        if walk.write
            && let Some(writers) = self.writers.get_mut(&walk.page)
        {
            writers.retain(|writer| *writer != gva);
            if writers.is_empty() {
                self.writers.remove(&walk.page);
            }
        }
    }

    /// What a walk at `gva` comes to may have changed.
    #[inline]
    pub(super) fn lose(&mut self, gva: u64) {
        let index = index_of(gva);
        if self.indices[index / 64] & 1 << (index % 64) != 0 {
            self.remove(gva);
        }
    }

    fn remove(&mut self, gva: u64) {
        if let Some(walk) = self.walks.remove(&gva) {
            self.end_writing(gva, walk);
            self.lost.push(gva);
        }
    }

    /// A walk at `gva` came to `page`.
    #[inline]
    pub(super) fn meet(&mut self, gva: u64, page: u64) {
        if self.walks.get(&gva).is_some_and(|walk| walk.page != page) {
            self.remove(gva);
        }
    }

    /// The page may not be written any more.
    pub(super) fn revoke_write(&mut self, page: u64) {
        for gva in self.writers.get(&page).cloned().unwrap_or_default() {
            self.remove(gva);
        }
    }

    /// All may have changed.
    pub(super) fn lose_all(&mut self) {
        self.writers.clear();
        self.indices.fill(0);
        self.lost.extend(std::mem::take(&mut self.walks).into_keys());
    }

    pub(super) fn lost(&mut self) -> &mut Vec<u64> {
        &mut self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_changed_is_lost_once() {
        let mut followed = Followed::of(0);
        let alias = (ENTRIES as u64) << 12;
        for (gva, page, write) in
            [(0x5000, 7, false), (0x5000 + alias, 8, true), (0x6000, 8, true), (0x7000, 9, true)]
        {
            followed.add(gva, page, write);
        }
        assert_eq!((followed.len(), followed.find(0x5000)), (4, Some(false)));
        followed.lose(0x5000 + 2 * alias);
        followed.meet(0x5000, 7);
        followed.revoke_write(7);
        assert!(followed.lost().is_empty());
        followed.meet(0x5000, 6);
        followed.lose(0x5000);
        assert_eq!(followed.lost(), &[0x5000]);
        followed.revoke_write(8);
        followed.revoke_write(8);
        assert_eq!(followed.lost(), &[0x5000, 0x5000 + alias, 0x6000]);
        followed.add(0x7000, 9, false);
        followed.revoke_write(9);
        assert_eq!((followed.find(0x7000), followed.lost().len()), (Some(false), 3));
        followed.lose_all();
        followed.lose_all();
        assert_eq!((followed.len(), followed.lost().len()), (0, 4));
    }
}
