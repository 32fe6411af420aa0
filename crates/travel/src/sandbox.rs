//! The outside of a machine that travels in time: disks whose past comes back, nothing else.

use std::collections::BTreeMap;

use disk::{BlockBackend, DiskError, ScratchDisk, ScratchMoment};
use journal::{DiskCompletion, DiskFailed, DiskOperation, DiskRequest, Output};
use machine::Outside;
use replay::{OutputDigest, Watched};

use crate::far::Arrival;

/// Bytes of the first serial port that are kept.
const CONSOLE_MAX: usize = 64 << 10;

/// Disks and the digest of what left the machine; everything in it can go back.
pub struct Sandbox {
    disks: Vec<ScratchDisk>,
    state: State,
    /// What left the machine, where somebody wants to know.
    traced: Option<Vec<Output>>,
}

#[derive(Clone, Default)]
struct State {
    digest: OutputDigest,
    /// Completions that the machine has not fetched.
    done: BTreeMap<(u32, u64), DiskCompletion>,
    /// The last bytes of the first serial port.
    console: Vec<u8>,
}

/// A [`Sandbox`] at one moment.
#[derive(Clone)]
pub(crate) struct Moment {
    disks: Vec<ScratchMoment>,
    state: State,
}

impl Sandbox {
    /// A sandbox with these disks.
    pub fn new(disks: Vec<ScratchDisk>) -> Sandbox {
        Sandbox { disks, state: State::default(), traced: None }
    }

    /// Another outside, with disks of its own that are what these are now.
    pub(crate) fn fork(&self) -> Sandbox {
        let disks = self.disks.iter().map(ScratchDisk::fork).collect();
        Sandbox { disks, state: self.state.clone(), traced: None }
    }

    /// What a machine from a checkpoint waits for: requests to be done again, results of reads.
    pub fn resume(&mut self, requests: Vec<(u32, DiskRequest)>, reads: Vec<(u32, DiskCompletion)>) {
        self.state.done = reads.into_iter().map(|(disk, read)| ((disk, read.id), read)).collect();
        for (disk, request) in requests {
            let id = request.id;
            let completion = self.carry_out(disk, request);
            self.state.done.insert((disk, id), completion);
        }
    }

    /// Becomes what it was at a checkpoint that others kept.
    pub(crate) fn arrive(&mut self, arrival: Arrival) {
        let Arrival { machine: _, requests, reads, digest, disks } = arrival;
        for (disk, base) in self.disks.iter().zip(disks) {
            disk.put_over(base);
        }
        // What was printed before is not known there.
        self.state = State { digest, ..State::default() };
        self.resume(requests, reads);
    }

    /// The last bytes that the first serial port printed.
    pub fn console(&self) -> &[u8] {
        &self.state.console
    }

    pub(crate) fn trace(&mut self, tracing: bool) {
        self.traced = tracing.then(Vec::new);
    }

    pub(crate) fn take_traced(&mut self) -> Vec<Output> {
        self.traced.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn moment(&self) -> Moment {
        let disks = self.disks.iter().map(ScratchDisk::moment).collect();
        Moment { disks, state: self.state.clone() }
    }

    pub(crate) fn go_to(&mut self, moment: &Moment) {
        for (disk, then) in self.disks.iter().zip(&moment.disks) {
            disk.go_to(then);
        }
        self.state = moment.state.clone();
    }

    fn carry_out(&mut self, disk: u32, request: DiskRequest) -> DiskCompletion {
        let id = request.id;
        let result = match self.disks.get_mut(disk as usize) {
            Some(disk) => operate(disk, request.operation).map_err(|_| DiskFailed),
            None => Err(DiskFailed),
        };
        DiskCompletion { id, result }
    }
}

fn operate(disk: &mut ScratchDisk, operation: DiskOperation) -> Result<Vec<u8>, DiskError> {
    match operation {
        DiskOperation::Read { offset, len } => {
            let mut bytes = vec![0; len as usize];
            disk.read_at(offset, &mut bytes)?;
            return Ok(bytes);
        }
        DiskOperation::Write { offset, data } => disk.write_at(offset, &data)?,
        DiskOperation::Flush => disk.flush()?,
        DiskOperation::Discard { offset, len } => disk.discard(offset, len)?,
        DiskOperation::WriteZeroes { offset, len } => disk.write_zeroes(offset, len)?,
    }
    Ok(Vec::new())
}

impl Outside for Sandbox {
    fn output(&mut self, output: Output) {
        self.state.digest.add(&output);
        if let Some(traced) = &mut self.traced {
            traced.push(output.clone());
        }
        match output {
            Output::Console { port: 0, bytes } => {
                let console = &mut self.state.console;
                console.extend(bytes);
                let surplus = console.len().saturating_sub(CONSOLE_MAX);
                console.drain(..surplus);
            }
            Output::Disk { disk, request } => {
                let id = request.id;
                let completion = self.carry_out(disk, request);
                self.state.done.insert((disk, id), completion);
            }
            Output::Console { .. } | Output::NetTransmit { .. } => {}
        }
    }

    fn disk_wait(&mut self, disk: u32, id: u64) -> DiskCompletion {
        let done = self.state.done.remove(&(disk, id));
        done.unwrap_or(DiskCompletion { id, result: Err(DiskFailed) })
    }
}

impl Watched for Sandbox {
    fn digest(&self) -> u64 {
        self.state.digest.value()
    }
}
