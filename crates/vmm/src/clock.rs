//! How virtual time follows the host's clock: pure arithmetic, no clock is read here.
//!
//! Virtual time goes on by itself, at the rate that branches are thought to take. Only when it
//! strays from the host's clock beyond a bound it gets an anchor, which costs bytes in a
//! recording. Behind the host: it jumps to the host's time. Ahead of it: it goes on from where it
//! is, slower, until the host has caught up; it never goes back and never stands still. The bound
//! is narrow as long as anchors are rare, and wider where they would not be.

use types::VirtualTime;

/// Length of a quantum: how long input may wait at most, ns.
pub(crate) const QUANTUM_NS: u64 = 1_000_000;
/// Branches in a quantum, least and most.
const QUANTUM_BRANCHES_MIN: u64 = 1_000;
const QUANTUM_BRANCHES_MAX: u64 = 10_000_000;
/// A quantum is run in so many slices, after each of which the host's clock says whether it has
/// lasted long enough: what a branch takes may change manyfold from one to the next.
const SLICES: u64 = 4;
/// Slices end before their last branches; what is left at the end of a quantum is not worth one
/// more if it is less than this part of it.
const REST: u64 = 8;
/// So many at once where those before took about what was expected, and many quanta before them:
/// the end of a slice costs some microseconds.
const STEADY_SLICES: u64 = 2;
const STEADY_QUANTA: u32 = 50;
/// About what was expected: no more than so many times that, and no less than that part of it. The
/// host's neighbours may take half of it.
const STEADY_TIMES: u64 = 3;
/// A measurement counts for one in so many.
const SMOOTHING: i64 = 8;
/// So many quanta in a row far from what was expected, on the same side, are a new phase of the
/// guest: what was measured before says nothing of it.
const NEW_PHASE: i64 = 3;

/// How far virtual time jumps at once, ns. After a long pause it comes back in several jumps, with
/// a quantum of running after each, so that a guest's watchdogs see that it lives: those of Linux
/// look every four seconds.
const JUMP_NS_MAX: u64 = 4_000_000_000;
/// How far virtual time may stray while anchors are rare, ns.
const DRIFT_NS: u64 = 500_000;
/// How far it may stray whatever happens, ns: less than anybody notices.
const DRIFT_NS_MAX: u64 = 20_000_000;
/// A lead is made up for in about this time, ns.
const CATCH_UP_NS: u64 = 20_000_000;
/// What is left of a lead when the rate goes back to what it should be, ns.
const LEAD_NS_MIN: u64 = 100_000;
/// An anchor for each so many nanoseconds of host time can be had at the narrow bound...
const ANCHOR_NS: u64 = 50_000_000;
/// ...and so many at once.
const ANCHORS_SAVED_MAX: u64 = 1_000;

/// Thousandths of a nanosecond per branch until something better is known.
const NOMINAL_RATE_MILLINS: u64 = machine::MachineSpec::NOMINAL_RATE;

/// Relation of virtual time to the host's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveClock {
    /// Host time at virtual time 0; before the host's clock began if the machine is older.
    origin_ns: i64,
    /// What a branch takes on this host, thousandths of a nanosecond, smoothed.
    cost_millins: u64,
    /// The rate in force.
    rate_millins: u64,
    /// Full quanta measured, up to [`SMOOTHING`]: the first counts whole, the second half.
    measured: i64,
    /// Quanta in a row that took far more than expected, or as a negative number far less.
    surprises: i64,
    /// Quanta in a row that took about what was expected.
    steady: u32,
    /// Virtual time is ahead by this and goes slower than it should; 0 if not.
    slowed_for_ns: u64,
    /// Host time up to which the allowance of anchors is used up.
    spent_until_ns: u64,
}

/// What goes into `Input::ClockAnchor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub advance_ns: u64,
    pub rate_millins: u64,
}

impl LiveClock {
    /// Virtual time is `now` at `host_ns`.
    pub fn new(host_ns: u64, now: VirtualTime) -> LiveClock {
        LiveClock {
            origin_ns: (host_ns as i64).saturating_sub_unsigned(now.0),
            cost_millins: NOMINAL_RATE_MILLINS,
            rate_millins: NOMINAL_RATE_MILLINS,
            measured: 0,
            surprises: 0,
            steady: 0,
            slowed_for_ns: 0,
            spent_until_ns: 0,
        }
    }

