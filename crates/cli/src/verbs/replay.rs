//! `doppel replay`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vmm::{ConsoleSpec, End, EngineKind, From, NetSpec, Place, ReplayReport, ReplaySpec};

use crate::fail::Fail;
use crate::values;

/// Run a recorded machine again, to its end or to a place in it.
///
/// What the guest prints appears again; nothing leaves for a network. Disks are read where they
/// were, checked to be what they were, and not written to. Every check in the recording is made:
/// a machine that does not come to the same is reported with the first point that differs, and
/// exit status 16.
///
/// Examples:
///   doppel replay DIR
///   doppel replay DIR --to 12.5s --go-live --net user
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Replay {
    /// Folder of the recording.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Begin at the checkpoint of this number, 0 being the recording's beginning; by default at the
    /// last one before --to.
    #[arg(long, value_name = "NUMBER")]
    from_checkpoint: Option<u32>,
    /// Where to stop: a branch count, a guest time as 12.5s, before an event as #17, or end.
    #[arg(long, value_name = "PLACE", default_value = "end")]
    to: Place,
    /// Say at the end how far it came and what was compared.
    #[arg(long)]
    verify: bool,
    /// Leave the recording there: from then on it is a VM like any other. Its disks are overlays
    /// in a new folder live-N of the recording.
    #[arg(long)]
    go_live: bool,
    /// With --go-live, what its network cards are plugged into: as for run. Those that are not
    /// plugged in lose their link.
    #[arg(long, value_name = "SPEC", value_parser = values::net, requires = "go_live")]
    net: Vec<NetSpec>,
    /// What executes the guest: translate or interp. The recording fits either.
    #[arg(long, value_name = "ENGINE", default_value = "translate", value_parser = values::engine)]
    engine: EngineKind,
    /// Go on even if a release whose machine does something else made the recording.
    #[arg(long)]
    other_semantics: bool,
    /// Name among the running VMs; vm-PID if none is given.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    name: Option<String>,
    /// Where the first serial port leads: stdio, pty, file=FILE, unix=SOCKET or none.
    #[arg(long, value_name = "SPEC", default_value = "stdio")]
    console: ConsoleSpec,
}

impl Replay {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let spec = ReplaySpec {
            dir: self.dir.clone(),
            from: match (self.from_checkpoint, self.to) {
                (Some(number), _) => From::Checkpoint(number),
                (None, Place::End) => From::Beginning,
                (None, _) => From::Nearest,
            },
            to: self.to,
            engine: self.engine,
            other_semantics: self.other_semantics,
            go_live: self.go_live,
            nets: self.net.clone(),
            name: self.name.clone(),
            console: self.console.clone(),
        };
        let (end, report) = vmm::replay(&spec, super::run::say_ready)?;
        if self.verify && !self.go_live {
            eprintln!("doppel: {}", describe(end, &report));
        }
        if report.at_end == Some(false) {
            eprintln!("doppel: the recording ends there without an end mark: it was cut off");
        }
        Ok(end.status())
    }
}

/// How far a replay came, in one line.
pub(super) fn describe(end: End, report: &ReplayReport) -> String {
    let ReplayReport { point, time, events, checks, .. } = report;
    let why = match end {
        End::StopPoint => String::new(),
        end => format!(" ({})", end.reason()),
    };
    format!(
        "replayed to {point}, {time} of guest time{why}; {events} events, {checks} checks equal"
    )
}
