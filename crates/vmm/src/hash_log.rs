//! State hashes at exact branch counts, for comparing two runs.
//!
//! A line is `BRANCHES HASH`, the hash in 32 hexadecimal digits; the last line of a run starts
//! with `end `.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;

use machine::Machine;

use crate::{Checks, VmError};

/// Where a run is to be looked at.
#[derive(Debug)]
pub(crate) struct HashLog {
    every: Option<NonZeroU64>,
    /// Next multiple of `every`.
    next: u64,
    stop_at: u64,
    file: Option<(PathBuf, File)>,
}

impl HashLog {
    /// Opens the file, for a machine that stands at `branches`.
    pub fn open(checks: &Checks, branches: u64) -> Result<HashLog, VmError> {
        let open = |path: &PathBuf| {
            let file = File::create(path)
                .map_err(|source| VmError::HashLog { path: path.clone(), source })?;
            Ok::<_, VmError>((path.clone(), file))
        };
        let file = checks.hash_log.as_ref().map(open).transpose()?;
        Ok(HashLog {
            every: checks.hash_every,
            next: checks.hash_every.map_or(u64::MAX, |every| {
                (branches / every).saturating_add(1).saturating_mul(every.get())
            }),
            stop_at: checks.stop_at.unwrap_or(u64::MAX),
            file,
        })
    }

    /// The branch count at which to look next.
    pub fn until(&self) -> u64 {
        self.next.min(self.stop_at)
    }

    /// Looks if the machine is at such a point; true if it is to be stopped here.
    pub fn look(&mut self, machine: &mut Machine) -> Result<bool, VmError> {
        let branches = machine.branches();
        if branches == self.next {
            self.write("", machine)?;
            self.next = self.every.map_or(u64::MAX, |every| branches.saturating_add(every.get()));
        }
        Ok(branches >= self.stop_at)
    }

    /// The last line.
    pub fn finish(&mut self, machine: &mut Machine) -> Result<(), VmError> {
        self.write("end ", machine)
    }

    fn write(&mut self, prefix: &str, machine: &mut Machine) -> Result<(), VmError> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let line = format!("{prefix}{} {:032x}\n", machine.branches(), machine.state_hash());
        let failed = |source: io::Error| VmError::HashLog { path: path.clone(), source };
        file.write_all(line.as_bytes()).map_err(failed)
    }
}
