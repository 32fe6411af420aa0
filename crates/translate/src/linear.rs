//! The table of indirect branches by linear address, for the code that has the shadow: a hit needs
//! no lookup in the TLB, because walks of pages with code in it are followed as data's are.

use types::{PAGE_MASK, PAGE_SIZE};

use crate::classify::Mode;
use crate::entry::STACK_CHECK_SIZE;
use crate::layout::BranchSlot;

/// Slots: a target's is the one of its last bits.
const SLOTS: usize = 1 << 16;
/// Pages that have the same slots are so many apart.
const PAGES: usize = SLOTS / PAGE_SIZE as usize;
/// The index of a slot in bytes is the target, shifted so far, and masked.
pub(crate) const SLOT_SHIFT: u32 = size_of::<BranchSlot>().trailing_zeros();
pub(crate) const SLOT_MASK: u32 = ((SLOTS - 1) << SLOT_SHIFT) as u32;

/// See the module.
pub(crate) struct Linear {
    slots: Box<[BranchSlot]>,
    /// Whose translations are in it, and in whose reign ([`crate::shadow::ShadowMap::reign`]).
    of: Option<(Mode, u64)>,
}

/// What no target matches: the key is another slot's.
fn free(index: usize) -> BranchSlot {
    BranchSlot { key: index as u64 ^ 1, target: 0 }
}

impl Linear {
    pub(crate) fn new() -> Linear {
        Linear { slots: Box::default(), of: None }
    }

    /// Address of the table, for code of `mode` in the shadow's present reign.
    pub(crate) fn table(&mut self, mode: Mode, reign: u64) -> u64 {
        if self.of != Some((mode, reign)) {
            self.clear();
            self.of = Some((mode, reign));
            if self.slots.is_empty() {
                self.slots = (0..SLOTS).map(free).collect();
            }
        }
        self.slots.as_ptr() as u64
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        if self.of.take().is_some() {
            self.slots.iter_mut().enumerate().for_each(|(index, slot)| *slot = free(index));
        }
    }

    /// Nothing in the pages at these linear addresses is known any more.
    pub(crate) fn forget_pages(&mut self, pages: impl Iterator<Item = u64>) {
        if self.of.is_none() {
            return pages.for_each(drop);
        }
        for page in pages {
            let first = page as usize % SLOTS;
            for index in first..first + PAGE_SIZE as usize {
                if self.slots[index].key & !PAGE_MASK == page {
                    self.slots[index] = free(index);
                }
            }
        }
    }

    /// The translation with its entry at host address `target`, of code at `offset` of a page,
    /// goes.
    pub(crate) fn forget_target(&mut self, offset: u16, target: u64) {
        if self.of.is_none() {
            return;
        }
        for page in 0..PAGES {
            let index = page * PAGE_SIZE as usize + usize::from(offset);
            let behind = self.slots[index].target.wrapping_sub(target);
            if behind == 0 || behind == u64::from(STACK_CHECK_SIZE) {
                self.slots[index] = free(index);
            }
        }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_forgotten_by_page_and_by_translation() {
        let mut linear = Linear::new();
        linear.forget_target(5, 0);
        linear.forget_pages([0x1000].into_iter());
        linear.table(Mode::default(), 1);
        for index in 0..SLOTS {
            assert_ne!(linear.slots[index].key as usize % SLOTS, index, "nothing is hit");
        }
        let put = |linear: &mut Linear, key: u64, target| {
            linear.slots[key as usize % SLOTS] = BranchSlot { key, target };
        };
        let has = |linear: &Linear, key: u64| linear.slots[key as usize % SLOTS].key == key;
        let (a, b, c) = (0x7000_0000_1234, 0x7000_0000_2234, 0x7000_0001_1235);
        for (key, target) in [(a, 7), (b, 7), (c, 8)] {
            put(&mut linear, key, target);
        }
        linear.forget_pages([0x7000_0001_2000, 0x7000_0001_1000].into_iter());
        assert!(has(&linear, a) && has(&linear, b) && !has(&linear, c));
        linear.forget_target(0x235, 7);
        linear.forget_target(0x234, 8);
        assert!(has(&linear, a) && has(&linear, b));
        linear.forget_target(0x234, 7);
        assert!(!has(&linear, a) && !has(&linear, b));
        put(&mut linear, c, 8);
        linear.table(Mode::default(), 1);
        assert!(has(&linear, c));
        linear.table(Mode { avx: true, ..Mode::default() }, 1);
        assert!(!has(&linear, c));
        put(&mut linear, c, 8);
        linear.table(Mode { avx: true, ..Mode::default() }, 2);
        assert!(!has(&linear, c));
    }
}
