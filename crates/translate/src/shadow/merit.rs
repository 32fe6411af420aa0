//! Which address space is worth a shadow: one whose code runs for long, and that does not change
//! its pages all the time.
//!
//! Work and costs are counted in branches: a million take some three milliseconds.

use crate::options::Shadowing;

/// A fill of the TLB takes as long as so many branches.
pub(crate) const FILL_WORK: u64 = 30;
/// Work after which a space has earned it: not much more than starting a program takes, whose code
/// is translated once without the shadow and once with it.
const EARNED: u64 = 300_000;
/// Work, of whomever, after which what was earned counts half.
const HALF_LIFE: u64 = 12_000_000;
/// What may be spent on the pages of a shadow from the start, and at most at once.
const CREDIT: u64 = 6_000_000;
/// What work adds to that: a fifth of it.
const SHARE: u64 = 5;
/// A space that spent too much waits for so much work, twice as much each time, and at most so
/// much.
const PAUSE: u64 = 15_000_000;
const PAUSE_MAX: u64 = 600_000_000;
/// Who has the shadow holds it against others for so much work of theirs in a row: ended programs
/// do not work.
const ABSENT: u64 = 2_000_000;
/// A fickle shadow is lost after so many faults at most, another number each time.
const FICKLE: u32 = 11;

/// What is known of one space.
#[derive(Clone, Copy, Default)]
struct Record {
    worked: u64,
    /// Before so much work was done nothing is earned.
    waits_until: u64,
    pauses: u32,
}

/// See the module.
pub(super) struct Merit {
    shadowing: Shadowing,
    records: Vec<Record>,
    credit: u64,
    /// Where nothing is earned: times that it was lost, and that something was spent since.
    losses: u32,
    spent: u32,
    /// Work done by all.
    work: u64,
    /// How much that was when the space with the shadow last did some.
    held: u64,
    halved: u64,
}

impl Merit {
    pub(super) fn new(shadowing: Shadowing) -> Merit {
        Merit {
            shadowing,
            records: Vec::new(),
            credit: CREDIT,
            losses: 0,
            spent: 0,
            work: 0,
            held: 0,
            halved: 0,
        }
    }

    fn record(&mut self, space: usize) -> &mut Record {
        if space >= self.records.len() {
            self.records.resize(space + 1, Record::default());
        }
        &mut self.records[space]
    }

    /// Space `space` did so much work; `shadowed` is the one that has the shadow. Whether it is
    /// to have it from now on.
    pub(super) fn note_work(
        &mut self,
        space: usize,
        branches: u64,
        shadowed: Option<usize>,
    ) -> bool {
        if self.shadowing.is_stress() {
            return shadowed != Some(space);
        }
        self.work += branches;
        if self.work - self.halved >= HALF_LIFE {
            self.halved = self.work;
            self.records.iter_mut().for_each(|record| record.worked /= 2);
        }
        self.record(space).worked += branches;
        if shadowed == Some(space) {
            self.credit = (self.credit + branches / SHARE).min(CREDIT);
            self.held = self.work;
            return false;
        }
        let there = shadowed.filter(|_| self.work - self.held < ABSENT);
        let rival = there.map_or(0, |other| self.record(other).worked * 2);
        let work = self.work;
        let record = self.record(space);
        work >= record.waits_until && record.worked >= EARNED && record.worked > rival
    }

    /// A space has the shadow now.
    pub(super) fn begin(&mut self) {
        self.credit = CREDIT;
        self.held = self.work;
    }

    /// The space with the shadow spent so many branches' time on it; whether it is to lose it.
    pub(super) fn spend(&mut self, space: usize, branches: u64) -> bool {
        if self.shadowing.is_stress() {
            return self.shadowing == Shadowing::Fickle && self.is_lost();
        }
        let left = self.credit.checked_sub(branches);
        self.credit = left.unwrap_or(0);
        if left.is_none() {
            let work = self.work;
            let record = self.record(space);
            let pause = (PAUSE << record.pauses.min(16)).min(PAUSE_MAX);
            record.pauses += 1;
            (record.waits_until, record.worked) = (work + pause, 0);
        }
        left.is_none()
    }

    /// Whether a fickle shadow is lost by one more fault.
    fn is_lost(&mut self) -> bool {
        self.spent += 1;
        let lost = self.spent > self.losses * 5 % FICKLE;
        if lost {
            self.losses = (self.losses + 1) % FICKLE;
            self.spent = 0;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 300_000;

    /// Steps of work until the space has earned it; the first one does if nothing else counts.
    fn wait(merit: &mut Merit, space: usize, shadowed: Option<usize>) -> usize {
        let earned = (0..5000).position(|_| merit.note_work(space, STEP, shadowed));
        earned.expect("it comes")
    }

    #[test]
    fn a_shadow_is_earned_by_work_and_lost_by_spending() {
        let mut merit = Merit::new(Shadowing::Earned);
        assert_eq!(wait(&mut merit, 3, None) as u64, EARNED.div_ceil(STEP) - 1);
        merit.begin();
        for _ in 0..9 {
            assert!(!merit.note_work(3, STEP, Some(3)));
        }
        let both = (0..100).position(|_| {
            merit.note_work(3, STEP, Some(3));
            merit.note_work(0, STEP, Some(3))
        });
        assert_eq!(both, None, "the other works as much");
        assert_eq!(wait(&mut merit, 0, Some(3)) as u64, ABSENT / STEP - 1, "it has ended");
        merit.begin();
        let spent = (0..100).position(|_| merit.spend(0, STEP));
        assert_eq!(spent, Some((CREDIT / STEP) as usize));
        assert_eq!(wait(&mut merit, 0, None) as u64, PAUSE / STEP - 1);
        merit.begin();
        while !merit.spend(0, STEP) {}
        assert_eq!(wait(&mut merit, 0, None) as u64, 2 * PAUSE / STEP - 1);
        for _ in 0..80 {
            merit.begin();
            while !merit.spend(0, STEP) {}
        }
        assert_eq!(wait(&mut merit, 0, None) as u64, PAUSE_MAX / STEP - 1);
    }

    #[test]
    fn a_fickle_shadow_is_lost_after_another_number_of_faults_each_time() {
        let mut merit = Merit::new(Shadowing::Fickle);
        let spent = [(); 5].map(|()| (1..20).find(|_| merit.spend(0, STEP)));
        assert_eq!(spent, [1, 6, 11, 5, 10].map(Some));
        let mut always = Merit::new(Shadowing::Always);
        assert!((0..20).all(|_| !always.spend(0, STEP)));
    }

    #[test]
    fn work_adds_a_fifth_to_what_may_be_spent() {
        let mut merit = Merit::new(Shadowing::Earned);
        for _ in 0..1000 {
            assert!(!merit.spend(0, STEP));
            assert!(!merit.note_work(0, SHARE * STEP, Some(0)));
        }
        let spent = (0..100).position(|_| merit.spend(0, STEP));
        assert_eq!(spent, Some((CREDIT / STEP) as usize));
    }
}
