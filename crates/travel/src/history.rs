//! Checkpoints in memory along a replay: taken while it runs, dense near the end, sparser behind,
//! never more than a budget.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use machine::Machine;
use memory::{Epoch, RamError, Visited};
use saved::Sections;

use crate::pages::{Page, Pages};
use crate::sandbox::{Moment, Sandbox};
use crate::travel::{Position, TravelError};

/// Checkpoints that are kept close to each other, before and behind where the traveller is.
const DENSE: usize = 48;
/// Farther away, checkpoints are at most this far apart in the engine's work, ns.
const SPARSE_NS: u64 = 1_000_000_000;
/// Bytes of pages beyond which checkpoints are thinned out more.
const SIZE_MAX: usize = 2 << 30;

/// The machine at one point, but for its RAM, which is in [`Pages`].
pub(crate) struct Checkpoint {
    sections: Sections,
    moment: Moment,
    /// Number of the log entry that comes next.
    pub entry: u64,
    /// RAM pages that may differ from the checkpoint before.
    changed: BTreeSet<u32>,
    /// What is known of the way to the next checkpoint; `None` if nothing is.
    way: Option<Way>,
    /// What it took to come here from the checkpoint before, ns.
    cost_ns: u64,
}

/// What was touched on the way from one checkpoint to the next.
#[derive(Clone, Default)]
struct Way {
    /// Which RAM pages were written, whatever came of it.
    written: BTreeSet<u32>,
    /// Which code was executed, by linear page.
    visited: Arc<BTreeMap<u64, Visited>>,
}

impl Way {
    /// Goes on with `more`.
    fn extend(&mut self, more: &Way) {
        self.written.extend(&more.written);
        let visited = Arc::make_mut(&mut self.visited);
        for (page, visits) in more.visited.iter() {
            visited.entry(*page).or_default().join(visits);
        }
    }
}

/// All checkpoints.
pub(crate) struct History {
    checkpoints: BTreeMap<Position, Checkpoint>,
    pages: Pages,
    sparse_ns: u64,
}

/// Which checkpoint a machine comes from.
pub(crate) struct Stand {
    /// RAM is what it was at this checkpoint, if that is still there, but for pages written in
    /// `epoch` or after.
    from: Position,
    epoch: Epoch,
}

impl Stand {
    /// Of a new machine, which comes from none.
    pub fn nowhere(machine: &mut Machine) -> Stand {
        let from = Position { branches: u64::MAX, rip: u64::MAX, iterations: u64::MAX };
        Stand { from, epoch: machine.begin_epoch() }
    }
}

impl History {
    /// Begins with the machine as it is, at the beginning of its recording.
    ///
    /// # Errors
    /// If there is no memory for what is to be known of executed code.
    pub fn begin(machine: &mut Machine, sandbox: &Sandbox) -> Result<(History, Stand), RamError> {
        machine.mark_visits()?;
        let from = Position::of(machine);
        let stand = Stand { from, epoch: machine.begin_epoch() };
        let (checkpoints, pages) = (BTreeMap::new(), Pages::default());
        let mut history = History { checkpoints, pages, sparse_ns: SPARSE_NS };
        for page in 0..machine.pages() {
            history.pages.keep(page, from, None, &content(machine, page));
        }
        history.insert(machine, sandbox, 0, 0, BTreeSet::new());
        Ok((history, stand))
    }

    fn insert(
        &mut self,
        machine: &Machine,
        sandbox: &Sandbox,
        entry: u64,
        cost_ns: u64,
        changed: BTreeSet<u32>,
    ) {
        let checkpoint = Checkpoint {
            sections: machine.save(),
            moment: sandbox.moment(),
            entry,
            changed,
            way: Some(Way::default()),
            cost_ns,
        };
        self.checkpoints.insert(Position::of(machine), checkpoint);
    }

    /// Takes a checkpoint where the machine is, which came here in `cost_ns` from the checkpoint
    /// it was at last.
    pub fn take(
        &mut self,
        stand: &mut Stand,
        machine: &mut Machine,
        sandbox: &Sandbox,
        entry: u64,
        cost_ns: u64,
    ) {
        let here = Position::of(machine);
        if self.checkpoints.contains_key(&here) {
            return;
        }
        let written: BTreeSet<u32> = machine.pages_written_since(stand.epoch).collect();
        let way = Way { written: written.clone(), visited: Arc::new(machine.take_visited()) };
        let (from, is_next) = (stand.from, self.next(stand.from).is_none_or(|next| here < next));
        self.keep(stand, machine, sandbox, entry, cost_ns, written);
        // Where others lie between, all is known already.
        if is_next && let Some(from) = self.checkpoints.get_mut(&from) {
            from.way = Some(way);
        }
        self.thin(here);
    }

