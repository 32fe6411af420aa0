//! Going on, forwards or backwards, until something happens: a breakpoint, a change of watched
//! bytes.
//!
//! Backwards: interval by interval between checkpoints, the last one first, each run forwards and
//! its last event kept. An interval in which no page of a breakpoint was executed and no watched
//! page written is not run at all.

use machine::WatchKind;
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
    /// Bytes that instructions load or store: virtual address, length, and what counts.
    pub accesses: Vec<(u64, u64, WatchKind)>,
}

/// A piece of watched bytes in one page, and how it is watched.
type Piece = (RamOffset, u64, WatchKind);

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
    pieces: Vec<Piece>,
    /// What a piece belongs to.
    owners: Vec<Halt>,
    values: Vec<Vec<u8>>,
}

impl Watched {
    fn find(travel: &Travel, stops: &Stops) -> Watched {
        let (mut pieces, mut owners) = (Vec::new(), Vec::new());
        let cr3 = travel.machine.vcpu().cr3;
        let changes = stops.watches.iter().map(|&(gva, len)| (gva, len, WatchKind::Changes));
        let changes = changes.enumerate().map(|(index, watch)| (Halt::Touched(index), watch));
        let accesses = stops.accesses.iter().copied().enumerate();
        let accesses = accesses.map(|(index, watch)| (Halt::Accessed(index), watch));
        for (owner, (gva, len, kind)) in changes.chain(accesses) {
            let mut done = 0;
            while done < len {
                let at = gva.wrapping_add(done);
                let step = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
                if let Ok(place) = look::place(&travel.machine, cr3, at) {
                    pieces.push((place, step, kind));
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
        let read = |&(at, len, _): &Piece| {
            let mut bytes = vec![0; len as usize];
            travel.machine.ram().load_bytes(at, &mut bytes);
            bytes
        };
        self.pieces.iter().map(read).collect()
    }

    /// What happened since the last look: an access (to piece `accessed`, if it is one of those
    /// that are watched so), or bytes that are not what they were.
    fn met(&mut self, travel: &Travel, accessed: Option<usize>) -> Option<Halt> {
        let now = self.read(travel);
        let changes = |index: &usize| self.pieces[*index].2 == WatchKind::Changes;
        let changed = |index: &usize| changes(index) && now[*index] != self.values[*index];
        let index = accessed.filter(|index| !changes(index));
        let index = index.or_else(|| (0..now.len()).find(changed));
        self.values = now;
        index.map(|index| self.owners[index])
    }

    /// RAM pages in which only what writes can be of interest; `None` if loads are.
    fn written(&self) -> Option<Vec<u32>> {
        let page =
            |(at, _, kind): &Piece| (*kind == WatchKind::Changes).then_some(at.page() as u32);
        self.pieces.iter().map(page).collect()
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
        self.with_stops(stops, &watched.pieces.clone(), |travel| {
            match travel.step_over(&mut watched)? {
                Some(halt) => Ok(halt),
                None => travel.seek_stop(target, &mut watched, interrupted),
            }
        })
    }

    /// One instruction, with a look at what is watched.
    fn step_over(&mut self, watched: &mut Watched) -> Result<Option<Halt>, TravelError> {
        let (halt, accessed) = self.step_watching()?;
        if halt == Halt::End {
            return Ok(Some(Halt::End));
        }
        Ok(watched.met(self, accessed))
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
                    if let Some(halt) = watched.met(self, Some(piece)) {
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
        let mut watched = Watched::find(self, stops);
        let executed = self.pages_of(&stops.breakpoints);
        let filter = executed.zip(watched.written());
        let mut end = origin;
        while end > self.history.first() {
            // Short intervals are run through sooner, and begin where the last one ended.
            if let Some(far) = self.far.iter().rfind(|far| far.at < end).map(|far| far.at) {
                self.go_to_checkpoint(self.checkpoint_before(end))?;
                self.bring_near(far)?;
            }
            let start = self.checkpoint_before(end);
            let worth = filter
                .as_ref()
                .is_none_or(|(executed, written)| self.history.may_meet(start, executed, written));
            if worth && let Some((at, halt)) = self.last_in(start, end, stops, &mut watched)? {
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
