//! Instructions that are not translated, because a debugger has breakpoints there.
//!
//! Translations are of RAM, breakpoints are linear addresses: which RAM page it is shows when the
//! TLB leads there. Translations of that page are dropped then, and no other contains the
//! instruction, whatever addresses lead to it.

use std::collections::{BTreeMap, BTreeSet};

use cpu::Vcpu;
use cpu::tlb::{SIDE_SUPERVISOR, SIDE_SUPERVISOR_ANY, SIDE_USER};
use memory::RamOffset;
use types::{PAGE_MASK, PAGE_SHIFT};

/// Offsets of breakpoints in pages, by the pages' numbers.
type Offsets<Number> = BTreeMap<Number, BTreeSet<u16>>;

/// Where breakpoints are.
#[derive(Default)]
pub(crate) struct Breakpoints {
    /// In linear pages.
    linear: Offsets<u64>,
    /// In RAM pages known to be at these.
    places: Offsets<usize>,
}

impl Breakpoints {
    pub(crate) fn at(addresses: &[u64]) -> Breakpoints {
        let mut linear = Offsets::default();
        for address in addresses {
            let offsets: &mut BTreeSet<u16> = linear.entry(address >> PAGE_SHIFT).or_default();
            offsets.insert((address & PAGE_MASK) as u16);
        }
        Breakpoints { linear, ..Breakpoints::default() }
    }

    /// Whether there are none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.linear.is_empty()
    }

    /// RAM pages that have some.
    pub(crate) fn pages(&self) -> impl Iterator<Item = usize> {
        self.places.keys().copied()
    }

    /// Whether the page of linear address `rip` has some.
    pub(crate) fn in_page(&self, rip: u64) -> bool {
        self.linear.contains_key(&(rip >> PAGE_SHIFT))
    }

    /// Whether there is one at the instruction at `at`, by some linear address.
    pub(crate) fn is_at(&self, at: RamOffset) -> bool {
        let offset = (at.0 & PAGE_MASK) as u16;
        self.places.get(&at.page()).is_some_and(|offsets| offsets.contains(&offset))
    }

    /// Offsets of those in a RAM page.
    pub(crate) fn in_ram_page(&self, page: usize) -> Vec<u16> {
        self.places.get(&page).map_or_else(Vec::new, |offsets| offsets.iter().copied().collect())
    }

    /// The code at linear address `rip` is at `at`; the RAM page, if there are breakpoints in it
    /// that were not known.
    pub(crate) fn learn(&mut self, rip: u64, at: RamOffset) -> Option<usize> {
        let offsets = self.linear.get(&(rip >> PAGE_SHIFT))?;
        let known = self.places.entry(at.page()).or_default();
        let before = known.len();
        known.extend(offsets);
        (known.len() != before).then_some(at.page())
    }

    /// As [`Breakpoints::learn`], of all places that translated code may go to by the TLB.
    pub(crate) fn learn_all(&mut self, vcpu: &Vcpu) -> Vec<usize> {
        let mut new = Vec::new();
        let pages: Vec<u64> = self.linear.keys().map(|number| number << PAGE_SHIFT).collect();
        for gva in pages {
            for side in [SIDE_USER, SIDE_SUPERVISOR, SIDE_SUPERVISOR_ANY] {
                let at = vcpu.tlb.lookup_exec(side, gva).map(RamOffset);
                new.extend(at.and_then(|at| self.learn(gva, at)));
            }
        }
        new
    }
}
