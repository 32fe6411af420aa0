//! `doppel trace`.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

use clap::{Args, ValueHint};
use vmm::{EngineKind, Place, TraceSpec, TraceWhat};

use crate::fail::Fail;
use crate::values;

/// Make a full trace of something that a recording does not hold, by running it again.
///
/// A line is: branches, guest time in seconds, what happened. Branches: from where to where.
/// System calls: number, six arguments, where it returns to. Interrupts and exceptions: vector,
/// where the guest was, error code. Disk, net and console: requests, frames, what was typed and
/// printed; their point is that of the next look, a thousand branches later at most.
#[derive(Args, Debug)]
pub struct Trace {
    /// Folder of the recording.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// What to trace: branches, syscalls, interrupts, exceptions, disk, net or console.
    #[arg(long, value_name = "WHAT")]
    what: TraceWhat,
    /// Where to begin: a branch count, a guest time as 12.5s, or before an event as #17.
    #[arg(long, value_name = "PLACE", default_value = "#0")]
    from: Place,
    /// Where to end: likewise, or end.
    #[arg(long, value_name = "PLACE", default_value = "end")]
    to: Place,
    /// What executes the guest: translate or interp.
    #[arg(long, value_name = "ENGINE", default_value = "translate", value_parser = values::engine)]
    engine: EngineKind,
    /// A JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Trace {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let spec = TraceSpec {
            dir: self.dir.clone(),
            from: self.from,
            to: self.to,
            what: self.what,
            engine: self.engine,
        };
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut failure = None;
        vmm::trace(&spec, &mut |line| {
            let time_ns = line.time.0;
            let text = if self.json {
                let (branches, what) = (line.branches, &line.text);
                serde_json::json!({
                    "branches": branches, "virtual_time_ns": time_ns, "what": what,
                })
                .to_string()
            } else {
                format!("{:>14} {:>16.9} {}", line.branches, time_ns as f64 / 1e9, line.text)
            };
            failure = writeln!(out, "{text}").err();
            failure.is_none()
        })?;
        let failure = failure.or_else(|| out.flush().err());
        match failure.filter(|error| error.kind() != ErrorKind::BrokenPipe) {
            None => Ok(0),
            Some(source) => Err(Fail::Host { action: "write to standard output", source }),
        }
    }
}
