//! Host time: monotonic for measuring and anchoring, wall-clock for the guest's calendar.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Nanoseconds since some fixed moment of this boot; never goes back, stands still while the host
/// is suspended (`CLOCK_MONOTONIC`).
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds since 1970-01-01 UTC; jumps when the host's clock is set (`CLOCK_REALTIME`).
/// 0 for a host whose clock is set before 1970.
pub fn wall_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_never_goes_back_and_wall_is_this_century() {
        let mut last = monotonic_ns();
        for _ in 0..10_000 {
            let now = monotonic_ns();
            assert!(now >= last);
            last = now;
        }
        assert!(wall_ns() > 1_700_000_000_000_000_000);
    }
}
