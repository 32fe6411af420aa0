//! Ticks of a fixed-frequency counter as a function of virtual time, and back.

use types::VirtualTime;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// Whole ticks of a counter of `hz` at `at`, counted from virtual time zero.
pub(crate) fn ticks_at(at: VirtualTime, hz: u64) -> u64 {
    u64::try_from(u128::from(at.0) * u128::from(hz) / NS_PER_SECOND).unwrap_or(u64::MAX)
}

/// The first virtual time at which a counter of `hz` has made `ticks` ticks, or `None` past the
/// end of time. For `hz` up to 1 GHz it is the inverse of [`ticks_at`].
pub(crate) fn time_of_tick(ticks: u64, hz: u64) -> Option<VirtualTime> {
    let ns = (u128::from(ticks) * NS_PER_SECOND).div_ceil(u128::from(hz));
    u64::try_from(ns).ok().map(VirtualTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_tick_is_when_the_tick_is_first_seen() {
        for hz in [1, 32_768, 1_193_182, 3_579_545, 1_000_000_000] {
            for ticks in [0, 1, 2, 999, 65_536, 1 << 32] {
                let at = time_of_tick(ticks, hz).unwrap();
                assert_eq!(ticks_at(at, hz), ticks, "{hz} Hz, tick {ticks}");
                if at.0 > 0 {
                    assert_eq!(ticks_at(VirtualTime(at.0 - 1), hz), ticks - 1);
                }
            }
        }
    }

    #[test]
    fn time_of_tick_past_the_end_of_time_is_never() {
        assert_eq!(time_of_tick(u64::MAX, 1), None);
        assert_eq!(ticks_at(VirtualTime::MAX, u64::MAX), u64::MAX);
    }
}
