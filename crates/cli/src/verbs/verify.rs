//! `doppel verify`.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueHint};
use vmm::{ConsoleSpec, EngineKind, ExitStatus, From, Place, ReplaySpec};

use super::{print, print_json};
use crate::fail::Fail;
use crate::values;

/// Replay a recording and compare everything in it that can be compared.
///
/// Exit status 0: the machine came to the same in every check; 16: it did not.
#[derive(Args, Debug)]
pub struct Verify {
    /// Folder of the recording.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Begin at the checkpoint of this number along the recording; 0 is its beginning.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    from_checkpoint: u32,
    /// What executes the guest: translate or interp.
    #[arg(long, value_name = "ENGINE", default_value = "translate", value_parser = values::engine)]
    engine: EngineKind,
    /// Run both engines side by side, and tell the first instruction after which they are not the
    /// same; takes several times as long.
    #[arg(long, conflicts_with_all = ["from_checkpoint", "engine", "other_semantics", "json"])]
    compare_engines: bool,
    /// Go on even if a release whose machine does something else made the recording.
    #[arg(long)]
    other_semantics: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        if self.compare_engines {
            return self.compare();
        }
        let spec = ReplaySpec {
            dir: self.dir.clone(),
            from: From::Checkpoint(self.from_checkpoint),
            to: Place::End,
            engine: self.engine,
            other_semantics: self.other_semantics,
            go_live: false,
            nets: Vec::new(),
            name: None,
            console: ConsoleSpec::None,
        };
        let start = Instant::now();
        let (end, report) = vmm::replay(&spec, |_| Ok(()))?;
        let seconds = start.elapsed().as_secs_f64();
        if self.json {
            print_json(&serde_json::json!({
                "branches": report.point.branches,
                "virtual_time_ns": report.time.0,
                "events": report.events,
                "checks": report.checks,
                "orderly_end": report.at_end == Some(true),
                "end": end.reason(),
                "seconds": seconds,
            }))?;
        } else {
            let cut = if report.at_end == Some(true) { "" } else { "; it was cut off there" };
            print(&format!("{}{cut}; {seconds:.1} s\n", super::replay::describe(end, &report)))?;
        }
        Ok(0)
    }

    fn compare(&self) -> Result<u8, Fail> {
        let Some(difference) = vmm::compare_engines(&self.dir, &mut || ())? else {
            print("both engines are the same all the way\n")?;
            return Ok(0);
        };
        let at = difference.at;
        let (branches, rip, what) = (at.branches, at.rip, difference.what);
        print(&format!(
            "the engines differ after the instruction at branch {branches} rip {rip:#x}: {what}\n"
        ))?;
        Ok(ExitStatus::Divergence as u8)
    }
}
