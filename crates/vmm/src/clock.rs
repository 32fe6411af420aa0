//! How virtual time follows the host's clock: pure arithmetic, no clock is read here.
//!
//! After each quantum the machine gets an anchor. Behind the host: virtual time jumps to the
//! host's, which is a fraction of a quantum unless the host was busy elsewhere. Ahead of it:
//! virtual time goes on from where it is, slower, until the host has caught up; it never goes
//! back and never stands still.

use types::VirtualTime;

/// Length of a quantum: how long input may wait at most, ns.
pub(crate) const QUANTUM_NS: u64 = 1_000_000;
/// Branches in a quantum, least and most.
const QUANTUM_BRANCHES_MIN: u64 = 1_000;
const QUANTUM_BRANCHES_MAX: u64 = 10_000_000;
/// A measurement counts for one in so many.
const SMOOTHING: i64 = 8;

/// Thousandths of a nanosecond per branch until something better is known.
const NOMINAL_RATE_MILLINS: u64 = machine::MachineSpec::NOMINAL_RATE;

/// Relation of virtual time to the host's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveClock {
    /// Host time at virtual time 0.
    origin_ns: u64,
    /// What a branch takes on this host, thousandths of a nanosecond, smoothed.
    cost_millins: u64,
}

/// What goes into `Input::ClockAnchor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub vtime_ns: u64,
    pub rate_millins: u64,
}

impl LiveClock {
    /// Virtual time 0 is at `host_ns`.
    pub fn new(host_ns: u64) -> LiveClock {
        LiveClock { origin_ns: host_ns, cost_millins: NOMINAL_RATE_MILLINS }
    }

    /// `branches` branches took `run_ns`, idle time left out.
    pub fn measure(&mut self, run_ns: u64, branches: u64) {
        let Some(sample) = run_ns.saturating_mul(1000).checked_div(branches) else { return };
        let cost = self.cost_millins as i64;
        // A single quantum during which the host did something else says little.
        let sample = sample.clamp(self.cost_millins / 2, self.cost_millins * 2) as i64;
        // Short stretches between two idle ones say less.
        let full = branches >= self.quantum_branches();
        let weight = if full { QUANTUM_NS } else { run_ns.min(QUANTUM_NS) } as i64;
        let change = (sample - cost) * weight / (SMOOTHING * QUANTUM_NS as i64);
        self.cost_millins = (cost + change).max(1) as u64;
    }

    /// The anchor for virtual time `now` when the host's clock is at `host_ns`.
    pub fn anchor(&self, host_ns: u64, now: VirtualTime) -> Anchor {
        let target = host_ns.saturating_sub(self.origin_ns);
        let ahead = now.0.saturating_sub(target);
        let rate = u128::from(self.cost_millins) * u128::from(QUANTUM_NS)
            / (u128::from(QUANTUM_NS) + 2 * u128::from(ahead));
        Anchor { vtime_ns: target.max(now.0), rate_millins: (rate as u64).max(1) }
    }

    /// The machine stood still for `held_ns`, on purpose: virtual time does too.
    pub fn hold(&mut self, held_ns: u64) {
        self.origin_ns += held_ns;
    }

    /// Host time at which virtual time is `vtime`.
    pub fn host_ns_of(&self, vtime: VirtualTime) -> u64 {
        self.origin_ns.saturating_add(vtime.0)
    }

    /// Branches in about [`QUANTUM_NS`].
    pub fn quantum_branches(&self) -> u64 {
        quantum_branches(self.cost_millins)
    }
}

/// Branches in about [`QUANTUM_NS`] if each takes `cost_millins`.
pub(crate) fn quantum_branches(cost_millins: u64) -> u64 {
    (QUANTUM_NS * 1000 / cost_millins.max(1)).clamp(QUANTUM_BRANCHES_MIN, QUANTUM_BRANCHES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs quanta on a host where a branch takes `cost(quantum)`; the clock and the worst lead
    /// and lag of virtual time after the first hundred.
    fn simulate(cost: impl Fn(u64) -> u64, quanta: u64) -> (LiveClock, u64, u64) {
        let mut clock = LiveClock::new(1_000);
        let (mut host, mut rate, mut now) = (1_000, NOMINAL_RATE_MILLINS, VirtualTime(0));
        let (mut lead, mut lag) = (0, 0);
        for quantum in 0..quanta {
            let branches = clock.quantum_branches();
            let run_ns = branches * cost(quantum) / 1000;
            host += run_ns;
            let reached = VirtualTime(now.0 + branches * rate / 1000);
            if quantum >= 100 {
                lead = lead.max(reached.0.saturating_sub(host - 1_000));
                lag = lag.max((host - 1_000).saturating_sub(reached.0));
            }
            clock.measure(run_ns, branches);
            let anchor = clock.anchor(host, reached);
            assert!(anchor.vtime_ns >= reached.0, "time ran backwards");
            assert!(anchor.rate_millins >= 1);
            (now, rate) = (VirtualTime(anchor.vtime_ns), anchor.rate_millins);
        }
        (clock, lead, lag)
    }

    #[test]
    fn clock_follows_hosts_of_any_speed() {
        for cost in [50, 2_000, 10_000, 100_000, 900_000] {
            let (clock, lead, lag) = simulate(|_| cost, 1_000);
            let error = clock.cost_millins.abs_diff(cost) * 100 / cost;
            assert!(error <= 20, "{cost}: {}", clock.cost_millins);
            assert!(lead < QUANTUM_NS && lag < QUANTUM_NS, "{cost}: {lead} {lag}");
        }
    }

    #[test]
    fn clock_stays_near_an_uneven_host() {
        let uneven = |quantum: u64| if quantum.is_multiple_of(7) { 400_000 } else { 100_000 };
        let (_, lead, lag) = simulate(uneven, 5_000);
        assert!(lead < 2 * QUANTUM_NS && lag < 8 * QUANTUM_NS, "{lead} {lag}");
    }

    #[test]
    fn anchor_ahead_slows_down_and_behind_jumps() {
        let clock = LiveClock::new(500);
        let even = clock.anchor(1_500, VirtualTime(1_000));
        assert_eq!(even, Anchor { vtime_ns: 1_000, rate_millins: NOMINAL_RATE_MILLINS });
        let behind = clock.anchor(5_000_500, VirtualTime(1_000));
        assert_eq!(behind, Anchor { vtime_ns: 5_000_000, ..even });
        let ahead = clock.anchor(500, VirtualTime(QUANTUM_NS));
        assert_eq!(ahead.vtime_ns, QUANTUM_NS);
        assert_eq!(ahead.rate_millins, NOMINAL_RATE_MILLINS / 3);
        assert_eq!(clock.anchor(500, VirtualTime(u64::MAX / 2)).rate_millins, 1);
        assert_eq!(clock.anchor(0, VirtualTime(0)).vtime_ns, 0);
    }

    #[test]
    fn held_time_does_not_pass() {
        let mut clock = LiveClock::new(0);
        clock.hold(1_000_000);
        assert_eq!(clock.anchor(1_000_005, VirtualTime(5)).vtime_ns, 5);
        assert_eq!(clock.host_ns_of(VirtualTime(5)), 1_000_005);
    }

    #[test]
    fn measure_of_nothing_changes_nothing() {
        let mut clock = LiveClock::new(0);
        clock.measure(1_000_000, 0);
        clock.measure(0, 0);
        assert_eq!(clock, LiveClock::new(0));
    }
}
