//! The flight recorder: checkpoints and pieces of a log of the last while, the older ones
//! forgotten, so that what led to something can be kept after it has happened.
//!
//! ```text
//!   lap 7              lap 8              lap 9
//!   checkpoint 7 ----- checkpoint 8 ----- checkpoint 9 -----
//!   log 7 ............ log 8 ............ log 9 ............
//!   before 7 ......... before 8 ......... before 9 .........   what disks had, as they change
//! ```
//!
//! A recording of what is kept begins with the oldest checkpoint; its log is all pieces; its disks
//! are those of now, with what they had before laid over them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk::BeforeImages;

use super::lap::LapPlan;
use super::{KeepError, state_dir};
use crate::recording::{LogFile, Note};
use crate::{FlightSpec, RecordingError, VmError};

/// Laps in the time that is to be kept.
const LAPS: u32 = 8;
/// Shortest lap.
const LAP_MIN: Duration = Duration::from_millis(250);

/// A flight recorder's laps. Dropping it removes its folder.
#[derive(Debug)]
pub(crate) struct Flight {
    dir: PathBuf,
    spec: FlightSpec,
    next: u32,
    laps: VecDeque<Lap>,
}

/// What was kept since one moment.
#[derive(Clone, Debug)]
pub(crate) struct Lap {
    /// The checkpoint it begins with; `None` if that could not be saved.
    pub checkpoint: Option<PathBuf>,
    /// Its piece of the log.
    pub log: PathBuf,
    pub note: Note,
    /// By disk; none for those that are read-only.
    pub before: Vec<(usize, BeforeImages)>,
    pub began: Instant,
}

impl Flight {
    /// A flight recorder in a new folder for the VM of this name.
    pub fn new(spec: FlightSpec, name: &str) -> Result<Flight, VmError> {
        let dir = state_dir()?.join("flight").join(format!("{name}-{}", std::process::id()));
        let failed = |source| VmError::Registry { action: "make", path: dir.clone(), source };
        // What a process of this number left is nobody's.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(failed)?;
        Ok(Flight { dir, spec, next: 0, laps: VecDeque::new() })
    }

    /// How long a lap is to be.
    pub fn lap_time(spec: &FlightSpec) -> Duration {
        (spec.window / LAPS).max(LAP_MIN)
    }

    /// The next lap, to be begun by whoever gets the plan; `disks` are those that can be written.
    pub fn plan(&mut self, disks: &[usize]) -> Result<LapPlan, KeepError> {
        let number = self.next;
        self.next += 1;
        let log = self.dir.join(format!("events-{number}.log"));
        let file = LogFile::create(&log).map_err(RecordingError::file("make", &log))?;
        let before = disks.iter().map(|&index| Ok((index, BeforeImages::new(&self.dir)?)));
        let before = before.collect::<Result<_, disk::DiskError>>()?;
        let checkpoint = self.dir.join(format!("checkpoint-{number}"));
        Ok(LapPlan { checkpoint, log, file: Some(file), before })
    }

    /// A lap has begun.
    pub fn begin(&mut self, lap: Lap) {
        self.laps.push_back(lap);
    }

    /// Forgets laps that are too old, or too much; never the last.
    pub fn forget(&mut self) {
        while let Some(next) = self.laps.get(1) {
            let old = next.began.elapsed() >= self.spec.window;
            if !old && self.size() <= self.spec.size_max {
                return;
            }
            self.laps.pop_front().inspect(Lap::remove);
        }
    }

    /// Bytes of everything that is kept.
    pub fn size(&self) -> u64 {
        self.laps.iter().map(Lap::size).sum()
    }

    /// Whether it is more than it may be.
    pub fn is_full(&self) -> bool {
        self.size() > self.spec.size_max
    }

    /// The laps from the first one that a recording can begin with.
    pub fn laps(&self) -> Vec<Lap> {
        self.laps.iter().skip_while(|lap| lap.checkpoint.is_none()).cloned().collect()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Lap {
    fn remove(&self) {
        if let Some(checkpoint) = &self.checkpoint {
            let _ = std::fs::remove_dir_all(checkpoint);
        }
        let _ = std::fs::remove_file(&self.log);
    }

    fn size(&self) -> u64 {
        let checkpoint = self.checkpoint.as_deref().map_or(0, folder_size);
        let before: u64 = self.before.iter().map(|(_, before)| before.size()).sum();
        checkpoint + file_size(&self.log) + before
    }
}

fn folder_size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| file_size(&entry.path())).sum()
}

/// Bytes that a file takes, holes left out.
fn file_size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lap(dir: &Path, number: u32, age: Duration, bytes: usize) -> Lap {
        let log = dir.join(format!("l{number}"));
        std::fs::write(&log, vec![1; bytes]).unwrap();
        let note = Note { number, entry: 0, digest: [0; 5] };
        let began = Instant::now().checked_sub(age).unwrap();
        Lap { checkpoint: Some(dir.join("none")), log, note, before: Vec::new(), began }
    }

    #[test]
    fn old_laps_and_those_that_are_too_much_are_forgotten_but_never_the_last() {
        let dir = std::env::temp_dir().join(format!("doppel-flight-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let second = Duration::from_secs(1);
        let spec = FlightSpec { window: 10 * second, size_max: 100_000 };
        let mut flight = Flight { dir: dir.clone(), spec, next: 0, laps: VecDeque::new() };
        for (number, age) in [(0, 30), (1, 15), (2, 12), (3, 5)] {
            flight.laps.push_back(lap(&dir, number, age * second, 1));
        }
        flight.begin(lap(&dir, 4, Duration::ZERO, 1));
        flight.forget();
        // The oldest one covers the beginning of the last ten seconds.
        let numbers = |flight: &Flight| -> Vec<u32> {
            flight.laps.iter().map(|lap| lap.note.number).collect()
        };
        assert_eq!(numbers(&flight), [2, 3, 4]);
        assert!(!dir.join("l1").exists() && dir.join("l2").exists());
        flight.begin(lap(&dir, 5, Duration::ZERO, 60_000));
        flight.forget();
        assert_eq!(numbers(&flight), [2, 3, 4, 5]);
        flight.begin(lap(&dir, 6, Duration::ZERO, 60_000));
        flight.forget();
        assert_eq!(numbers(&flight), [6]);
        drop(flight);
        assert!(!dir.exists());
    }
}
