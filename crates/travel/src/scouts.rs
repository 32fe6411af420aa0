//! Intervals run on several CPUs at once: each on a machine of its own, which scouts keep between
//! searches.

use std::panic::resume_unwind;
use std::thread::{available_parallelism, scope};

use cpu::Engine;

use crate::search::{Interval, Stops};
use crate::travel::{Halt, Position, Travel, TravelError};
use crate::watched::Watched;

/// Most scouts: each has as much memory as the guest.
const MOST: usize = 3;

/// Makes an engine for a scout, like the traveller's own; nothing where there can be none.
pub type Engines = Box<dyn Fn() -> Option<Box<dyn Engine>> + Send>;

/// Travellers that look at other intervals meanwhile.
#[derive(Default)]
pub(crate) struct Scouts {
    engines: Option<Engines>,
    ready: Vec<Travel>,
}

impl Scouts {
    /// How many there can be.
    pub fn most(&self) -> usize {
        let cpus = available_parallelism().map_or(1, |cpus| cpus.get());
        if self.engines.is_some() { (cpus - 1).min(MOST) } else { self.ready.len() }
    }
}

impl Travel {
    /// Searches backwards are to run on other CPUs too, with engines that `engines` makes.
    pub fn use_scouts(&mut self, engines: Engines) {
        self.scouts.engines = Some(engines);
    }

    /// The last thing of `stops` in these intervals, the last of which comes first.
    pub(crate) fn last_of(
        &mut self,
        intervals: &[Interval],
        stops: &Stops,
        watched: &mut Watched,
    ) -> Result<Option<(Position, Halt)>, TravelError> {
        let Some((own, others)) = intervals.split_first() else { return Ok(None) };
        self.enlist(others.len())?;
        let mut scouts = std::mem::take(&mut self.scouts.ready);
        // Theirs are at places that would be forgotten or moved otherwise.
        self.takes = others.is_empty();
        let found = scope(|scope| {
            let looks: Vec<_> = scouts
                .iter_mut()
                .zip(others)
                .map(|(scout, interval)| {
                    scout.entries = self.entries.clone();
                    let mut watched = watched.clone();
                    scope.spawn(move || scout.last_in(*interval, stops, &mut watched))
                })
                .collect();
            let mut found = vec![self.last_in(*own, stops, watched)];
            // Those for whom there is no scout.
            let left = others.iter().skip(looks.len());
            found.extend(
                looks.into_iter().map(|look| look.join().unwrap_or_else(|it| resume_unwind(it))),
            );
            found.extend(left.map(|interval| self.last_in(*interval, stops, watched)));
            found
        });
        self.scouts.ready = scouts;
        self.takes = true;
        for found in found {
            if let Some(found) = found? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Has `count` scouts ready, if there can be so many.
    fn enlist(&mut self, count: usize) -> Result<(), TravelError> {
        while self.scouts.ready.len() < count {
            let Some(engine) = self.scouts.engines.as_ref().and_then(|make| make()) else {
                self.scouts.engines = None;
                return Ok(());
            };
            let scout = self.scout(engine)?;
            self.scouts.ready.push(scout);
        }
        Ok(())
    }
}
