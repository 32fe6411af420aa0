//! Replaying: to each point of the log by branch count, then instruction by instruction
//! (mechanism L2), and the input let in there.

use std::io::Read;

use cpu::Engine;
use devices::PowerEvent;
use journal::{Check, Entry, Input, LogError, LogReader, What};
use machine::{Machine, Outside, Stop};
use types::{ExecutionPoint, VirtualTime};

use crate::digest::Watched;

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
    /// What left the machine differs.
    #[error("up to {point} the machine put out something else than in the recording")]
    Output {
        /// Where it was noticed.
        point: ExecutionPoint,
    },
    /// Virtual time differs.
    #[error("at {point} virtual time is {found}, in the recording {expected}")]
    Time {
        /// Where.
        point: ExecutionPoint,
        /// As recorded.
        expected: VirtualTime,
        /// As it is.
        found: VirtualTime,
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
    /// The target was reached before the log's end.
    Reached,
    /// The machine changed its power state: whoever drives it does what the recording's driver
    /// did, and replays on.
    Power(PowerEvent),
    /// Triple fault.
    Shutdown,
    /// The machine stopped at a breakpoint of the engine's.
    Breakpoint,
    /// The watch of this number was written to.
    Touched(usize),
    /// The log's end, with the machine there; true if the recording ended in good order.
    End {
        /// An end mark was there.
        orderly: bool,
    },
}

/// How far to replay: to the first of these that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The first instruction boundary at this branch count.
    pub branches: u64,
    /// The first place the machine comes to from which it would run or wait beyond this time.
    pub time: VirtualTime,
    /// Before the entry of this number.
    pub entry: u64,
}

impl Target {
    /// The log's end.
    pub const END: Target = Target { branches: u64::MAX, time: VirtualTime::MAX, entry: u64::MAX };

    /// A branch count.
    pub const fn branches(branches: u64) -> Target {
        Target { branches, ..Target::END }
    }
}

/// Where entries come from.
pub trait Entries: Send {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// As [`LogReader::next_entry`].
    fn next_entry(&mut self) -> Result<Option<Entry>, LogError>;
}

impl<R: Read + Send> Entries for LogReader<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, LogError> {
        LogReader::next_entry(self)
    }
}

/// A replay in progress.
pub struct Replayer {
    log: Box<dyn Entries>,
    next: Option<Entry>,
    number: u64,
    checking: bool,
    checked: u64,
    breakpoints: Vec<u64>,
}

/// A machine with everything it is replayed on.
struct Rig<'a> {
    machine: &'a mut Machine,
    engine: &'a mut dyn Engine,
    outside: &'a mut dyn Watched,
}

impl Replayer {
    /// Begins the replay of `log`; the machine must be as it was at its beginning.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn new(log: impl Entries + 'static) -> Result<Replayer, ReplayError> {
        Replayer::from_entry(log, 0)
    }

    /// Begins in the middle: `log` gives entry `number` first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn from_entry(log: impl Entries + 'static, number: u64) -> Result<Replayer, ReplayError> {
        let mut log: Box<dyn Entries> = Box::new(log);
        let next = log.next_entry()?;
        let breakpoints = Vec::new();
        Ok(Replayer { log, next, number, checking: true, checked: 0, breakpoints })
    }

    /// Whether the log's checks are made; they are unless this says otherwise.
    pub fn set_checking(&mut self, checking: bool) {
        self.checking = checking;
    }

    /// Linear addresses at which [`Replayer::run`] stops where it steps; the engine has them too.
    pub fn set_breakpoints(&mut self, breakpoints: &[u64]) {
        self.breakpoints = breakpoints.to_vec();
    }

    /// Checks that were made.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// The next entry; `None` at the log's end.
    pub fn next(&self) -> Option<&Entry> {
        self.next.as_ref()
    }

    /// The next entry's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Replays to `target`, or to whatever comes before.
    ///
    /// # Errors
    /// [`ReplayError`]; the machine is then where the difference was seen.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        engine: &mut dyn Engine,
        outside: &mut dyn Watched,
        target: Target,
    ) -> Result<Progress, ReplayError> {
        let mut rig = Rig { machine, engine, outside };
        loop {
            if self.number >= target.entry {
                return Ok(Progress::Reached);
            }
            let Some(entry) = &self.next else {
                return Ok(Progress::End { orderly: false });
            };
            if let Some(progress) = rig.approach(entry.point, target, &self.breakpoints)? {
                return Ok(progress);
            }
            if let What::Input(Input::ClockAnchor { advance_ns, .. }) = entry.what
                && rig.machine.now().saturating_add_ns(advance_ns) > target.time
            {
                return Ok(Progress::Reached);
            }
            if let Some(progress) = self.take_up(&mut rig)? {
                return Ok(progress);
            }
        }
    }

    /// Takes up the entries of the place where the machine stands, and runs nothing: after the
    /// recorded machine powered off, they are the last ones.
    ///
    /// # Errors
    /// As [`Replayer::run`].
    pub fn finish(
        &mut self,
        machine: &mut Machine,
        engine: &mut dyn Engine,
        outside: &mut dyn Watched,
    ) -> Result<Progress, ReplayError> {
        let mut rig = Rig { machine, engine, outside };
        while let Some(entry) = &self.next {
            let (expected, found) = (entry.point, rig.machine.point());
            if expected != found {
                let why = "ended";
                return Err(Divergence::Stopped { expected, found, why }.into());
            }
            if let Some(progress) = self.take_up(&mut rig)? {
                return Ok(progress);
            }
        }
        Ok(Progress::End { orderly: false })
    }

    /// Executes one instruction, or waits for one deadline, after the entries of this place.
    ///
    /// # Errors
    /// As [`Replayer::run`].
    pub fn step(
        &mut self,
        machine: &mut Machine,
        engine: &mut dyn Engine,
        outside: &mut dyn Watched,
    ) -> Result<Progress, ReplayError> {
        let mut rig = Rig { machine, engine, outside };
        while self.next.as_ref().is_some_and(|entry| entry.point == rig.machine.point()) {
            if let Some(progress) = self.take_up(&mut rig)? {
                return Ok(progress);
            }
        }
        let Some(entry) = &self.next else { return Ok(Progress::End { orderly: false }) };
        let expected = entry.point;
        Ok(match rig.machine.step(rig.engine, rig.outside) {
            Stop::Idle { deadline: None } => {
                return Ok(rig.stopped(expected, "is halted for good")?);
            }
            Stop::Idle { deadline: Some(_) } => {
                rig.machine.skip_idle(rig.outside);
                Progress::Reached
            }
            Stop::Power(event) => Progress::Power(event),
            Stop::Shutdown => Progress::Shutdown,
            Stop::Touched(watch) => Progress::Touched(watch),
            Stop::Reached | Stop::Yielded | Stop::Breakpoint => Progress::Reached,
        })
    }

    /// The machine is at the next entry: what it says is done.
    fn take_up(&mut self, rig: &mut Rig<'_>) -> Result<Option<Progress>, ReplayError> {
        let Some(Entry { point, at, what }) = self.next.take() else { return Ok(None) };
        let found = Entry::time(rig.machine.now());
        if found != at {
            return Err(Divergence::Time { point, expected: at, found }.into());
        }
        match what {
            What::Input(input) => rig.machine.inject(rig.outside, input),
            What::Check(check) if self.checking => {
                self.checked += 1;
                compare(rig, point, &check)?;
            }
            What::Check(_) | What::Checkpoint(_) => {}
            What::End => return Ok(Some(Progress::End { orderly: true })),
        }
        self.next = self.log.next_entry()?;
        self.number += 1;
        Ok(None)
    }
}

