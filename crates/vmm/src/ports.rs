//! The machine's outside: its output goes to consoles, networks and disks of the host.

use std::collections::BTreeSet;

use disk::{BeforeImages, DiskHandle, DiskIo, Moment, Overlay, Switched};
use host::console::ConsoleWriter;
use host::net::{NetBackend, NetCounters};
use journal::{DiskCompletion, DiskFailed, DiskRequest, Output};
use replay::{OutputDigest, Watched};

use crate::VmError;
use crate::inbox::PORTS;

/// Everything that output can go to.
#[derive(Default)]
pub(crate) struct Ports {
    /// Per console port, all that show it.
    pub consoles: [Vec<ConsoleWriter>; PORTS],
    /// Network cards.
    pub nets: Vec<Box<dyn NetBackend>>,
    /// Disks.
    pub disks: Vec<DiskPort>,
    /// What went out.
    pub counters: Counters,
    /// The digest of it, where a recording or replay compares it.
    pub digest: Option<OutputDigest>,
}

/// A disk's thread, and what it was asked for and the machine has not fetched.
pub(crate) struct DiskPort {
    io: DiskIo,
    in_flight: BTreeSet<u64>,
    /// Results of reads that a checkpoint brought along.
    brought: Vec<DiskCompletion>,
}

/// What went out of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub console_bytes: u64,
    pub frames: u64,
    pub disk_requests: u64,
}

impl DiskPort {
    pub fn new(io: DiskIo) -> DiskPort {
        DiskPort { io, in_flight: BTreeSet::new(), brought: Vec::new() }
    }

    /// From a checkpoint come results of reads, which are not to be done again.
    pub fn brings(&mut self, reads: impl Iterator<Item = DiskCompletion>) {
        self.brought.extend(reads);
    }

    /// A handle for other threads.
    pub fn handle(&self) -> DiskHandle {
        self.io.handle()
    }

    /// As [`DiskIo::switch`].
    pub fn switch(&self, overlay: Overlay, reads: Vec<u64>) -> Switched {
        self.io.switch(overlay, reads)
    }

    /// As [`DiskIo::preserve`].
    pub fn preserve(&self, before: BeforeImages, reads: Vec<u64>) -> Moment {
        self.io.preserve(before, reads)
    }

    /// Does a request of before the checkpoint again.
    pub fn redo(&mut self, request: DiskRequest) {
        self.in_flight.insert(request.id);
        self.io.submit(request);
    }
}

impl Ports {
    /// Forgets requests of a machine that was reset: they are carried out, nobody fetches them.
    pub fn forget_requests(&mut self) {
        for disk in &mut self.disks {
            disk.brought.clear();
            for id in std::mem::take(&mut disk.in_flight) {
                drop(disk.io.wait(id));
            }
        }
    }

    /// The digest of what went out; 0 where nobody compares it.
    pub fn digest(&self) -> u64 {
        self.digest.as_ref().map_or(0, OutputDigest::value)
    }

    /// What became of the frames so far, all cards together.
    pub fn net_counters(&self) -> NetCounters {
        self.nets.iter().fold(NetCounters::default(), |sum, net| {
            let more = net.counters();
            NetCounters { sent: sum.sent + more.sent, dropped: sum.dropped + more.dropped }
        })
    }

    /// Disk requests the host failed to do.
    pub fn disk_failures(&self) -> u64 {
        self.disks.iter().map(|disk| disk.io.failures().0).sum()
    }

    /// Finishes and flushes every disk, and closes it.
    ///
    /// # Errors
    /// The first flush that failed; the others are closed too.
    pub fn close_disks(&mut self) -> Result<(), VmError> {
        let closed: Vec<_> = self.disks.drain(..).map(|disk| disk.io.shutdown()).collect();
        closed.into_iter().try_for_each(|disk| disk.map(drop)).map_err(VmError::DiskFlush)
    }
}

impl Watched for Ports {
    fn digest(&self) -> u64 {
        Ports::digest(self)
    }
}

impl machine::Outside for Ports {
    fn output(&mut self, output: Output) {
        if let Some(digest) = &mut self.digest {
            digest.add(&output);
        }
        match output {
            Output::Console { port, bytes } => {
                self.counters.console_bytes += bytes.len() as u64;
                for writer in self.consoles.get(port as usize).into_iter().flatten() {
                    writer.write(&bytes);
                }
            }
            Output::NetTransmit { nic, frame } => {
                self.counters.frames += 1;
                if let Some(net) = self.nets.get_mut(nic as usize) {
                    net.transmit(&frame);
                }
            }
            Output::Disk { disk, request } => {
                self.counters.disk_requests += 1;
                if let Some(disk) = self.disks.get_mut(disk as usize) {
                    disk.in_flight.insert(request.id);
                    disk.io.submit(request);
                }
            }
        }
    }

    fn outputs_complete(&mut self) {
        self.nets.iter_mut().for_each(|net| net.flush());
    }

    fn disk_wait(&mut self, disk: u32, id: u64) -> DiskCompletion {
        let Some(disk) = self.disks.get_mut(disk as usize) else {
            return DiskCompletion { id, result: Err(DiskFailed) };
        };
        if let Some(at) = disk.brought.iter().position(|read| read.id == id) {
            return disk.brought.swap_remove(at);
        }
        disk.in_flight.remove(&id);
        disk.io.wait(id)
    }
}
