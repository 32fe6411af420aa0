//! Running a recorded machine again, from its beginning to a place in the recording, and from there
//! live if that is wanted.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use devices::PowerEvent;
use host::console::ConsoleSpec;
use machine::{Machine, Stop};
use replay::{OutputDigest, Progress, ReplayError, Replayer, Target};
use types::{ExecutionPoint, VirtualTime};

use super::RecordingError;
use super::opened::Opened;
use crate::ports::Ports;
use crate::{End, EngineKind, NetSpec, VmError, VmInfo, process};

/// Branches replayed between two looks at what is asked for from outside.
const STRETCH_BRANCHES: u64 = 4_000_000;

/// A place in a recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Its end.
    #[default]
    End,
    /// A branch count.
    Branches(u64),
    /// A guest time.
    Time(VirtualTime),
    /// Before the event of this number.
    Event(u64),
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// At the recording's beginning.
    #[default]
    Beginning,
    /// At the checkpoint of this number along it; 0 is the beginning.
    Checkpoint(u32),
    /// At the last checkpoint before the place that it goes to.
    Nearest,
}

/// What is to be replayed, and how.
#[derive(Clone, Debug)]
pub struct ReplaySpec {
    /// The recording's folder.
    pub dir: PathBuf,
    /// Where to begin.
    pub from: From,
    /// Where to stop, or to go live.
    pub to: Place,
    /// What executes the guest's instructions.
    pub engine: EngineKind,
    /// Replay even what a release with other semantics recorded.
    pub other_semantics: bool,
    /// Whether to go on as a running VM from there.
    pub go_live: bool,
    /// Network cards' cables once it is live.
    pub nets: Vec<NetSpec>,
    /// Name among the running VMs.
    pub name: Option<String>,
    /// Where the first serial port leads.
    pub console: ConsoleSpec,
}

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Where it stopped.
    pub point: ExecutionPoint,
    /// Guest time there.
    pub time: VirtualTime,
    /// Events before it.
    pub events: u64,
    /// Checks that were made, all equal.
    pub checks: u64,
    /// Whether it came to the recording's end, and the recording ended in good order.
    pub at_end: Option<bool>,
}

/// The source of a machine's inputs in a replay.
pub(crate) struct LogFeed {
    replayer: Replayer,
    /// Of what left the machine before.
    digest: OutputDigest,
    target: Target,
    place: Place,
    live: bool,
    /// The log's end was reached.
    ended: bool,
    report: Arc<Mutex<ReplayReport>>,
}

/// What a stretch of replay came to.
pub(crate) enum Stretch {
    /// Replay on.
    On,
    /// The machine changed its power state.
    Power(PowerEvent),
    /// It is where it was to be brought.
    There,
    /// The recorded machine ended so.
    End(End),
}

impl Place {
    fn target(self) -> Target {
        match self {
            Place::End => Target::END,
            Place::Branches(branches) => Target { branches, ..Target::END },
            Place::Time(time) => Target { time, ..Target::END },
            Place::Event(entry) => Target { entry, ..Target::END },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::End => write!(f, "its end"),
            Place::Branches(branches) => write!(f, "branch {branches}"),
            Place::Time(time) => write!(f, "{time} of guest time"),
            Place::Event(number) => write!(f, "event {number}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let number = |text: &str| text.replace('_', "").parse::<u64>().ok();
        let place = if text == "end" {
            Some(Place::End)
        } else if let Some(event) = text.strip_prefix('#') {
            number(event).map(Place::Event)
        } else if let Some(seconds) = text.strip_suffix('s') {
            parse_seconds(seconds).map(Place::Time)
        } else {
            number(text).map(Place::Branches)
        };
        place.ok_or_else(|| {
            "write a branch count, a guest time as 12.5s, an event as #17, or end".into()
        })
    }
}

/// Seconds with at most nine decimals.
fn parse_seconds(text: &str) -> Option<VirtualTime> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 9 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u64 = format!("{decimals:0<9}").parse().ok()?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
    Some(VirtualTime(whole.checked_add(nanoseconds)?))
}

/// Replays a recording on this process; `on_ready` as in [`crate::run`]. A replay that went live
/// ends as a VM does.
///
/// # Errors
/// [`VmError::Recording`] when it cannot be replayed or does not come to the same.
pub fn replay(
    spec: &ReplaySpec,
    on_ready: impl FnOnce(&VmInfo) -> Result<(), VmError>,
) -> Result<(End, ReplayReport), VmError> {
    let recording =
        if spec.other_semantics { Opened::open_any(&spec.dir)? } else { Opened::open(&spec.dir)? };
    let vm = recording.vm_spec(spec)?;
    let (origin, replayer) = recording.origin(spec.from, spec.to)?;
    let disks = match spec.go_live {
        true => recording.live_disks(&origin)?,
        false => recording.scratch_disks(&origin)?,
    };
    let prepared = recording.prepare(&origin, spec.engine, &vm, disks)?;
    let report = Arc::new(Mutex::new(ReplayReport::default()));
    let feed = LogFeed {
        replayer,
        digest: origin.digest(&recording),
        target: spec.to.target(),
        place: spec.to,
        live: spec.go_live,
        ended: false,
        report: Arc::clone(&report),
    };
    let end = process::replay(&vm, prepared, feed, on_ready)?;
    let report = *report.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((end, report))
}

impl LogFeed {
    /// The digest of what left the machine before the replay's beginning.
    pub fn digest(&self) -> OutputDigest {
        self.digest.clone()
    }

