//! Virtual time as a function of the branch count.

use minicbor::{Decode, Encode};
use types::VirtualTime;

/// The virtual clock: a point it went through and its rate since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Clock {
    #[n(0)]
    anchor_branches: u64,
    #[n(1)]
    anchor_ns: u64,
    #[n(2)]
    rate_millins: u64,
}

impl Clock {
    /// A clock that shows zero at branch zero.
    pub fn new(rate_millins: u64) -> Clock {
        Clock { anchor_branches: 0, anchor_ns: 0, rate_millins: rate_millins.max(1) }
    }

    /// Virtual time at a branch count not before the anchor's.
    pub fn now(&self, branches: u64) -> VirtualTime {
        let elapsed = branches.saturating_sub(self.anchor_branches);
        let ns = u128::from(elapsed) * u128::from(self.rate_millins) / 1000;
        let sum = u128::from(self.anchor_ns) + ns;
        VirtualTime(u64::try_from(sum).unwrap_or(u64::MAX))
    }

    /// The first branch count at which virtual time is `at` or later.
    pub fn branches_at(&self, at: VirtualTime) -> u64 {
        let ns = u128::from(at.0.saturating_sub(self.anchor_ns));
        let elapsed = (ns * 1000).div_ceil(u128::from(self.rate_millins));
        u64::try_from(u128::from(self.anchor_branches) + elapsed).unwrap_or(u64::MAX)
    }

    /// From `branches` on the clock goes on from `at` (never back) at `rate_millins`.
    pub fn anchor(&mut self, branches: u64, at: VirtualTime, rate_millins: u64) {
        let now = self.now(branches);
        *self = Clock {
            anchor_branches: branches,
            anchor_ns: at.max(now).0,
            rate_millins: rate_millins.max(1),
        };
    }

    /// At `branches` it is `at`, if it is not later already; the rate stays.
    pub fn skip_to(&mut self, branches: u64, at: VirtualTime) {
        self.anchor(branches, at, self.rate_millins);
    }

    /// Whether a machine can have this clock; one that was saved elsewhere may be anything.
    pub(crate) fn is_valid(&self) -> bool {
        self.rate_millins != 0
    }

    /// Thousandths of a nanosecond per branch.
    pub fn rate_millins(&self) -> u64 {
        self.rate_millins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_at_is_the_first_not_before() {
        let mut clock = Clock::new(3_333);
        clock.anchor(1000, VirtualTime(5_000_000), 7_777);
        for ns in [5_000_000, 5_000_001, 5_000_008, 6_000_000, 123_456_789] {
            let branches = clock.branches_at(VirtualTime(ns));
            assert!(clock.now(branches) >= VirtualTime(ns), "{ns}");
            assert!(branches == 1000 || clock.now(branches - 1) < VirtualTime(ns), "{ns}");
        }
    }

    #[test]
    fn anchor_in_the_past_does_not_turn_time_back() {
        let mut clock = Clock::new(1000);
        clock.anchor(500, VirtualTime(100), 1000);
        assert_eq!(clock.now(500), VirtualTime(500));
    }
}
