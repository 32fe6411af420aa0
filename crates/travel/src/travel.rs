//! The traveller: a machine, the log it follows, and how it comes to a point.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use cpu::Engine;
use devices::PowerEvent;
use journal::{Entry, LogError, Output, What};
use machine::Machine;
use memory::RamError;
use replay::{Entries, Progress, ReplayError, Replayer, Target};
use saved::RestoreError;
use types::{ExecutionPoint, VirtualTime};

use crate::far::Far;
use crate::history::{History, Stand};
use crate::look::{self, NotMapped};
use crate::sandbox::Sandbox;
use crate::scouts::Scouts;

/// Branches run at a time: between two looks at the clock and at who interrupts.
const STRETCH_BRANCHES: u64 = 1_000_000;
/// A checkpoint is taken after so much of the engine's work, ns.
const CHECKPOINT_NS: u64 = 40_000_000;
/// Instructions between a branch and the next at most; see [`Replayer`].
const STEPS_MAX: u64 = 1 << 24;

/// A point of the recording. Points of one execution are in order: between two branches code runs
/// straight on, and what repeats counts iterations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Retired branches.
    pub branches: u64,
    /// Offset of the next instruction.
    pub rip: u64,
    /// Iterations.
    pub iterations: u64,
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Position) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Position) -> Ordering {
        let key = |it: &Position| (it.branches, it.rip, it.iterations);
        key(self).cmp(&key(other))
    }
}

impl From<ExecutionPoint> for Position {
    fn from(point: ExecutionPoint) -> Position {
        let ExecutionPoint { vcpu: _, branches, rip, iterations } = point;
        Position { branches, rip, iterations }
    }
}

impl Position {
    /// Where `machine` is.
    pub(crate) fn of(machine: &Machine) -> Position {
        machine.point().into()
    }
}

/// Why a journey ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It is where it was to go.
    Reached,
    /// The next instruction is at a breakpoint.
    Breakpoint,
    /// Watched bytes change here; the watch's number.
    Touched(usize),
    /// Watched bytes are loaded or stored here; the number among [`crate::Stops::accesses`].
    Accessed(usize),
    /// The beginning of the recording.
    Start,
    /// The end of the recording.
    End,
    /// Somebody interrupted it.
    Interrupted,
}

/// Why a journey failed.
#[derive(Debug, thiserror::Error)]
pub enum TravelError {
    /// The machine does not do what it did.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A checkpoint in memory cannot be gone back to.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// There is no memory for what is to be known of the way.
    #[error(transparent)]
    Memory(#[from] RamError),
    /// The machine cannot be booted again.
    #[error("the machine cannot be booted again as in the recording: {0}")]
    Reboot(String),
    /// The point is none of this recording.
    #[error("the recording does not come to that point")]
    NoSuchPoint,
}

/// Boots a machine that was reset, as the recording's driver did.
pub type Reboot = Box<dyn FnMut(&mut Machine) -> Result<(), String> + Send>;

/// All entries of a log that others are still writing, or nothing if it cannot be read.
pub type More = Box<dyn FnMut() -> Option<Vec<Entry>> + Send>;

/// A machine that goes to any point of its recording.
pub struct Travel {
    pub(crate) machine: Machine,
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) sandbox: Sandbox,
    pub(crate) replayer: Replayer,
    pub(crate) entries: Arc<[Entry]>,
    more: Option<More>,
    /// Scouts have it in common with the traveller that sent them.
    history: Arc<RwLock<History>>,
    stand: Stand,
    /// In order.
    pub(crate) far: Vec<Far>,
    pub(crate) scouts: Scouts,
    /// Whether checkpoints are taken on the way.
    pub(crate) takes: bool,
    reboot: Arc<Mutex<Reboot>>,
    no_reboot: bool,
    /// What the engine stops at.
    pub(crate) breakpoints: Vec<u64>,
    /// The engine's work since the last checkpoint, ns.
    cost_ns: u64,
    at_end: bool,
    /// How long a journey may take before it is interrupted, and when that is.
    patience: Option<Duration>,
    until: Option<Instant>,
}

/// Entries in memory, from one of them on.
struct Cursor {
    entries: Arc<[Entry]>,
    next: usize,
}

impl Entries for Cursor {
    fn next_entry(&mut self) -> Result<Option<Entry>, LogError> {
        let entry = self.entries.get(self.next).cloned();
        self.next += 1;
        Ok(entry)
    }
}

