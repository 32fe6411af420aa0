//! Which pages have contents that came from elsewhere: a bit per page.

/// A set of pages, empty until something is put in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Present(Vec<u64>);

impl Present {
    pub(crate) fn insert(&mut self, first: usize, count: usize, is_in: bool) {
        let end = first + count;
        if is_in && self.0.len() * 64 < end {
            self.0.resize(end.div_ceil(64), 0);
        }
        for page in first..end {
            let Some(word) = self.0.get_mut(page / 64) else { return };
            let bit = 1 << (page % 64);
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }

    #[inline]
    pub(crate) fn contains(&self, page: usize) -> bool {
        self.0.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }
}
