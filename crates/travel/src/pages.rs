//! Contents of RAM pages at checkpoints: a version for each checkpoint at which a page differed
//! from the one before.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::travel::Position;

/// A page's contents.
pub(crate) type Page = [u8; 4096];

/// What a page was at a position, and before.
type Version = (Position, Option<Arc<Page>>);

/// Versions of pages, by page and position.
#[derive(Default)]
pub(crate) struct Pages {
    versions: BTreeMap<u32, Vec<Version>>,
    kept: usize,
}

impl Pages {
    /// Pages that were ever anything but zeroes.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.versions.keys().copied()
    }

    /// Contents of `page` as of the checkpoint at `at`; `None` are zeroes, as are pages never
    /// heard of.
    pub fn content(&self, page: u32, at: Position) -> Option<&Arc<Page>> {
        let versions = self.versions.get(&page)?;
        let index = versions.partition_point(|(then, _)| *then <= at);
        versions[..index].last().and_then(|(_, content)| content.as_ref())
    }

    /// Keeps `bytes` as what `page` is from `at` on; nothing if it is what it was. `next` is the
    /// checkpoint after it, which stays what it is. Whether something was kept, and whether that
    /// makes the page at `next` differ from what is before.
    pub fn keep(
        &mut self,
        page: u32,
        at: Position,
        next: Option<Position>,
        bytes: &Page,
    ) -> (bool, bool) {
        let zero = bytes.iter().all(|byte| *byte == 0);
        let before = self.content(page, at);
        if before.map_or(zero, |before| **before == *bytes) {
            return (false, false);
        }
        let (before, content) = (before.cloned(), (!zero).then(|| Arc::new(*bytes)));
        self.kept += usize::from(!zero);
        let versions = self.versions.entry(page).or_default();
        let index = versions.partition_point(|(then, _)| *then < at);
        versions.insert(index, (at, content));
        let next = next.filter(|next| {
            let later = versions.get(index + 1);
            later.is_none_or(|(then, _)| then > next)
        });
        if let Some(next) = next {
            self.kept += usize::from(before.is_some());
            versions.insert(index + 1, (next, before));
        }
        (true, next.is_some())
    }

    /// Bytes that are kept.
    pub fn size(&self) -> usize {
        self.kept * size_of::<Page>()
    }

    /// The checkpoint at `at` goes: its version of `page` becomes that of the checkpoint at `next`,
    /// unless that has its own.
    pub fn forget(&mut self, page: u32, at: Position, next: Position) {
        let Some(versions) = self.versions.get_mut(&page) else { return };
        let Ok(index) = versions.binary_search_by_key(&at, |(then, _)| *then) else { return };
        match versions.get(index + 1) {
            Some((then, _)) if *then <= next => {
                let (_, content) = versions.remove(index);
                self.kept -= usize::from(content.is_some());
            }
            _ => versions[index].0 = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(branches: u64) -> Position {
        Position { branches, ..Position::default() }
    }

    #[test]
    fn pages_are_what_they_were_and_forgetting_keeps_the_rest() {
        let mut pages = Pages::default();
        let mut keep = |when, byte| pages.keep(7, at(when), None, &[byte; 4096]).0;
        assert!(!keep(0, 0));
        assert!(keep(10, 1));
        assert!(!keep(20, 1));
        assert!(keep(30, 3));
        assert!(keep(40, 0));
        let first = |pages: &Pages, when| pages.content(7, at(when)).map_or(0, |page| page[0]);
        let all = |pages: &Pages| [0, 10, 20, 30, 40].map(|when| first(pages, when));
        assert_eq!(all(&pages), [0, 1, 1, 3, 0]);
        assert_eq!(pages.size(), 2 * 4096);
        pages.forget(7, at(10), at(20));
        assert_eq!([0, 20, 30, 40].map(|when| first(&pages, when)), [0, 1, 3, 0]);
        pages.forget(7, at(30), at(40));
        assert_eq!([0, 20, 40].map(|when| first(&pages, when)), [0, 1, 0]);
        assert_eq!(pages.size(), 4096);
    }
}