    /// Takes a checkpoint where the machine is, which was put there from the checkpoint before it
    /// without running the way.
    pub fn take_jumped(
        &mut self,
        stand: &mut Stand,
        machine: &mut Machine,
        sandbox: &Sandbox,
        entry: u64,
    ) {
        if let Some(from) = self.checkpoints.get_mut(&stand.from) {
            from.way = None;
        }
        machine.take_visited();
        let written = machine.pages_written_since(stand.epoch).collect();
        self.keep(stand, machine, sandbox, entry, SPARSE_NS, written);
    }

    /// Keeps the machine, in which `written` may differ from the checkpoint it was at last.
    fn keep(
        &mut self,
        stand: &mut Stand,
        machine: &mut Machine,
        sandbox: &Sandbox,
        entry: u64,
        cost_ns: u64,
        written: BTreeSet<u32>,
    ) {
        let here = Position::of(machine);
        let next = self.next(here);
        let (mut changed, mut changed_back) = (BTreeSet::new(), Vec::new());
        for page in written {
            let (kept, back) = self.pages.keep(page, here, next, &content(machine, page));
            if kept {
                changed.insert(page);
            }
            if back {
                changed_back.push(page);
            }
        }
        self.insert(machine, sandbox, entry, cost_ns, changed);
        if let Some((_, next)) = self.after(here) {
            next.cost_ns = next.cost_ns.saturating_sub(cost_ns);
            next.changed.extend(changed_back);
            // What lay between is known of both parts together, and of neither alone.
            let way = self.checkpoints[&stand.from].way.clone();
            self.checkpoints.get_mut(&here).expect("just made").way = way;
        }
        (stand.from, stand.epoch) = (here, machine.begin_epoch());
    }

    fn after(&mut self, at: Position) -> Option<(Position, &mut Checkpoint)> {
        let later = (Bound::Excluded(at), Bound::Unbounded);
        self.checkpoints.range_mut(later).next().map(|(position, it)| (*position, it))
    }

    /// Forgets checkpoints that are far from `here` and closer together than they need be.
    fn thin(&mut self, here: Position) {
        if self.pages.size() > SIZE_MAX {
            self.sparse_ns = self.sparse_ns.saturating_mul(2);
        }
        let dense_from = self.checkpoints.range(..here).rev().nth(DENSE).map(|(at, _)| *at);
        let Some(dense_from) = dense_from else { return };
        let mut old: Vec<Position> =
            self.checkpoints.range(..dense_from).skip(1).map(|(at, _)| *at).collect();
        // All but the newest of them were looked at when they were the newest, unless the budget
        // has become tighter.
        if self.pages.size() <= SIZE_MAX {
            old = old.split_off(old.len().saturating_sub(4));
        }
        for at in old {
            self.forget_if_near(at, here);
        }
    }

    fn forget_if_near(&mut self, at: Position, here: Position) {
        let cost_ns = self.checkpoints[&at].cost_ns;
        let sparse_ns = self.sparse_ns;
        let Some((next_at, next)) = self.after(at) else { return };
        if at == here || next.cost_ns + cost_ns > sparse_ns {
            return;
        }
        let gone = self.checkpoints.remove(&at).expect("it was there");
        for &page in &gone.changed {
            self.pages.forget(page, at, next_at);
        }
        let (_, next) = self.after(at).expect("it was there");
        next.cost_ns += cost_ns;
        next.changed.extend(gone.changed);
        if let Some((_, before)) = self.checkpoints.range_mut(..at).next_back() {
            before.way = before.way.take().zip(gone.way).map(|(mut way, more)| {
                way.extend(&more);
                way
            });
        }
    }

    /// The last checkpoint at `at` or before.
    pub fn before(&self, at: Position) -> Position {
        let found = self.checkpoints.range(..=at).next_back().or(self.checkpoints.iter().next());
        *found.expect("there is the first one").0
    }

    /// The last checkpoint before `at`, or the first one.
    pub fn strictly_before(&self, at: Position) -> Position {
        let found = self.checkpoints.range(..at).next_back();
        found.map_or_else(|| self.first(), |(position, _)| *position)
    }

    /// The next checkpoint after `at`.
    pub fn next(&self, at: Position) -> Option<Position> {
        let later = (Bound::Excluded(at), Bound::Unbounded);
        self.checkpoints.range(later).next().map(|(position, _)| *position)
    }

    /// The first checkpoint.
    pub fn first(&self) -> Position {
        *self.checkpoints.keys().next().expect("there is the first one")
    }

    /// Whether, between the checkpoint at `at` and the next one, instructions of one of these may
    /// have been executed (parts of linear pages) or one of those RAM pages may have been written.
    pub fn may_meet(&self, at: Position, executed: &[(u64, Visited)], written: &[u32]) -> bool {
        let (Some(_), Some(way)) = (self.next(at), &self.checkpoints[&at].way) else {
            return true;
        };
        let may_execute = |(page, wanted): &(u64, Visited)| {
            let visited = way.visited.get(page);
            visited.is_some_and(|visited| *wanted == Visited::ANYWHERE || visited.meets(wanted))
        };
        executed.iter().any(may_execute) || written.iter().any(|page| way.written.contains(page))
    }