    /// `branches` branches took `run_ns`, idle time left out.
    pub fn measure(&mut self, run_ns: u64, branches: u64) {
        let Some(sample) = run_ns.saturating_mul(1000).checked_div(branches) else { return };
        let cost = self.cost_millins as i64;
        // Short stretches between two idle ones say less.
        let full = run_ns >= QUANTUM_NS || is_whole(branches, self.quantum_branches());
        if full {
            self.note_surprise(sample);
            self.measured = (self.measured + 1).min(SMOOTHING);
        }
        // A single quantum during which the host did something else says little.
        let sample = match self.measured {
            0..3 => sample,
            _ => sample.clamp(self.cost_millins / 2, self.cost_millins * 2),
        };
        let difference = i64::try_from(sample).unwrap_or(i64::MAX / 2) - cost;
        let weight = if full { QUANTUM_NS } else { run_ns.min(QUANTUM_NS) } as i64;
        let smoothing = if full { self.measured } else { SMOOTHING };
        let change = i128::from(difference) * i128::from(weight)
            / (i128::from(smoothing) * i128::from(QUANTUM_NS));
        let change = match change as i64 {
            // The last steps are shorter than the division shows; on a fast host they matter.
            0 if full => difference.signum(),
            change => change,
        };
        self.cost_millins = (cost + change).max(1) as u64;
    }

    fn note_surprise(&mut self, sample: u64) {
        let cost = self.cost_millins;
        let steady = (cost / STEADY_TIMES..=cost * STEADY_TIMES).contains(&sample);
        self.steady = if steady { self.steady.saturating_add(1) } else { 0 };
        let side = match sample {
            above if above > cost * 3 / 2 => 1,
            below if below < cost * 2 / 3 => -1,
            _ => 0,
        };
        let goes_on = side == self.surprises.signum();
        self.surprises = side + if goes_on { self.surprises } else { 0 };
        if self.surprises.abs() == NEW_PHASE {
            (self.measured, self.surprises) = (0, 0);
        }
    }

    /// The anchor that virtual time `now` needs when the host's clock is at `host_ns`, if it has
    /// strayed too far.
    pub fn correct(&mut self, host_ns: u64, now: VirtualTime) -> Option<Anchor> {
        let target = (host_ns as i64).saturating_sub(self.origin_ns).max(0) as u64;
        let (lag, lead) = (target.saturating_sub(now.0), now.0.saturating_sub(target));
        if lag > JUMP_NS_MAX {
            self.slowed_for_ns = 0;
            self.rate_millins = self.cost_millins;
            return Some(Anchor { advance_ns: JUMP_NS_MAX, rate_millins: self.cost_millins });
        }
        let bound = self.bound(host_ns);
        let (rate, cost) = (self.rate_millins, self.cost_millins);
        let far_off = self.slowed_for_ns == 0 && (rate / 2 > cost || rate < cost / 2);
        let anchor = if self.slowed_for_ns != 0 && lead <= LEAD_NS_MIN {
            self.slowed_for_ns = 0;
            // What is left is made up for by running.
            Anchor { advance_ns: lag / 1000 * 1000, rate_millins: self.cost_millins }
        } else if lag > bound || far_off {
            Anchor { advance_ns: lag / 1000 * 1000, rate_millins: self.cost_millins }
        } else if lead > bound.max(self.slowed_for_ns * 2) {
            self.slowed_for_ns = lead;
            let rate = u128::from(self.cost_millins) * u128::from(CATCH_UP_NS)
                / (u128::from(CATCH_UP_NS) + u128::from(lead));
            Anchor { advance_ns: 0, rate_millins: (rate as u64).max(1) }
        } else {
            return None;
        };
        self.rate_millins = anchor.rate_millins;
        self.spent_until_ns = self.spent_until_ns.max(self.allowance_start(host_ns)) + ANCHOR_NS;
        Some(anchor)
    }

    /// How far virtual time may stray now.
    fn bound(&self, host_ns: u64) -> u64 {
        let saved = host_ns.saturating_sub(self.spent_until_ns) / ANCHOR_NS;
        // Half the allowance at the narrow bound, the rest ever wider.
        let short = (ANCHORS_SAVED_MAX / 2).saturating_sub(saved);
        DRIFT_NS + (DRIFT_NS_MAX - DRIFT_NS) * short / (ANCHORS_SAVED_MAX / 2)
    }

    fn allowance_start(&self, host_ns: u64) -> u64 {
        host_ns.saturating_sub(ANCHORS_SAVED_MAX * ANCHOR_NS)
    }

    /// Host time at which virtual time is `vtime`.
    pub fn host_ns_of(&self, vtime: VirtualTime) -> u64 {
        self.origin_ns.saturating_add_unsigned(vtime.0).max(0) as u64
    }