fn compare(rig: &mut Rig<'_>, point: ExecutionPoint, expected: &Check) -> Result<(), Divergence> {
    let found = rig.machine.section_hashes();
    let differs = |(index, (_, hash)): &(usize, &(String, u128))| {
        expected.sections.get(*index) != Some(&(*hash as u64))
    };
    let first = found.iter().enumerate().find(differs).map(|(_, (name, _))| name.clone());
    let more =
        || (expected.sections.len() != found.len()).then(|| "the list of sections".to_owned());
    match first.or_else(more) {
        Some(section) => Err(Divergence::State { point, section }),
        None if rig.outside.digest() != expected.output => Err(Divergence::Output { point }),
        None => Ok(()),
    }
}

impl Rig<'_> {
    /// Runs to the point of the next entry; what came before, if something did.
    fn approach(
        &mut self,
        point: ExecutionPoint,
        target: Target,
        breakpoints: &[u64],
    ) -> Result<Option<Progress>, Divergence> {
        for _ in 0..STEPS_MAX {
            let here = self.machine.point();
            if here.branches >= target.branches {
                return Ok(Some(Progress::Reached));
            }
            if here == point && self.machine.now() <= target.time {
                return Ok(None);
            }
            let in_time = self.machine.branches_at(target.time);
            if here.branches >= in_time {
                return Ok(Some(Progress::Reached));
            }
            let until = point.branches.min(target.branches).min(in_time);
            let stop = if here.branches < until {
                let outside: &mut dyn Outside = self.outside;
                self.machine.run(self.engine, outside, until)
            } else if here.branches == point.branches {
                self.step(breakpoints)
            } else {
                return self.stopped(point, "is past it");
            };
            match stop {
                Stop::Reached | Stop::Yielded => {}
                Stop::Breakpoint => return Ok(Some(Progress::Breakpoint)),
                Stop::Touched(watch) => return Ok(Some(Progress::Touched(watch))),
                Stop::Idle { deadline: None } => return self.stopped(point, "is halted for good"),
                Stop::Idle { deadline: Some(at) } => {
                    let here = self.machine.point();
                    if here == point {
                        continue;
                    }
                    if here.branches > point.branches {
                        return self.stopped(point, "is past it");
                    }
                    if at > target.time {
                        return Ok(Some(Progress::Reached));
                    }
                    self.machine.skip_idle(self.outside);
                }
                Stop::Power(event) => return Ok(Some(Progress::Power(event))),
                Stop::Shutdown => return Ok(Some(Progress::Shutdown)),
            }
        }
        self.stopped(point, "does not come to it")
    }

    /// Executes one instruction; a breakpoint may be at the next.
    fn step(&mut self, breakpoints: &[u64]) -> Stop {
        let stop = self.machine.step(self.engine, self.outside);
        let vcpu = self.machine.vcpu();
        let rip = vcpu.mode.bases[cpu::Seg::Cs as usize].wrapping_add(vcpu.regs.rip());
        let at_one = stop == Stop::Reached && breakpoints.contains(&rip);
        if at_one && self.machine.point().iterations == 0 { Stop::Breakpoint } else { stop }
    }

    fn stopped<T>(&self, expected: ExecutionPoint, why: &'static str) -> Result<T, Divergence> {
        Err(Divergence::Stopped { expected, found: self.machine.point(), why })
    }
}
