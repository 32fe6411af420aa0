//! Which entries may allow stores to a RAM page, so that taking that right away does not mean
//! looking at all of them.

/// An entry: address space, side, index.
pub(super) type At = (usize, u8, usize);

/// What is known of a RAM page, in a word: nothing, one entry, or that there may be several. An
/// entry may since be another page's.
const NOTHING: u32 = 0;
const SEVERAL: u32 = u32::MAX;

/// See the module.
#[derive(Default)]
pub(super) struct Writers(Vec<u32>);

/// Which entries may allow stores.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// None.
    Nobody,
    /// This one.
    One(At),
    /// Any.
    Several,
}

fn packed((space, side, index): At) -> u32 {
    1 + (space << 16 | usize::from(side) << 14 | index) as u32
}

fn unpacked(word: u32) -> At {
    let word = word - 1;
    ((word >> 16) as usize, (word >> 14) as u8 & 3, word as usize & 0x3fff)
}

impl Writers {
    /// An entry allows stores to RAM page `page` from now on.
    pub(super) fn add(&mut self, page: usize, at: At) {
        if page >= self.0.len() {
            // Zeroes that nobody touched take no memory.
            let mut more = vec![NOTHING; (page + 1).next_power_of_two()];
            more[..self.0.len()].copy_from_slice(&self.0);
            self.0 = more;
        }
        let (word, new) = (&mut self.0[page], packed(at));
        *word = if *word == NOTHING || *word == new { new } else { SEVERAL };
    }

    /// Those of `page`, from which the right is taken.
    pub(super) fn take(&mut self, page: usize) -> Writing {
        match self.0.get_mut(page).map_or(NOTHING, std::mem::take) {
            NOTHING => Writing::Nobody,
            SEVERAL => Writing::Several,
            word => Writing::One(unpacked(word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlb::block::ENTRIES;

    #[test]
    fn writers_of_a_page_are_one_or_several_until_they_are_taken() {
        const { assert!(ENTRIES <= 1 << 14) };
        let mut writers = Writers::default();
        let last = (7, 2, ENTRIES - 1);
        assert_eq!(writers.take(9), Writing::Nobody);
        writers.add(9, last);
        writers.add(9, last);
        writers.add(3, (0, 0, 0));
        writers.add(100, (0, 1, 0));
        assert_eq!(writers.take(9), Writing::One(last));
        assert_eq!(writers.take(9), Writing::Nobody);
        assert_eq!(writers.take(3), Writing::One((0, 0, 0)));
        writers.add(100, last);
        assert_eq!(writers.take(100), Writing::Several);
        assert_eq!(writers.take(100), Writing::Nobody);
    }
}