    /// Branches in about [`QUANTUM_NS`].
    pub fn quantum_branches(&self) -> u64 {
        quantum_branches(self.cost_millins)
    }

    /// Branches to run before the host's clock is looked at, in a quantum of which `branches` took
    /// `run_ns`.
    pub fn slice_branches(&self, branches: u64, run_ns: u64) -> u64 {
        let expected_ns = u128::from(branches) * u128::from(self.cost_millins) / 1000;
        let most_ns = expected_ns * u128::from(STEADY_TIMES);
        let as_expected = branches != 0 && u128::from(run_ns) <= most_ns;
        let steady = as_expected && self.steady >= STEADY_QUANTA;
        let slices = if steady { STEADY_SLICES } else { 1 };
        (self.quantum_branches() * slices).div_ceil(SLICES)
    }
}

/// Whether `branches` are about as many as a quantum of `quantum` has.
pub(crate) fn is_whole(branches: u64, quantum: u64) -> bool {
    branches >= quantum - quantum / REST
}

/// Branches in about [`QUANTUM_NS`] if each takes `cost_millins`.
pub(crate) fn quantum_branches(cost_millins: u64) -> u64 {
    (QUANTUM_NS * 1000 / cost_millins.max(1)).clamp(QUANTUM_BRANCHES_MIN, QUANTUM_BRANCHES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of virtual time on a simulated host.
    struct Drift {
        clock: LiveClock,
        /// Worst lead and lag after the first hundred quanta, ns.
        lead: u64,
        lag: u64,
        anchors: u64,
        host_ns: u64,
    }

    /// A host that has been up for a while, so that the clock has its allowance of anchors.
    const START_NS: u64 = 100_000_000_000;

    /// Runs quanta on a host where a branch takes `cost(quantum)`.
    fn simulate(cost: impl Fn(u64) -> u64, quanta: u64) -> Drift {
        let clock = LiveClock::new(START_NS, VirtualTime(0));
        let mut drift = Drift { clock, lead: 0, lag: 0, anchors: 0, host_ns: START_NS };
        let (mut rate, mut now) = (NOMINAL_RATE_MILLINS, VirtualTime(0));
        for quantum in 0..quanta {
            let branches = drift.clock.quantum_branches();
            let run_ns = branches * cost(quantum) / 1000;
            drift.host_ns += run_ns;
            now = now.saturating_add_ns(branches * rate / 1000);
            drift.clock.measure(run_ns, branches);
            if let Some(anchor) = drift.clock.correct(drift.host_ns, now) {
                assert!(anchor.rate_millins >= 1 && anchor.advance_ns % 1000 == 0);
                (now, rate) = (now.saturating_add_ns(anchor.advance_ns), anchor.rate_millins);
                drift.anchors += u64::from(quantum >= 100);
            }
            if quantum >= 100 {
                drift.lead = drift.lead.max(now.0.saturating_sub(drift.host_ns - START_NS));
                drift.lag = drift.lag.max((drift.host_ns - START_NS).saturating_sub(now.0));
            }
        }
        drift
    }

    #[test]
    fn clock_follows_hosts_of_any_speed_with_hardly_an_anchor() {
        for cost in [50, 2_000, 10_000, 100_000, 900_000] {
            let drift = simulate(|_| cost, 5_000);
            let error = drift.clock.cost_millins.abs_diff(cost) * 100 / cost;
            assert!(error <= 20, "{cost}: {}", drift.clock.cost_millins);
            let (lead, lag) = (drift.lead, drift.lag);
            assert!(lead < 3 * DRIFT_NS && lag < 2 * DRIFT_NS, "{cost}: {lead} {lag}");
            assert!(drift.anchors < 30, "{cost}: {} anchors", drift.anchors);
        }
    }

    #[test]
    fn clock_stays_near_an_uneven_host_and_anchors_stay_few() {
        let by_sevens = |quantum: u64| if quantum.is_multiple_of(7) { 400_000 } else { 100_000 };
        let by_phases =
            |quantum: u64| if (quantum / 50).is_multiple_of(2) { 30_000 } else { 5_000 };
        let wild =
            |quantum: u64| 5_000 + (quantum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 60_000;
        let drifts =
            [simulate(by_sevens, 20_000), simulate(by_phases, 60_000), simulate(wild, 60_000)];
        for drift in drifts {
            assert!(drift.lead < 50_000_000 && drift.lag < 25_000_000, "{drift:?}");
            let per_minute = drift.anchors * 60_000_000_000 / (drift.host_ns - START_NS);
            assert!(per_minute < 3_500, "{per_minute} anchors a minute");
        }
    }

    impl std::fmt::Debug for Drift {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "lead {} lag {} anchors {}", self.lead, self.lag, self.anchors)
        }
    }

    #[test]
    fn clock_ahead_slows_down_until_it_is_caught_up_with_and_behind_it_jumps() {
        let mut clock = LiveClock::new(500, VirtualTime(0));
        let later = 100_000_000_000;
        assert_eq!(clock.correct(later + 500, VirtualTime(later)), None);
        assert_eq!(clock.correct(later + 500 + DRIFT_NS, VirtualTime(later)), None);
        let jump = clock.correct(later + 500 + 5_000_400, VirtualTime(later)).unwrap();
        assert_eq!(jump, Anchor { advance_ns: 5_000_000, rate_millins: NOMINAL_RATE_MILLINS });
        let slow = clock.correct(later, VirtualTime(later + 10_000_000)).unwrap();
        assert_eq!(slow.advance_ns, 0);
        assert!(slow.rate_millins < NOMINAL_RATE_MILLINS && slow.rate_millins > 0);
        assert_eq!(clock.correct(later, VirtualTime(later + 9_000_000)), None);
        let normal = clock.correct(later, VirtualTime(later - 400)).unwrap();
        assert_eq!(normal, Anchor { advance_ns: 0, rate_millins: NOMINAL_RATE_MILLINS });
        let far = clock.correct(500, VirtualTime(u64::MAX / 2)).unwrap();
        assert_eq!(far, Anchor { advance_ns: 0, rate_millins: 1 });
    }

    #[test]
    fn long_pause_is_made_up_for_in_several_jumps() {
        let mut clock = LiveClock::new(0, VirtualTime(0));
        let (mut host_ns, mut now, mut jumps) = (3_600_000_000_000, VirtualTime(5), 0);
        while let Some(anchor) = clock.correct(host_ns, now) {
            assert!(anchor.advance_ns <= JUMP_NS_MAX);
            now = now.saturating_add_ns(anchor.advance_ns + QUANTUM_NS);
            host_ns += QUANTUM_NS;
            jumps += 1;
        }
        assert_eq!(jumps, 900);
        assert!(host_ns - now.0 < 1_000_000, "{host_ns} {now}");
    }

    #[test]
    fn slices_grow_while_branches_take_what_is_expected() {
        let mut clock = LiveClock::new(0, VirtualTime(0));
        for _ in 0..STEADY_QUANTA + 20 {
            clock.measure(QUANTUM_NS, 500_000);
        }
        let quantum = clock.quantum_branches();
        let one = quantum.div_ceil(SLICES);
        assert_eq!(clock.slice_branches(0, 0), one, "nothing is known");
        let long = (STEADY_SLICES * quantum).div_ceil(SLICES);
        assert_eq!(clock.slice_branches(one, QUANTUM_NS / SLICES), long);
        assert_eq!(clock.slice_branches(one, QUANTUM_NS / SLICES * 2), long, "neighbours");
        let mut contended = clock.clone();
        contended.measure(QUANTUM_NS, quantum / 2);
        let (one_then, run_ns) =
            (contended.quantum_branches().div_ceil(SLICES), QUANTUM_NS / SLICES);
        assert!(contended.slice_branches(one_then, run_ns) > one_then, "they took half of it");
        assert_eq!(clock.slice_branches(one, QUANTUM_NS / SLICES * 4), one, "they take longer");
        clock.measure(QUANTUM_NS, clock.quantum_branches() / 4);
        let one = clock.quantum_branches().div_ceil(SLICES);
        assert_eq!(clock.slice_branches(one, QUANTUM_NS / SLICES), one, "they took longer");
        let slow = LiveClock { cost_millins: u64::MAX, ..clock };
        assert!(slow.slice_branches(0, 0) > 0);
    }

    #[test]
    fn quantum_is_whole_although_its_slices_end_a_little_early() {
        assert!(is_whole(230_000, 256_000) && is_whole(1_000, 1_000));
        assert!(!is_whole(200_000, 256_000) && !is_whole(0, 1_000));
    }

    #[test]
    fn measure_of_nothing_changes_nothing() {
        let mut clock = LiveClock::new(0, VirtualTime(0));
        clock.measure(1_000_000, 0);
        clock.measure(0, 0);
        assert_eq!(clock, LiveClock::new(0, VirtualTime(0)));
    }
}
