//! Checkpoints that were kept along the recording: how its middle is entered without running
//! there.

use disk::BlockBackend;
use journal::{DiskCompletion, DiskRequest};
use machine::Machine;
use replay::OutputDigest;
use types::VirtualTime;

use crate::travel::{Position, Travel, TravelError};

/// A checkpoint that was kept while the machine was recorded.
pub struct Far {
    /// Where it is.
    pub at: Position,
    /// Guest time there.
    pub time: VirtualTime,
    /// Number of the log entry that comes next.
    pub entry: u64,
    /// Opens it; in words why it cannot be.
    pub open: Box<dyn FnMut() -> Result<Arrival, String> + Send>,
}

/// A machine at a checkpoint, and what is around it there.
pub struct Arrival {
    /// The machine.
    pub machine: Machine,
    /// Disk requests to be done again.
    pub requests: Vec<(u32, DiskRequest)>,
    /// Results of disk reads that were in flight.
    pub reads: Vec<(u32, DiskCompletion)>,
    /// The digest of what had left it.
    pub digest: OutputDigest,
    /// Its disks as they were.
    pub disks: Vec<Box<dyn BlockBackend>>,
}

impl Travel {
    /// From now on these checkpoints are gone to where they are nearer than what is in memory.
    pub fn know(&mut self, mut far: Vec<Far>) {
        let entries = self.entries().len() as u64;
        far.retain(|far| far.entry <= entries);
        far.sort_by_key(|far| far.at);
        self.far = far;
    }

    /// Has the last checkpoint at `target` or before in memory, if one was kept that is nearer to
    /// it than what is there. One that cannot be opened is told of once, and not needed.
    pub(crate) fn bring_near(&mut self, target: Position) -> Result<(), TravelError> {
        let here = self.position();
        loop {
            let nearest = self.history().before(target);
            let nearest = if here <= target { nearest.max(here) } else { nearest };
            let last = self.far.iter().rposition(|far| far.at <= target && far.at > nearest);
            let Some(last) = last else { return Ok(()) };
            let mut far = self.far.remove(last);
            match (far.open)() {
                Ok(arrival) => return self.arrive(&far, arrival),
                Err(why) => tracing::warn!("{why}; the replay begins before it"),
            }
        }
    }

    /// The last checkpoint kept before guest time `time`, or none.
    pub(crate) fn far_before(&self, time: VirtualTime) -> Option<Position> {
        self.far.iter().rfind(|far| far.time < time).map(|far| far.at)
    }

    /// The same before entry `number`.
    pub(crate) fn far_before_entry(&self, number: u64) -> Option<Position> {
        self.far.iter().rfind(|far| far.entry <= number).map(|far| far.at)
    }

    fn arrive(&mut self, far: &Far, arrival: Arrival) -> Result<(), TravelError> {
        let before = self.history().before(far.at);
        self.go_to_checkpoint(before)?;
        let (mut now, mut then) = ([0; 4096], [0; 4096]);
        for page in 0..self.machine.pages() {
            self.machine.page(page, &mut now);
            arrival.machine.page(page, &mut then);
            if now != then {
                self.machine.put_page(page, &then);
            }
        }
        self.machine.restore(arrival.machine.save())?;
        self.sandbox.arrive(arrival);
        if self.position() != far.at {
            return Err(TravelError::NoSuchPoint);
        }
        self.change_history(|history, stand, machine, sandbox| {
            history.take_jumped(stand, machine, sandbox, far.entry);
        });
        self.go_to_checkpoint(far.at)
    }
}