    /// Whether the machine is to run on when it is there.
    pub fn goes_live(&self) -> bool {
        self.live
    }

    /// Replays for a while, not beyond branch count `until`.
    pub fn replay(
        &mut self,
        machine: &mut Machine,
        engine: &mut dyn cpu::Engine,
        ports: &mut Ports,
        until: u64,
    ) -> Result<Stretch, RecordingError> {
        let before = (machine.point(), self.replayer.number());
        let pause = machine.branches().saturating_add(STRETCH_BRANCHES).min(until);
        let target = Target { branches: self.target.branches.min(pause), ..self.target };
        let progress = self.replayer.run(machine, engine, ports, target);
        self.tell(machine, None);
        match progress? {
            Progress::Reached if machine.branches() >= self.target.branches => Ok(Stretch::There),
            Progress::Reached if before == (machine.point(), self.replayer.number()) => {
                Ok(Stretch::There)
            }
            Progress::Reached | Progress::Breakpoint | Progress::Touched(_) => Ok(Stretch::On),
            Progress::Power(event) => Ok(Stretch::Power(event)),
            Progress::Shutdown => {
                self.finish(machine, engine, ports)?;
                Ok(Stretch::End(End::TripleFault))
            }
            Progress::End { orderly } => {
                self.tell(machine, Some(orderly));
                self.ended = true;
                if self.place != Place::End {
                    return Err(RecordingError::Beyond(self.place.to_string()));
                }
                // How the recorded machine ended shows when it is asked to go on.
                let here = machine.branches();
                match machine.run(engine, ports, here) {
                    Stop::Power(event) => Ok(Stretch::Power(event)),
                    Stop::Shutdown => Ok(Stretch::End(End::TripleFault)),
                    _ => Ok(Stretch::There),
                }
            }
        }
    }

    /// Compares what is left of the log when the machine has ended.
    pub fn finish(
        &mut self,
        machine: &mut Machine,
        engine: &mut dyn cpu::Engine,
        ports: &mut Ports,
    ) -> Result<(), ReplayError> {
        if self.ended {
            return Ok(());
        }
        let progress = self.replayer.finish(machine, engine, ports)?;
        let Progress::End { orderly } = progress else { return Ok(()) };
        self.tell(machine, Some(orderly));
        Ok(())
    }

    fn tell(&self, machine: &Machine, at_end: Option<bool>) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = ReplayReport {
            point: machine.point(),
            time: machine.now(),
            events: self.replayer.number(),
            checks: self.replayer.checked(),
            at_end,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_people_write_them() {
        for (text, place) in [
            ("end", Place::End),
            ("1_000_000", Place::Branches(1_000_000)),
            ("12.5s", Place::Time(VirtualTime(12_500_000_000))),
            ("3s", Place::Time(VirtualTime(3_000_000_000))),
            ("#17", Place::Event(17)),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        for text in ["", "x", "-1", "#", "s", "1.0000000001s", "1.-1s", "99999999999999s"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