    /// Checkpoints, and bytes of pages in them.
    pub fn size(&self) -> (usize, usize) {
        (self.checkpoints.len(), self.pages.size())
    }

    /// The machine becomes what it was at the checkpoint at `at`; the number of the next entry.
    pub fn go_to(
        &self,
        stand: &mut Stand,
        at: Position,
        machine: &mut Machine,
        sandbox: &mut Sandbox,
    ) -> Result<u64, TravelError> {
        let mut pages: BTreeSet<u32> = machine.pages_written_since(stand.epoch).collect();
        if self.checkpoints.contains_key(&stand.from) {
            let (low, high) = (stand.from.min(at), stand.from.max(at));
            let between = (Bound::Excluded(low), Bound::Included(high));
            for checkpoint in self.checkpoints.range(between).map(|(_, checkpoint)| checkpoint) {
                pages.extend(&checkpoint.changed);
            }
        } else {
            pages.extend(self.pages.numbers());
        }
        for page in pages {
            let now = content(machine, page);
            let then = self.pages.content(page, at).map_or(&[0; 4096], |then| &**then);
            if now != *then {
                machine.put_page(page, then);
            }
        }
        let checkpoint = &self.checkpoints[&at];
        machine.restore(checkpoint.sections.clone())?;
        sandbox.go_to(&checkpoint.moment);
        machine.take_visited();
        *stand = Stand { from: at, epoch: machine.begin_epoch() };
        Ok(checkpoint.entry)
    }
}

fn content(machine: &Machine, page: u32) -> Page {
    let mut bytes = [0; 4096];
    machine.page(page, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::WallClock;
    use machine::MachineSpec;

    const PAGE: u32 = 700;

    /// A machine that is moved on by resets, each of which counts as a branch.
    fn machine() -> Machine {
        let spec = MachineSpec {
            memory_size: 4 << 20,
            model: cpu::cpuid::Model::V3,
            disks: Vec::new(),
            nics: Vec::new(),
            console: false,
            debug_exit: None,
            seed: 1,
            wall_clock: WallClock(0),
            nominal_rate: MachineSpec::NOMINAL_RATE,
        };
        Machine::new(spec).unwrap()
    }

    fn first_byte(machine: &Machine) -> u8 {
        content(machine, PAGE)[0]
    }

    #[test]
    fn page_that_changed_back_is_right_at_every_checkpoint_whenever_they_were_taken() {
        let (mut machine, mut sandbox) = (machine(), Sandbox::new(Vec::new()));
        let (mut history, mut stand) = History::begin(&mut machine, &sandbox).unwrap();
        let start = history.first();
        machine.reset();
        machine.reset();
        let end = Position::of(&machine);
        history.take(&mut stand, &mut machine, &sandbox, 2, 1);
        // Once more, with a look in the middle, where the page is another.
        history.go_to(&mut stand, start, &mut machine, &mut sandbox).unwrap();
        machine.reset();
        machine.put_page(PAGE, &[9; 4096]);
        let middle = Position::of(&machine);
        history.take(&mut stand, &mut machine, &sandbox, 1, 1);
        for (at, byte) in [(end, 0), (middle, 9), (start, 0), (middle, 9), (end, 0)] {
            history.go_to(&mut stand, at, &mut machine, &mut sandbox).unwrap();
            assert_eq!(first_byte(&machine), byte, "{at:?}");
        }
    }

    #[test]
    fn way_on_which_a_page_changed_and_changed_back_is_worth_a_look() {
        let (mut machine, sandbox) = (machine(), Sandbox::new(Vec::new()));
        let (mut history, mut stand) = History::begin(&mut machine, &sandbox).unwrap();
        let start = history.first();
        machine.put_page(PAGE, &[9; 4096]);
        machine.put_page(PAGE, &[0; 4096]);
        machine.reset();
        history.take(&mut stand, &mut machine, &sandbox, 1, 1);
        assert!(history.may_meet(start, &[], &[PAGE]));
        assert!(!history.may_meet(start, &[], &[PAGE + 1]));
    }

    #[test]
    fn way_that_was_not_run_is_worth_a_look() {
        let (mut machine, sandbox) = (machine(), Sandbox::new(Vec::new()));
        let (mut history, mut stand) = History::begin(&mut machine, &sandbox).unwrap();
        let start = history.first();
        machine.reset();
        history.take_jumped(&mut stand, &mut machine, &sandbox, 1);
        let executed = [(3, Visited::at(0))];
        assert!(history.may_meet(start, &executed, &[]) && history.may_meet(start, &[], &[3]));
    }
}