fn replayer(entries: &Arc<[Entry]>, number: u64) -> Result<Replayer, ReplayError> {
    let cursor = Cursor { entries: Arc::clone(entries), next: number as usize };
    let mut replayer = Replayer::from_entry(cursor, number)?;
    replayer.set_checking(false);
    Ok(replayer)
}

/// CPU time of this thread, ns: what a host does besides makes no checkpoint due.
fn work_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Travel {
    /// Begins at the beginning of the recording, which `machine` is at; `no_reboot` if a reset
    /// ended it.
    ///
    /// # Errors
    /// Those of an empty log, and [`TravelError::Memory`].
    pub fn new(
        mut machine: Machine,
        engine: Box<dyn Engine>,
        sandbox: Sandbox,
        entries: Vec<Entry>,
        reboot: Reboot,
        no_reboot: bool,
    ) -> Result<Travel, TravelError> {
        let entries: Arc<[Entry]> = entries.into();
        let (history, stand) = History::begin(&mut machine, &sandbox)?;
        Ok(Travel {
            replayer: replayer(&entries, 0)?,
            machine,
            engine,
            sandbox,
            entries,
            more: None,
            history: Arc::new(RwLock::new(history)),
            stand,
            far: Vec::new(),
            scouts: Scouts::default(),
            takes: true,
            reboot: Arc::new(Mutex::new(reboot)),
            no_reboot,
            breakpoints: Vec::new(),
            cost_ns: 0,
            at_end: false,
            patience: None,
            until: None,
        })
    }

    /// A machine of its own, at no point yet, that goes to points of the same recording by the same
    /// checkpoints.
    pub(crate) fn scout(&self, engine: Box<dyn Engine>) -> Result<Travel, TravelError> {
        let machine = Machine::new(self.machine.spec().clone());
        let mut machine = machine.map_err(|error| TravelError::Reboot(error.to_string()))?;
        Ok(Travel {
            replayer: replayer(&self.entries, 0)?,
            stand: Stand::nowhere(&mut machine),
            machine,
            engine,
            sandbox: self.sandbox.fork(),
            entries: Arc::clone(&self.entries),
            more: None,
            history: Arc::clone(&self.history),
            far: Vec::new(),
            scouts: Scouts::default(),
            takes: false,
            reboot: Arc::clone(&self.reboot),
            no_reboot: self.no_reboot,
            breakpoints: Vec::new(),
            cost_ns: 0,
            at_end: false,
            patience: None,
            until: None,
        })
    }

    pub(crate) fn history(&self) -> RwLockReadGuard<'_, History> {
        self.history.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the history where the machine is.
    pub(crate) fn change_history(
        &mut self,
        change: impl FnOnce(&mut History, &mut Stand, &mut Machine, &Sandbox),
    ) {
        let mut history: RwLockWriteGuard<'_, History> =
            self.history.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut history, &mut self.stand, &mut self.machine, &self.sandbox);
    }

    /// Where the log has no end yet, `more` tells what has become of it.
    pub fn follow(&mut self, more: More) {
        self.more = Some(more);
    }

    /// Before a journey that may come to the end: that is where the log ends now, however it grows
    /// meanwhile.
    pub(crate) fn look_for_more(&mut self) -> Result<(), TravelError> {
        if self.entries.last().is_some_and(|last| last.what == What::End) {
            return Ok(());
        }
        let Some(entries) = self.more.as_mut().and_then(|more| more()) else { return Ok(()) };
        if entries.len() > self.entries.len() {
            let number = self.entry_number();
            self.entries = entries.into();
            self.replayer = replayer(&self.entries, number)?;
            self.replayer.set_breakpoints(&self.breakpoints);
            self.at_end = false;
        }
        Ok(())
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What the first serial port printed last.
    pub fn console(&self) -> &[u8] {
        self.sandbox.console()
    }

    /// How long a journey to a branch count, time or entry takes at most; then it halts on the way
    /// with [`Halt::Interrupted`], and the same call goes on.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// From now on what leaves the machine is kept for [`Travel::take_outputs`], or not.
    pub fn trace_outputs(&mut self, tracing: bool) {
        self.sandbox.trace(tracing);
    }

    /// What left the machine since the last call, if outputs are traced.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        self.sandbox.take_traced()
    }

    /// Journeys other than those with stops are not to be stopped.
    fn clear_breakpoints(&mut self) {
        if !self.breakpoints.is_empty() {
            self.breakpoints.clear();
            self.engine.set_breakpoints(&[]);
            self.replayer.set_breakpoints(&[]);
        }
    }

    /// Where the machine is.
    pub fn position(&self) -> Position {
        Position::of(&self.machine)
    }

    /// The log's entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of the next entry.
    pub fn entry_number(&self) -> u64 {
        self.replayer.number()
    }

    /// Checkpoints in memory, and bytes of pages in them.
    pub fn checkpoints(&self) -> (usize, usize) {
        self.history().size()
    }

    /// Copies guest memory at virtual address `gva`, by the page tables that `cr3` leads to, or
    /// those in use.
    ///
    /// # Errors
    /// [`NotMapped`] with the first address where nothing is.
    pub fn read(&self, cr3: Option<u64>, gva: u64, into: &mut [u8]) -> Result<(), NotMapped> {
        let cr3 = cr3.unwrap_or(self.machine.vcpu().cr3);
        look::read(&self.machine, cr3, gva, into)
    }

    /// Hash of each RAM page.
    pub fn page_hashes(&self) -> Vec<u128> {
        (0..self.machine.pages()).map(|page| self.machine.ram().page_hash(page as usize)).collect()
    }

    /// Hash of RAM and of each section, by name.
    pub fn section_hashes(&mut self) -> Vec<(String, u128)> {
        self.machine.section_hashes()
    }

    /// Goes to `target`.
    ///
    /// # Errors
    /// [`TravelError::NoSuchPoint`] if the recording does not come there.
    pub fn go_to(&mut self, target: Position) -> Result<(), TravelError> {
        self.bring_near(target)?;
        let here = self.position();
        let nearest = self.history().before(target);
        if here > target || nearest > here {
            self.go_to_checkpoint(nearest)?;
        }
        self.run_to_branch(target.branches)?;
        for _ in 0..STEPS_MAX {
            let here = self.position();
            if here == target {
                return Ok(());
            }
            if here > target || self.step()? == Halt::End {
                break;
            }
        }
        Err(TravelError::NoSuchPoint)
    }

    /// Goes to the beginning of the recording.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_to_start(&mut self) -> Result<(), TravelError> {
        let first = self.history().first();
        self.go_to_checkpoint(first)
    }

    /// Goes to the first place at branch count `branches`, or to the end.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_to_branch(&mut self, branches: u64) -> Result<Halt, TravelError> {
        self.go_before(Position { branches, ..Position::default() })?;
        self.travel_to(Target::branches(branches))
    }

    /// Goes to the last place before guest time goes beyond `time`, or to the end.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_to_time(&mut self, time: VirtualTime) -> Result<Halt, TravelError> {
        if self.machine.now() > time {
            let later = self.entries.partition_point(|entry| entry.at <= time);
            let point = later.checked_sub(1).map(|index| self.entries[index].point);
            self.go_before(point.map_or(Position::default(), Position::from))?;
        }
        if let Some(far) = self.far_before(time) {
            self.bring_near(far)?;
        }
        self.travel_to(Target { time, ..Target::END })
    }

    /// Goes to before entry `number` of the log, or to the end.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_to_entry(&mut self, number: u64) -> Result<Halt, TravelError> {
        if self.entry_number() > number
            && let Some(entry) = self.entries.get(number as usize)
        {
            self.go_before(Position { rip: 0, iterations: 0, ..entry.point.into() })?;
        }
        if let Some(far) = self.far_before_entry(number) {
            self.bring_near(far)?;
        }
        self.travel_to(Target { entry: number, ..Target::END })
    }

    fn travel_to(&mut self, target: Target) -> Result<Halt, TravelError> {
        self.look_for_more()?;
        self.clear_breakpoints();
        self.until = self.patience.map(|patience| Instant::now() + patience);
        let halt = self.run(target);
        self.until = None;
        halt
    }

    /// Goes back to a checkpoint at `target` or before, unless the machine is between the two.
    fn go_before(&mut self, target: Position) -> Result<(), TravelError> {
        self.bring_near(target)?;
        let (here, nearest) = (self.position(), self.history().before(target));
        if here > target || nearest > here {
            self.go_to_checkpoint(nearest)?;
        }
        Ok(())
    }

    pub(crate) fn go_to_checkpoint(&mut self, at: Position) -> Result<(), TravelError> {
        let history = self.history.read().unwrap_or_else(PoisonError::into_inner);
        let (machine, sandbox) = (&mut self.machine, &mut self.sandbox);
        let number = history.go_to(&mut self.stand, at, machine, sandbox)?;
        drop(history);
        self.replayer = replayer(&self.entries, number)?;
        self.replayer.set_breakpoints(&self.breakpoints);
        (self.cost_ns, self.at_end) = (0, false);
        Ok(())
    }

    fn run_to_branch(&mut self, branches: u64) -> Result<Halt, TravelError> {
        self.clear_breakpoints();
        self.run(Target { branches, ..Target::END })
    }

    /// Runs on to `target`, a breakpoint, a touched watch or the end.
    pub(crate) fn run(&mut self, target: Target) -> Result<Halt, TravelError> {
        loop {
            if let Some(halt) = self.run_stretch(target)? {
                return Ok(halt);
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Halt::Interrupted);
            }
        }
    }

    /// Runs on for a while; why not farther, if it is not to go on.
    pub(crate) fn run_stretch(&mut self, target: Target) -> Result<Option<Halt>, TravelError> {
        if self.at_end {
            return Ok(Some(Halt::End));
        }
        let before = (self.machine.branches(), self.entry_number(), self.machine.now());
        let pause = self.machine.branches().saturating_add(STRETCH_BRANCHES);
        let stretch = Target { branches: target.branches.min(pause), ..target };
        let start_ns = work_ns();
        let progress =
            self.replayer.run(&mut self.machine, self.engine.as_mut(), &mut self.sandbox, stretch);
        self.cost_ns += work_ns().saturating_sub(start_ns);
        let halt = match progress? {
            Progress::Reached if self.machine.branches() >= target.branches => Halt::Reached,
            Progress::Reached
                if before == (self.machine.branches(), self.entry_number(), self.machine.now()) =>
            {
                Halt::Reached
            }
            Progress::Reached => {
                self.take_checkpoint_if_due();
                return Ok(None);
            }
            Progress::Breakpoint => Halt::Breakpoint,
            Progress::Touched(watch) => Halt::Touched(watch),
            other => return self.power(other),
        };
        Ok(Some(halt))
    }

    /// The machine changed its power state, or the log is at its end.
    fn power(&mut self, progress: Progress) -> Result<Option<Halt>, TravelError> {
        if progress == Progress::Power(PowerEvent::Reset) && !self.no_reboot {
            self.machine.reset();
            let mut reboot = self.reboot.lock().unwrap_or_else(PoisonError::into_inner);
            reboot(&mut self.machine).map_err(TravelError::Reboot)?;
            return Ok(None);
        }
        self.at_end = true;
        Ok(Some(Halt::End))
    }

    fn take_checkpoint_if_due(&mut self) {
        if self.takes && self.cost_ns >= CHECKPOINT_NS {
            self.take_checkpoint();
        }
    }

    pub(crate) fn take_checkpoint(&mut self) {
        let number = self.entry_number();
        let cost_ns = self.cost_ns;
        self.change_history(|history, stand, machine, sandbox| {
            history.take(stand, machine, sandbox, number, cost_ns);
        });
        self.cost_ns = 0;
    }

    /// Executes one instruction, or waits for one deadline; what comes in before it comes in.
    ///
    /// # Errors
    /// As all journeys.
    pub fn step(&mut self) -> Result<Halt, TravelError> {
        self.step_watching().map(|(halt, _)| halt)
    }

    /// As [`Travel::step`], with the number of the machine's watch that was met, if one was.
    pub(crate) fn step_watching(&mut self) -> Result<(Halt, Option<usize>), TravelError> {
        if self.at_end {
            return Ok((Halt::End, None));
        }
        let (machine, engine) = (&mut self.machine, self.engine.as_mut());
        let progress = self.replayer.step(machine, engine, &mut self.sandbox)?;
        match progress {
            Progress::Reached => Ok((Halt::Reached, None)),
            Progress::Touched(piece) => Ok((Halt::Reached, Some(piece))),
            other => Ok((self.power(other)?.unwrap_or(Halt::Reached), None)),
        }
    }

    /// Goes back by one instruction.
    ///
    /// # Errors
    /// As all journeys.
    pub fn step_back(&mut self) -> Result<Halt, TravelError> {
        let here = self.position();
        if here <= self.history().first() {
            return Ok(Halt::Start);
        }
        // The instruction before is the branch that led to this count, or comes after it.
        let branches = here.branches.saturating_sub(1);
        self.go_before(Position { branches, ..Position::default() })?;
        self.run_to_branch(branches)?;
        if self.position() >= here {
            self.go_to_start()?;
        }
        self.take_checkpoint();
        let mut before = self.position();
        for _ in 0..STEPS_MAX {
            self.step()?;
            let next = self.position();
            if next >= here {
                break;
            }
            before = next;
        }
        self.go_to(before)?;
        Ok(Halt::Reached)
    }
}
