//! Going on, forwards or backwards, until something happens: a breakpoint, a change of watched
//! bytes.
//!
//! Backwards: interval by interval between checkpoints, the last one first, each run forwards and
//! its last event kept. An interval in which no code at a breakpoint was executed and no watched
//! page written is not run at all.

use machine::WatchKind;
use memory::Visited;
use replay::Target;
use types::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

use crate::look;
use crate::travel::{Halt, Position, Travel, TravelError};
use crate::watched::{Piece, Watched};

/// From a checkpoint to the next, or to a position before that.
pub(crate) type Interval = (Position, Position);

/// What tells of an interval that it need not be run: where in linear pages breakpoints are, and
/// RAM pages of watched bytes.
type Filter = (Vec<(u64, Visited)>, Vec<u32>);

/// No instruction is longer, bytes.
const INSTRUCTION_SIZE_MAX: u64 = 15;

/// What to stop at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Linear addresses of instructions.
    pub breakpoints: Vec<u64>,
    /// Watched bytes: virtual address and length.
    pub watches: Vec<(u64, u64)>,
    /// Bytes that instructions load or store: virtual address, length, and what counts.
    pub accesses: Vec<(u64, u64, WatchKind)>,
}

/// A change of watched bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Where the instruction is that changed them.
    pub before: Position,
    /// Where the machine is after it.
    pub after: Position,
}

/// Linear pages of breakpoints, and where in them they are.
fn places_of(breakpoints: &[u64]) -> Vec<(u64, Visited)> {
    let place = |&address: &u64| {
        let within = address & PAGE_MASK;
        // Of what reaches into the next page only the page is known.
        let may_reach = within > PAGE_SIZE - INSTRUCTION_SIZE_MAX;
        let part = if may_reach { Visited::ANYWHERE } else { Visited::at(within) };
        (address >> PAGE_SHIFT, part)
    };
    breakpoints.iter().map(place).collect()
}

impl Travel {
    /// Goes on until something of `stops` happens, the recording ends, or `interrupted` says so.
    /// What is at the present point does not count.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_on(
        &mut self,
        stops: &Stops,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, TravelError> {
        self.go_on_to(stops, Target::END, interrupted)
    }

    /// As [`Travel::go_on`], to `target` at most.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_on_to(
        &mut self,
        stops: &Stops,
        target: Target,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, TravelError> {
        self.look_for_more()?;
        let mut watched = Watched::find(&self.machine, stops);
        let pieces = watched.pieces().to_vec();
        self.with_stops(stops, &pieces, |travel| match travel.step_over(&mut watched)? {
            Some(halt) => Ok(halt),
            None => travel.seek_stop(target, &mut watched, interrupted),
        })
    }

    /// One instruction, with a look at what is watched.
    fn step_over(&mut self, watched: &mut Watched) -> Result<Option<Halt>, TravelError> {
        let (halt, accessed) = self.step_watching()?;
        if halt == Halt::End {
            return Ok(Some(Halt::End));
        }
        Ok(watched.met(&self.machine, accessed))
    }

    fn with_stops<T>(
        &mut self,
        stops: &Stops,
        pieces: &[Piece],
        body: impl FnOnce(&mut Travel) -> Result<T, TravelError>,
    ) -> Result<T, TravelError> {
        // Translations go when breakpoints change, so they stay until others are wanted.
        if self.breakpoints != stops.breakpoints {
            self.breakpoints.clone_from(&stops.breakpoints);
            self.engine.set_breakpoints(&stops.breakpoints);
            self.replayer.set_breakpoints(&stops.breakpoints);
        }
        self.machine.set_watches(pieces);
        let result = body(self);
        self.machine.set_watches(&[]);
        result
    }

