//! Going on, forwards or backwards, until something happens: a breakpoint, a change of watched
//! bytes.
//!
//! Backwards: interval by interval between checkpoints, the last one first, each run forwards and
//! its last event kept. An interval in which no page of a breakpoint was executed and no watched
//! page written is not run at all.

use memory::RamOffset;
use replay::Target;
use types::PAGE_SIZE;

use crate::look;
use crate::travel::{Halt, Position, Travel, TravelError};

/// What to stop at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Linear addresses of instructions.
    pub breakpoints: Vec<u64>,
    /// Watched bytes: virtual address and length.
    pub watches: Vec<(u64, u64)>,
}

/// A change of watched bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Where the instruction is that changed them.
    pub before: Position,
    /// Where the machine is after it.
    pub after: Position,
}

/// Watched bytes, found in RAM.
struct Watched {
    pieces: Vec<(RamOffset, u64)>,
    /// Number of the watch that a piece belongs to.
    owners: Vec<usize>,
    values: Vec<Vec<u8>>,
}

impl Watched {
    fn find(travel: &Travel, stops: &Stops) -> Watched {
        let (mut pieces, mut owners) = (Vec::new(), Vec::new());
        let cr3 = travel.machine.vcpu().cr3;
        for (owner, &(gva, len)) in stops.watches.iter().enumerate() {
            let mut done = 0;
            while done < len {
                let at = gva.wrapping_add(done);
                let step = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
                if let Ok(place) = look::place(&travel.machine, cr3, at) {
                    pieces.push((place, step));
                    owners.push(owner);
                }
                done += step;
            }
        }
        let mut watched = Watched { pieces, owners, values: Vec::new() };
        watched.values = watched.read(travel);
        watched
    }

    fn read(&self, travel: &Travel) -> Vec<Vec<u8>> {
        let read = |&(at, len): &(RamOffset, u64)| {
            let mut bytes = vec![0; len as usize];
            travel.machine.ram().load_bytes(at, &mut bytes);
            bytes
        };
        self.pieces.iter().map(read).collect()
    }

    /// The watch whose bytes are not what they were at the last look.
    fn changed(&mut self, travel: &Travel) -> Option<usize> {
        let now = self.read(travel);
        let index = now.iter().zip(&self.values).position(|(now, then)| now != then);
        self.values = now;
        index.map(|index| self.owners[index])
    }
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
        let mut watched = Watched::find(self, stops);
        let halt = match self.step_over(&mut watched)? {
            Some(halt) => Ok(halt),
            None => self.with_stops(stops, &watched.pieces.clone(), |travel| {
                travel.seek_stop(target, &mut watched, interrupted)
            }),
        }?;
        Ok(halt)
    }

    /// One instruction, with a look at what is watched.
    fn step_over(&mut self, watched: &mut Watched) -> Result<Option<Halt>, TravelError> {
        if self.step()? == Halt::End {
            return Ok(Some(Halt::End));
        }
        Ok(watched.changed(self).map(Halt::Touched))
    }

    fn with_stops<T>(
        &mut self,
        stops: &Stops,
        pieces: &[(RamOffset, u64)],
        body: impl FnOnce(&mut Travel) -> Result<T, TravelError>,
    ) -> Result<T, TravelError> {
        // Translations go when breakpoints change, so they stay until others are wanted.
        if self.breakpoints != stops.breakpoints {
            self.breakpoints.clone_from(&stops.breakpoints);
            self.engine.set_breakpoints(&stops.breakpoints);
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
                Some(Halt::Touched(_)) => {
                    if let Some(watch) = watched.changed(self) {
                        return Ok(Halt::Touched(watch));
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
        let mut watched = Watched::find(self, stops);
        let executed = self.pages_of(&stops.breakpoints);
        let written: Vec<u32> = watched.pieces.iter().map(|(at, _)| at.page() as u32).collect();
        let mut end = origin;
        while end > self.history.first() {
            // Short intervals are run through sooner, and begin where the last one ended.
            if let Some(far) = self.far.iter().rfind(|far| far.at < end).map(|far| far.at) {
                self.go_to_checkpoint(self.checkpoint_before(end))?;
                self.bring_near(far)?;
            }
            let start = self.checkpoint_before(end);
            let worth = executed
                .as_ref()
                .is_none_or(|executed| self.history.may_meet(start, executed, &written));
            if worth && let Some((at, halt)) = self.last_in(start, end, stops, &mut watched)? {
                self.go_to(at)?;
                if let Halt::Touched(_) = halt {
                    self.step_back()?;
                }
                return Ok(halt);
            }
            if interrupted() {
                self.go_to(end)?;
                return Ok(Halt::Interrupted);
            }
            end = start;
        }
        self.go_to_start()?;
        Ok(Halt::Start)
    }

    fn checkpoint_before(&self, end: Position) -> Position {
        let at = self.history.before(end);
        if at < end { at } else { self.history.strictly_before(end) }
    }

    /// RAM pages of breakpoints in the kernel, whose mapping is the same at all times; `None` if
    /// there are others.
    fn pages_of(&self, breakpoints: &[u64]) -> Option<Vec<u32>> {
        let cr3 = self.machine.vcpu().cr3;
        let page = |&address: &u64| {
            let place = look::place(&self.machine, cr3, address).ok()?;
            (address >> 63 == 1).then_some(place.page() as u32)
        };
        breakpoints.iter().map(page).collect()
    }

    /// The last thing of `stops` from the checkpoint at `start` up to, not including, `end`.
    fn last_in(
        &mut self,
        start: Position,
        end: Position,
        stops: &Stops,
        watched: &mut Watched,
    ) -> Result<Option<(Position, Halt)>, TravelError> {
        self.go_to_checkpoint(start)?;
        watched.values = watched.read(self);
        let pieces = watched.pieces.clone();
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
                Halt::Touched(watch) => self.keep_touch(end, Halt::Touched(watch), &mut last),
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
        let vcpu = self.machine.vcpu();
        vcpu.mode.bases[cpu::Seg::Cs as usize].wrapping_add(vcpu.regs.rip())
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
        let stops = Stops { breakpoints: Vec::new(), watches: vec![(gva, len)] };
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
