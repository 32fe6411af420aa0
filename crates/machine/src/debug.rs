//! What debuggers and time travel need of a machine: its pages, which of them were touched since
//! when, and bytes that are watched. None of it can be seen by the guest.

use std::collections::BTreeMap;

use cpu::Exit;
use memory::{AccessWatch, Epoch, RamError, RamOffset, Visited};
use types::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

use crate::machine::Machine;
use crate::run::Stop;

/// What of watched bytes is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// That they may have changed, by whoever.
    Changes,
    /// That an instruction loaded them.
    Loads,
    /// That an instruction loaded or stored them, whatever was there before.
    Accesses,
}

/// Watched bytes; those of [`WatchKind::Changes`] are marked as if they were code, so that the
/// engine stops after a write to them.
pub(crate) struct Watch {
    at: RamOffset,
    len: u64,
    kind: WatchKind,
    generation: u32,
}

impl Machine {
    /// Pages of RAM.
    pub fn pages(&self) -> u32 {
        (self.ram.size() >> PAGE_SHIFT) as u32
    }

    /// Copies a page of RAM.
    pub fn page(&self, page: u32, into: &mut [u8; PAGE_SIZE as usize]) {
        self.ram.load_bytes(RamOffset(u64::from(page) << PAGE_SHIFT), into);
    }

    /// Overwrites a page of RAM, for going back in time.
    pub fn put_page(&mut self, page: u32, bytes: &[u8; PAGE_SIZE as usize]) {
        self.ram.write_in_page(RamOffset(u64::from(page) << PAGE_SHIFT), bytes);
    }

    /// Opens an epoch of RAM: from here pages are written and executed for the first time again.
    pub fn begin_epoch(&mut self) -> Epoch {
        self.vcpu.tlb.flush();
        self.ram.begin_epoch()
    }

    /// Pages written in `epoch` or after.
    pub fn pages_written_since(&self, epoch: Epoch) -> impl Iterator<Item = u32> + '_ {
        self.ram.written_since(epoch).map(|page| page as u32)
    }

    /// From now on it is known which code is executed.
    ///
    /// # Errors
    /// [`RamError::Map`] if the host refuses memory for that.
    pub fn mark_visits(&mut self) -> Result<(), RamError> {
        self.ram.mark_visits()
    }

    /// Code that was executed since the last call, by the number of its linear page; an epoch
    /// begins before it is called again. Of an instruction that reaches into the next page no more
    /// may be known than its page.
    pub fn take_visited(&mut self) -> BTreeMap<u64, Visited> {
        self.ram.take_visited()
    }

    /// From now on [`Machine::run`] stops after an instruction that does what a range of RAM (first
    /// byte, length, within one page) is watched for; of changes, after one that writes in the 64
    /// bytes around it.
    pub fn set_watches(&mut self, ranges: &[(RamOffset, u64, WatchKind)]) {
        let watch = |&(at, len, kind): &_| Watch { at, len, kind, generation: 0 };
        self.watches = ranges.iter().map(watch).collect();
        let accesses = ranges.iter().map(|&(at, len, kind)| AccessWatch {
            at,
            len,
            loads: kind != WatchKind::Changes,
            stores: kind == WatchKind::Accesses,
        });
        self.ram.watch_accesses(accesses.collect());
        self.vcpu.tlb.flush();
        for index in 0..self.watches.len() {
            self.arm(index);
        }
    }

    fn arm(&mut self, index: usize) {
        let Watch { at, len, kind, .. } = self.watches[index];
        debug_assert!((at.0 & PAGE_MASK) + len <= PAGE_SIZE);
        if kind != WatchKind::Changes {
            return;
        }
        if self.ram.mark_code(at, len) {
            self.vcpu.tlb.revoke_write(at.page());
        }
        self.watches[index].generation = self.ram.code_generation(at.page());
    }

    /// Whether a debugger wants the machine to stop here.
    pub(crate) fn debugger_stop(&mut self, exit: Exit) -> Option<Stop> {
        if exit == Exit::Breakpoint {
            return Some(Stop::Breakpoint);
        }
        self.touched().map(Stop::Touched)
    }

    /// The watch that something happened to since the last look.
    pub(crate) fn touched(&mut self) -> Option<usize> {
        let touched = |watch: &Watch| {
            watch.kind == WatchKind::Changes
                && watch.generation != self.ram.code_generation(watch.at.page())
        };
        let changed = self.watches.iter().position(touched);
        let index = self.ram.take_access().or(changed)?;
        for index in 0..self.watches.len() {
            self.arm(index);
        }
        Some(index)
    }
}
