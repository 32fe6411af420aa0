//! Pages whose code is not translated, because a debugger has breakpoints there.
//!
//! Translations are of RAM, breakpoints are linear addresses: which RAM page it is shows when code
//! there is looked up. Translations of it that other addresses led to are dropped then.

use std::collections::BTreeSet;

use types::PAGE_SHIFT;

/// Where breakpoints are.
#[derive(Default)]
pub(crate) struct Breakpoints {
    /// Numbers of linear pages.
    linear: BTreeSet<u64>,
    /// RAM pages known to be at these.
    pub(crate) pages: BTreeSet<usize>,
    /// The fall-back engine stopped at one.
    pub(crate) hit: bool,
}

impl Breakpoints {
    pub(crate) fn at(addresses: &[u64]) -> Breakpoints {
        let linear = addresses.iter().map(|address| address >> PAGE_SHIFT).collect();
        Breakpoints { linear, ..Breakpoints::default() }
    }

    /// Whether the page of linear address `rip` has some.
    pub(crate) fn in_page(&self, rip: u64) -> bool {
        !self.linear.is_empty() && self.linear.contains(&(rip >> PAGE_SHIFT))
    }
}
