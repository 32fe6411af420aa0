//! Replaying: to each point of the log by branch count, then instruction by instruction
//! (mechanism L2), and the input let in there.

use std::io::Read;

use cpu::Engine;
use journal::{Entry, LogError, LogReader};
use machine::{Machine, Outside, Stop};
use types::ExecutionPoint;

/// Instructions between a point's branch count and the point itself, at most: code without a
/// branch does not go on for longer than an engine's look-up interval.
const STEPS_MAX: u64 = 1 << 24;

/// The machine did not do what the log says it did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// A state hash differs.
    #[error("at {point} the state differs from the recording's, first in {section}")]
    State {
        /// Where.
        point: ExecutionPoint,
        /// First section that differs.
        section: String,
    },
    /// The machine stopped before the next event.
    #[error("the next event is at {expected}, but the machine is at {found} and {why}")]
    Stopped {
        /// The event's point.
        expected: ExecutionPoint,
        /// Where the machine is.
        found: ExecutionPoint,
        /// What it does there.
        why: &'static str,
    },
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The execution is not the recorded one.
    #[error(transparent)]
    Divergence(#[from] Divergence),
}

/// What a stretch of replay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The branch count asked for was reached before the log's end.
    Reached,
    /// The log's end, with the machine there; true if the recording ended in good order.
    End {
        /// An end mark was there.
        orderly: bool,
    },
}

/// A replay in progress.
pub struct Replayer<R: Read> {
    log: LogReader<R>,
    next: Option<Entry>,
    /// Hash entries that were checked.
    pub checked: u64,
}

impl<R: Read> Replayer<R> {
    /// Begins the replay of the log on `from`; the machine must be as it was at its beginning.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn new(from: R) -> Result<Replayer<R>, ReplayError> {
        let mut log = LogReader::new(from)?;
        let next = log.next_entry()?;
        Ok(Replayer { log, next, checked: 0 })
    }

    /// The next entry's point.
    pub fn next_point(&self) -> Option<ExecutionPoint> {
        self.next.as_ref().map(Entry::point)
    }

    /// Replays to branch count `until`, or to the log's end if that is before.
    ///
    /// # Errors
    /// [`ReplayError`]; the machine is then where the difference was seen.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        engine: &mut dyn Engine,
        outside: &mut dyn Outside,
        until: u64,
    ) -> Result<Progress, ReplayError> {
        loop {
            let Some(entry) = self.next.take() else {
                return Ok(Progress::End { orderly: false });
            };
            let point = entry.point();
            if point.branches > until {
                self.next = Some(entry);
                let target = ExecutionPoint { branches: until, ..point };
                run_to_count(machine, engine, outside, target)?;
                return Ok(Progress::Reached);
            }
            run_to_count(machine, engine, outside, point)?;
            step_to_point(machine, engine, outside, point)?;
            if let Entry::End { .. } = entry {
                return Ok(Progress::End { orderly: true });
            }
            self.take_up(machine, entry)?;
            self.next = self.log.next_entry()?;
        }
    }

    fn take_up(&mut self, machine: &mut Machine, entry: Entry) -> Result<(), Divergence> {
        match entry {
            Entry::Input { input, .. } => machine.inject(input),
            Entry::Hashes { point, hashes } => {
                self.checked += 1;
                compare(machine, point, &hashes)?;
            }
            Entry::End { .. } => {}
        }
        Ok(())
    }
}

fn compare(
    machine: &mut Machine,
    point: ExecutionPoint,
    expected: &[u64],
) -> Result<(), Divergence> {
    let found = machine.section_hashes();
    let differs = |(index, (_, hash)): &(usize, &(String, u128))| {
        expected.get(*index) != Some(&(*hash as u64))
    };
    let first = found.iter().enumerate().find(differs).map(|(_, (name, _))| name.clone());
    let more = || (expected.len() != found.len()).then(|| "the list of sections".to_owned());
    match first.or_else(more) {
        None => Ok(()),
        Some(section) => Err(Divergence::State { point, section }),
    }
}

/// Runs until the branch count is the target's.
fn run_to_count(
    machine: &mut Machine,
    engine: &mut dyn Engine,
    outside: &mut dyn Outside,
    target: ExecutionPoint,
) -> Result<(), Divergence> {
    while machine.branches() < target.branches {
        let why = match machine.run(engine, outside, target.branches) {
            Stop::Reached | Stop::Yielded => continue,
            Stop::Idle { .. } => "is halted",
            Stop::Power(_) => "changed its power state",
            Stop::Shutdown => "shut down",
        };
        return Err(Divergence::Stopped { expected: target, found: machine.point(), why });
    }
    Ok(())
}

/// Steps from the first instruction at the target's branch count to the target.
fn step_to_point(
    machine: &mut Machine,
    engine: &mut dyn Engine,
    outside: &mut dyn Outside,
    target: ExecutionPoint,
) -> Result<(), Divergence> {
    let stopped = |machine: &Machine, why| {
        Err(Divergence::Stopped { expected: target, found: machine.point(), why })
    };
    for _ in 0..STEPS_MAX {
        let here = machine.point();
        if here == target {
            return Ok(());
        }
        if here.branches > target.branches {
            return stopped(machine, "is past it");
        }
        match machine.step(engine, outside) {
            Stop::Reached | Stop::Yielded => {}
            Stop::Idle { .. } => return stopped(machine, "is halted"),
            Stop::Power(_) => return stopped(machine, "changed its power state"),
            Stop::Shutdown => return stopped(machine, "shut down"),
        }
    }
    stopped(machine, "ran on without a branch")
}