    fn seek_stop(
        &mut self,
        target: Target,
        watched: &mut Watched,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, TravelError> {
        loop {
            match self.run_stretch(target)? {
                None if interrupted() => return Ok(Halt::Interrupted),
                None => {}
                Some(Halt::Touched(piece)) => {
                    if let Some(halt) = watched.met(&self.machine, Some(piece)) {
                        return Ok(halt);
                    }
                }
                Some(halt) => return Ok(halt),
            }
        }
    }

    /// Goes back to the last thing of `stops` that happened before, or to the beginning. At a
    /// change of watched bytes it is before the instruction that makes it.
    ///
    /// # Errors
    /// As all journeys.
    pub fn go_back(
        &mut self,
        stops: &Stops,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, TravelError> {
        let origin = self.position();
        let mut watched = Watched::find(&self.machine, stops);
        let filter = watched.written().map(|written| (places_of(&stops.breakpoints), written));
        let mut end = origin;
        // What happened last happened lately more often than not: that is looked at alone.
        let mut most = 1;
        while end > self.history().first() {
            let (intervals, reached) = self.intervals_before(end, most, &filter)?;
            if let Some((at, halt)) = self.last_of(&intervals, stops, &mut watched)? {
                self.go_to(at)?;
                if halt != Halt::Breakpoint {
                    self.step_back()?;
                }
                return Ok(halt);
            }
            if interrupted() {
                self.go_to(end)?;
                return Ok(Halt::Interrupted);
            }
            end = reached;
            if !intervals.is_empty() {
                most = 1 + self.scouts.most();
            }
        }
        self.go_to_start()?;
        Ok(Halt::Start)
    }

    /// The last intervals between checkpoints before `end`, the last one first, in which something
    /// may have happened: `most` of them at most, and at least a look at one. How far back that is.
    fn intervals_before(
        &mut self,
        end: Position,
        most: usize,
        filter: &Option<Filter>,
    ) -> Result<(Vec<Interval>, Position), TravelError> {
        let (mut intervals, mut reached) = (Vec::new(), end);
        while intervals.len() < most && reached > self.history().first() {
            // Short intervals are run through sooner, and begin where the last one ended.
            if let Some(far) = self.far.iter().rfind(|far| far.at < reached).map(|far| far.at) {
                if !intervals.is_empty() {
                    break;
                }
                self.go_to_checkpoint(self.checkpoint_before(reached))?;
                self.bring_near(far)?;
            }
            let start = self.checkpoint_before(reached);
            let worth = filter.as_ref().is_none_or(|(executed, written)| {
                self.history().may_meet(start, executed, written)
            });
            if worth {
                intervals.push((start, reached));
            }
            reached = start;
            if !worth && intervals.is_empty() {
                break;
            }
        }
        Ok((intervals, reached))
    }

    fn checkpoint_before(&self, end: Position) -> Position {
        let history = self.history();
        let at = history.before(end);
        if at < end { at } else { history.strictly_before(end) }
    }

    /// The last thing of `stops` from the checkpoint that an interval begins with up to, not
    /// including, its end.
    pub(crate) fn last_in(
        &mut self,
        (start, end): Interval,
        stops: &Stops,
        watched: &mut Watched,
    ) -> Result<Option<(Position, Halt)>, TravelError> {
        self.go_to_checkpoint(start)?;
        watched.look(&self.machine);
        let pieces = watched.pieces().to_vec();
        self.with_stops(stops, &pieces, |travel| travel.collect_last(end, stops, watched))
    }

    fn collect_last(
        &mut self,
        end: Position,
        stops: &Stops,
        watched: &mut Watched,
    ) -> Result<Option<(Position, Halt)>, TravelError> {
        let mut last = None;
        let target = Target::branches(end.branches);
        loop {
            let here = self.position();
            if here >= end {
                return Ok(last);
            }
            if stops.breakpoints.contains(&self.linear_rip()) && here.iterations == 0 {
                last = Some((here, Halt::Breakpoint));
            }
            // Off the breakpoint, and through the last instructions before the end.
            if let Some(halt) = self.step_over(watched)? {
                if halt == Halt::End {
                    return Ok(last);
                }
                self.keep_touch(end, halt, &mut last);
            }
            if self.machine.branches() >= end.branches {
                continue;
            }
            match self.seek_stop(target, watched, &mut || false)? {
                Halt::End => return Ok(last),
                halt @ (Halt::Touched(_) | Halt::Accessed(_)) => {
                    self.keep_touch(end, halt, &mut last);
                }
                _ => {}
            }
        }
    }

    fn keep_touch(&self, end: Position, halt: Halt, last: &mut Option<(Position, Halt)>) {
        let here = self.position();
        if here <= end {
            *last = Some((here, halt));
        }
    }

    /// Linear address of the next instruction.
    pub fn linear_rip(&self) -> u64 {
        look::linear_rip(&self.machine)
    }

    /// Where `len` bytes at `gva` were last changed before the present point; the machine stays.
    /// `tick` is called now and then.
    ///
    /// # Errors
    /// As all journeys.
    pub fn last_write(
        &mut self,
        gva: u64,
        len: u64,
        tick: &mut dyn FnMut(),
    ) -> Result<Option<Touch>, TravelError> {
        let origin = self.position();
        let stops = Stops { watches: vec![(gva, len)], ..Stops::default() };
        let mut tick_on = || {
            tick();
            false
        };
        let halt = self.go_back(&stops, &mut tick_on)?;
        let found = if let Halt::Touched(_) = halt {
            let before = self.position();
            self.step()?;
            Some(Touch { before, after: self.position() })
        } else {
            None
        };
        self.go_to(origin)?;
        Ok(found)
    }
}
