//! Which entries may allow stores to a RAM page, so that taking that right away does not mean
//! looking at all of them.

/// An entry: address space, side, index.
pub(super) type At = (usize, u8, usize);

/// What is known of a RAM page, in a word: nothing, entries of one index, or that there may be
/// others. The kernel has a page at one address, whatever space it uses. An entry may since be
/// another page's.
const NOTHING: u32 = 0;
const ANY: u32 = u32::MAX;

/// In a word: the index, a bit for each side, and a bit for each space.
const INDEX_BITS: u32 = 14;
const SIDES_SHIFT: u32 = INDEX_BITS;
const SPACES_SHIFT: u32 = SIDES_SHIFT + 4;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

/// See the module.
#[derive(Default)]
pub(super) struct Writers(Vec<u32>);

/// Which entries may allow stores.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// None.
    Nobody,
    /// Those of this index: a bit for each space, and one for each side.
    At {
        /// Of address spaces.
        spaces: u8,
        /// Of sides.
        sides: u8,
        /// In both.
        index: usize,
    },
    /// Any.
    Any,
}

/// The numbers of the bits that are set.
pub(super) fn bits(set: u8) -> impl Iterator<Item = u8> {
    (0..8).filter(move |bit| set & 1 << bit != 0)
}

fn packed((space, side, index): At) -> u32 {
    index as u32 | 1 << (SIDES_SHIFT + u32::from(side)) | 1 << (SPACES_SHIFT + space as u32)
}

impl Writers {
    /// An entry allows stores to RAM page `page` from now on.
    #[inline]
    pub(super) fn add(&mut self, page: usize, at: At) {
        if page >= self.0.len() {
            self.grow(page);
        }
        let (word, new) = (&mut self.0[page], packed(at));
        let joins = *word == NOTHING || (*word ^ new) & INDEX_MASK == 0;
        *word = if joins { *word | new } else { ANY };
    }

    #[cold]
    fn grow(&mut self, page: usize) {
        // Zeroes that nobody touched take no memory.
        let mut more = vec![NOTHING; (page + 1).next_power_of_two()];
        more[..self.0.len()].copy_from_slice(&self.0);
        self.0 = more;
    }

    /// Those of `page`, from which the right is taken.
    pub(super) fn take(&mut self, page: usize) -> Writing {
        match self.0.get_mut(page).map_or(NOTHING, std::mem::take) {
            NOTHING => Writing::Nobody,
            ANY => Writing::Any,
            word => Writing::At {
                spaces: (word >> SPACES_SHIFT) as u8,
                sides: (word >> SIDES_SHIFT) as u8 & 0xf,
                index: (word & INDEX_MASK) as usize,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlb::SPACES_MAX;
    use crate::tlb::block::ENTRIES;

    #[test]
    fn writers_of_a_page_are_known_while_they_have_one_index() {
        const { assert!(ENTRIES <= 1 << INDEX_BITS && SPACES_MAX <= 8) };
        let mut writers = Writers::default();
        let index = ENTRIES - 1;
        assert_eq!(writers.take(9), Writing::Nobody);
        writers.add(9, (7, 2, index));
        writers.add(9, (7, 2, index));
        writers.add(9, (0, 1, index));
        writers.add(3, (0, 0, 0));
        writers.add(100, (0, 1, 0));
        assert_eq!(writers.take(9), Writing::At { spaces: 0x81, sides: 0b110, index });
        assert_eq!(writers.take(9), Writing::Nobody);
        assert_eq!(writers.take(3), Writing::At { spaces: 1, sides: 1, index: 0 });
        writers.add(100, (0, 1, index));
        writers.add(100, (0, 1, 0));
        assert_eq!(writers.take(100), Writing::Any);
        assert_eq!(writers.take(100), Writing::Nobody);
        assert_eq!(bits(0x81).collect::<Vec<_>>(), [0, 7]);
    }
}
