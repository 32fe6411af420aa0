//! Who takes checkpoints along a recording, again and again, ever more rarely.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::KeepError;
use super::flight::Flight;
use super::keeper::{Job, Keeper};
use super::status::Phase;
use crate::{FlightSpec, VmError};

/// After so many checkpoints each interval is twice as long...
const FIRST: u32 = 64;
/// ...and again after so many more.
const MORE: u32 = 32;
/// Most checkpoints of a recording: each is a layer of its disks.
const COUNT_MAX: u32 = 200;
/// How often a checkpoint in the making is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Takes checkpoints until it is dropped.
#[derive(Debug)]
pub(crate) struct Cadence {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Cadence {
    /// Takes one `every` so often, from the first interval's end on.
    pub fn start(keeper: &Arc<Keeper>, every: Duration) -> Result<Cadence, VmError> {
        let (stop, stopped) = channel();
        let keeper = Arc::downgrade(keeper);
        let thread = std::thread::Builder::new()
            .name("cadence".into())
            .spawn(move || run(&keeper, every, &stopped))
            .map_err(|source| VmError::Thread { what: "cadence", source })?;
        Ok(Cadence { stop: Some(stop), thread: Some(thread) })
    }
}

impl Cadence {
    /// Begins the laps of a flight recorder: at once, then as often as it wants, and sooner where
    /// it keeps too much.
    pub fn flight(keeper: &Arc<Keeper>, spec: &FlightSpec) -> Result<Cadence, VmError> {
        let (stop, stopped) = channel();
        let (keeper, time) = (Arc::downgrade(keeper), Flight::lap_time(spec));
        let thread = std::thread::Builder::new()
            .name("flight".into())
            .spawn(move || fly(&keeper, time, &stopped))
            .map_err(|source| VmError::Thread { what: "flight", source })?;
        Ok(Cadence { stop: Some(stop), thread: Some(thread) })
    }
}

/// Looks, in a lap, whether the flight recorder keeps too much: so many times.
const LOOKS: u32 = 8;

fn fly(keeper: &Weak<Keeper>, time: Duration, stopped: &Receiver<()>) {
    let wait = |time| stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    loop {
        let Some(keeper) = keeper.upgrade() else { return };
        match keeper.next_lap() {
            Ok(job) => {
                while !job.told().phase.is_over() && wait(LOOK) {}
                tell(&job);
            }
            Err(KeepError::Busy) => {
                if wait(LOOK) {
                    continue;
                }
            }
            Err(KeepError::Ended) => return,
            Err(error) => tracing::warn!("no lap of the flight recorder: {error}"),
        }
        for _ in 0..LOOKS {
            if !wait(time / LOOKS) {
                return;
            }
            if keeper.flight_is_full() {
                break;
            }
        }
    }
}

impl Drop for Cadence {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It may be the last to hold the keeper that holds this.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// How many times `every` there is from checkpoint number `count` to the next.
fn stretch(count: u32) -> u32 {
    if count < FIRST { 1 } else { 2 << ((count - FIRST) / MORE) }
}

fn run(keeper: &Weak<Keeper>, every: Duration, stopped: &Receiver<()>) {
    let wait = |time| stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    let mut interval = every;
    while wait(interval) {
        let Some(keeper) = keeper.upgrade() else { return };
        // Before a recording has begun, and after, there is nothing to do.
        let Some(count) = keeper.along_count().filter(|count| *count < COUNT_MAX) else { continue };
        interval = every * stretch(count + 1);
        match keeper.checkpoint_along() {
            Ok(job) => {
                while !job.told().phase.is_over() && wait(LOOK) {}
                tell(&job);
            }
            Err(KeepError::Busy) => interval = every.min(Duration::from_secs(1)),
            Err(KeepError::Ended | KeepError::NotRecorded) => {}
            Err(error) => tracing::warn!("no checkpoint along the recording: {error}"),
        }
    }
}

/// Of the recording's end, and the VM's, others tell.
fn tell(job: &Job) {
    let told = job.told();
    let ended = KeepError::Ended.to_string();
    if let (Phase::Failed, Some(error)) = (told.phase, &told.error)
        && *error != ended
    {
        tracing::warn!("no checkpoint for the recording: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_become_rarer_and_their_number_is_bounded() {
        assert_eq!([1, 63, 64, 95, 96, 128].map(stretch), [1, 1, 2, 2, 4, 8]);
        let intervals: u64 = (0..COUNT_MAX).map(|count| u64::from(stretch(count))).sum();
        // Every ten seconds at first, they last for more than two and a half hours.
        assert!(intervals * 10 > 9000, "{intervals}");
    }
}
