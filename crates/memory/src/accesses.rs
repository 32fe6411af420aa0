//! Bytes of RAM whose loads or stores a debugger wants to know of. What the guest does with other
//! bytes costs nothing; what it does with their pages takes the slow path.

use types::PAGE_SHIFT;

use crate::ram::RamOffset;

/// Bytes that are watched, within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessWatch {
    /// The first.
    pub at: RamOffset,
    /// How many.
    pub len: u64,
    /// Loads count.
    pub loads: bool,
    /// Stores count.
    pub stores: bool,
}

/// All watches, and what was accessed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accesses {
    watches: Vec<AccessWatch>,
    seen: Option<usize>,
}

impl Accesses {
    pub(crate) fn set(&mut self, watches: Vec<AccessWatch>) {
        (self.watches, self.seen) = (watches, None);
    }

    /// Whether accesses to `page` must be noted.
    #[inline]
    pub(crate) fn is_in(&self, page: usize) -> bool {
        self.watches.iter().any(|watch| (watch.at.0 >> PAGE_SHIFT) as usize == page)
    }

    /// Notes an access; whether it was to watched bytes.
    #[inline]
    pub(crate) fn note(&mut self, at: RamOffset, len: u64, store: bool) -> bool {
        let hit = |watch: &AccessWatch| {
            let counts = if store { watch.stores } else { watch.loads };
            counts && at.0 < watch.at.0 + watch.len && watch.at.0 < at.0 + len
        };
        let found = self.watches.iter().position(hit);
        self.seen = self.seen.or(found);
        found.is_some()
    }

    pub(crate) fn take(&mut self) -> Option<usize> {
        self.seen.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_noted_where_it_overlaps_and_counts() {
        let mut accesses = Accesses::default();
        assert!(!accesses.is_in(3) && !accesses.note(RamOffset(0x3010), 8, false));
        let watch = |at, loads, stores| AccessWatch { at: RamOffset(at), len: 4, loads, stores };
        accesses.set(vec![watch(0x3010, false, true), watch(0x5ffc, true, true)]);
        assert!(accesses.is_in(3) && !accesses.is_in(4) && accesses.is_in(5));
        for (at, len, store, hit) in [
            (0x3010, 4, false, None),
            (0x300f, 1, true, None),
            (0x300f, 2, true, Some(0)),
            (0x3013, 8, true, Some(0)),
            (0x3014, 8, true, None),
            (0x5ff8, 8, false, Some(1)),
            (0x5fff, 1, true, Some(1)),
        ] {
            assert_eq!(accesses.note(RamOffset(at), len, store), hit.is_some(), "{at:#x}");
            assert_eq!(accesses.take(), hit, "{at:#x}");
        }
        accesses.note(RamOffset(0x3010), 1, true);
        accesses.note(RamOffset(0x5ffc), 1, true);
        assert_eq!((accesses.take(), accesses.take()), (Some(0), None), "the first one");
    }
}
