//! The host's page tables as shadow page tables: pages of one guest address space, mapped at the
//! guest's own addresses, so that an access is one instruction and the host's MMU looks it up.
//!
//! A page comes into the shadow from the TLB, with the rights it has there, and whatever would take
//! it or a right from the TLB is noted there ([`cpu::tlb::Tlb::lost`]) and takes it from the shadow
//! before translated code goes on. So accessed and dirty bits, the write trap, code and page tables
//! that are watched, devices and breakpoints are as with the TLB alone. A page that is not there
//! faults, and comes into the shadow with its neighbours ([`ShadowMap::serve`]).
//!
//! The addresses are this process's as well, so translated code goes only where this module has
//! claimed everything ([`claims`]), which it checks before each access: a byte of the TLB's `PASS`
//! stands for 64 KiB, and those of chunks that are not claimed cannot be read.

mod claims;
mod host;
mod merit;

use std::sync::{Condvar, Mutex};

use cpu::tlb::{Tlb, layout};
use cpu::{Access, Cpu, Place};
use memory::Ram;
use types::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

use crate::classify::Mode;
use crate::options::{Options, Shadowing};
use crate::site::Faults;
use claims::Claims;
pub(crate) use claims::MARGIN;
use host::Run;
use merit::Merit;

/// A fault brings in what the TLB has of so many pages, an aligned block of them.
const AROUND: u64 = 16;
/// What bringing in pages costs about, in branches, and taking one out.
const SERVE_COST: u64 = 1500;
const LOSS_COST: u64 = 300;
/// With more pages than this to be taken out at once, all are.
const LOST_MAX: usize = 1024;

/// Pages in the shadow at once; the host has a limit (vm.max_map_count, 65,530).
const PAGES_MAX: usize = 16_000;

/// One process has one such view of its address space: whether it is taken.
static TAKEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Who has the shadow: an address space of the TLB's, and the side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    space: usize,
    side: u8,
}

/// What came of an access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// It can be done now.
    Whole,
    /// The guest's page tables forbid it.
    Raises,
    /// It cannot be done by the host's page tables.
    Not,
}

/// See the module.
pub(crate) struct ShadowMap {
    owner: Option<Owner>,
    shadowing: Shadowing,
    merit: Merit,
    claims: Claims,
    /// Something is in it.
    used: bool,
    /// This one is the process's.
    taken: bool,
}

impl ShadowMap {
    pub(crate) fn new(options: Options) -> ShadowMap {
        ShadowMap {
            owner: None,
            shadowing: options.shadow,
            merit: Merit::new(options.shadow),
            claims: Claims::default(),
            used: false,
            taken: false,
        }
    }

    /// Whether code that accesses `side` in address space `space` uses the shadow.
    #[inline]
    pub(crate) fn is_of(&self, space: usize, side: u8) -> bool {
        self.owner == Some(Owner { space, side })
    }

    /// Code of `mode` did so many branches; it may get the shadow.
    pub(crate) fn note_work(&mut self, cpu: &mut Cpu<'_>, mode: Mode, branches: u64) {
        let wanted = match self.shadowing {
            Shadowing::Never => false,
            Shadowing::Earned => !mode.kernel,
            // Where CLAC and STAC change nothing, and code and data are in the lower half.
            Shadowing::Always => !mode.kernel || !mode.smap && cpu.vcpu.regs.rip() >> 63 == 0,
        };
        if !wanted {
            return;
        }
        let space = cpu.vcpu.tlb.space();
        let shadowed = self.owner.filter(|owner| owner.side == mode.side).map(|owner| owner.space);
        if self.merit.note_work(space, branches, shadowed) {
            self.begin(cpu, Owner { space, side: mode.side });
        }
    }

    /// Where all are to have the shadow, this one gets it.
    #[inline]
    pub(crate) fn offer(&mut self, cpu: &mut Cpu<'_>) {
        if self.shadowing == Shadowing::Always
            && let Some(mode) = Mode::of(cpu.vcpu, self)
        {
            self.note_work(cpu, mode, 0);
        }
    }

    /// Gives the shadow to another owner, with nothing in it yet.
    #[cold]
    fn begin(&mut self, cpu: &mut Cpu<'_>, owner: Owner) {
        if cpu.ram.fd().is_none() || !self.take() {
            return;
        }
        self.clear();
        if self.claims.are_many() {
            cpu.vcpu.tlb.close_pass();
            self.claims = Claims::default();
        }
        cpu.vcpu.tlb.begin_following(owner.side);
        self.merit.begin();
        self.owner = Some(owner);
    }

    /// Makes the process's one shadow this one. Where all are to have it, waits until nobody else
    /// has.
    fn take(&mut self) -> bool {
        let (taken, given_back) = &TAKEN;
        let mut taken = taken.lock().expect("nobody panics with it");
        while *taken && !self.taken && self.shadowing == Shadowing::Always {
            taken = given_back.wait(taken).expect("nobody panics with it");
        }
        self.taken |= !std::mem::replace(&mut *taken, true);
        self.taken
    }

    /// Nobody has the shadow any more.
    pub(crate) fn end(&mut self, tlb: &mut Tlb) {
        if self.owner.take().is_some() {
            self.clear();
            tlb.end_following();
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.used) {
            self.claims.clear();
        }
    }

    fn spend(&mut self, tlb: &mut Tlb, branches: u64) {
        if let Some(owner) = self.owner
            && self.merit.spend(owner.space, branches)
        {
            self.end(tlb);
        }
    }

    /// Takes out what the TLB lost. To be called before translated code goes on.
    #[inline]
    pub(crate) fn settle(&mut self, tlb: &mut Tlb) {
        let Some(owner) = self.owner else { return };
        if tlb.space() == owner.space && tlb.lost().is_some() {
            self.take_out(tlb);
        }
    }

    #[cold]
    fn take_out(&mut self, tlb: &mut Tlb) {
        let Some(lost) = tlb.lost() else { return };
        let mut lost = std::mem::take(lost);
        let cost = LOSS_COST * lost.len().min(LOST_MAX) as u64;
        if lost.len() > LOST_MAX {
            self.empty(tlb);
        } else {
            lost.sort_unstable();
            let runs = lost.chunk_by(|a, b| a + PAGE_SIZE == *b);
            runs.for_each(|run| host::empty(run[0], run.len() as u64 * PAGE_SIZE));
        }
        self.spend(tlb, cost);
    }

    /// Takes everything out; the owner stays.
    fn empty(&mut self, tlb: &mut Tlb) {
        self.clear();
        if let Some(owner) = self.owner {
            tlb.begin_following(owner.side);
        }
    }

    /// Translated code faulted at an address: brings in what that is of.
    pub(crate) fn serve(&mut self, cpu: &mut Cpu<'_>, address: u64, faults: Faults) -> Served {
        let Some(owner) = self.owner else { return Served::Not };
        if cpu.vcpu.tlb.space() != owner.space {
            return Served::Not;
        }
        let pass = cpu.vcpu.tlb.block() as u64 + layout::PASS as u64;
        let served = match (faults, address.checked_sub(pass)) {
            (Faults::Check, Some(at)) if at < layout::PASS_SIZE as u64 => {
                self.admit(&mut cpu.vcpu.tlb, at >> PAGE_SHIFT)
            }
            (Faults::Access(access), _) => self.bring_in(cpu, owner, address & !PAGE_MASK, access),
            _ => Served::Not,
        };
        self.spend(&mut cpu.vcpu.tlb, SERVE_COST);
        if self.owner.is_some() { served } else { Served::Not }
    }

    /// Lets code access a chunk, if it can be claimed.
    fn admit(&mut self, tlb: &mut Tlb, chunk: u64) -> Served {
        let admitted = self.claims.claim(chunk) && tlb.open_pass(chunk as usize);
        if admitted { Served::Whole } else { Served::Not }
    }

    fn bring_in(&mut self, cpu: &mut Cpu<'_>, owner: Owner, page: u64, access: Access) -> Served {
        if !self.claims.has(page) {
            return Served::Not;
        }
        if cpu.vcpu.tlb.lookup(owner.side, page, access).is_none() {
            match cpu.translate(owner.side, page, access) {
                Ok(Place::Ram(_)) => self.settle(&mut cpu.vcpu.tlb),
                Ok(Place::Device(_)) => return Served::Not,
                Err(_) => return Served::Raises,
            }
        }
        let cached = cpu.vcpu.tlb.lookup(owner.side, page, access).is_some()
            && cpu.vcpu.tlb.lookup_read(owner.side, page).is_some();
        if self.owner.is_none() || !cached {
            return Served::Not;
        }
        if self.map_around(cpu, owner, page) { Served::Whole } else { Served::Not }
    }

    /// Maps what the TLB has of the pages around one. False if the host refuses.
    fn map_around(&mut self, cpu: &mut Cpu<'_>, owner: Owner, page: u64) -> bool {
        if cpu.vcpu.tlb.followed_count() > PAGES_MAX {
            self.empty(&mut cpu.vcpu.tlb);
        }
        let first = page & !(AROUND * PAGE_SIZE - 1);
        let mut run: Option<Run> = None;
        for at in (first..first + AROUND * PAGE_SIZE).step_by(PAGE_SIZE as usize) {
            let next = self.missing(&cpu.vcpu.tlb, owner.side, at);
            let joined = run.zip(next).and_then(|(run, next)| run.joined(next));
            if let (None, Some(done)) = (joined, run)
                && !self.map(cpu.ram, &mut cpu.vcpu.tlb, done)
            {
                return false;
            }
            run = joined.or(next);
        }
        run.is_none_or(|run| self.map(cpu.ram, &mut cpu.vcpu.tlb, run))
    }

    /// The page at `at` if the TLB has it and the shadow does not, or with fewer rights.
    fn missing(&self, tlb: &Tlb, side: u8, at: u64) -> Option<Run> {
        let offset = tlb.lookup_read(side, at)?;
        let write = tlb.lookup_write(side, at).is_some();
        let there = tlb.followed(at).is_some_and(|may_write| may_write || !write);
        let missing = !there && self.claims.has(at);
        missing.then_some(Run { start: at, pages: 1, offset, write })
    }

    fn map(&mut self, ram: &Ram, tlb: &mut Tlb, run: Run) -> bool {
        let Some(fd) = ram.fd() else { return false };
        if !host::map(fd, run) {
            return false;
        }
        self.used = true;
        for number in 0..run.pages {
            tlb.follow(run.start + number * PAGE_SIZE, run.write);
        }
        true
    }
}

impl Drop for ShadowMap {
    fn drop(&mut self) {
        // Before another one may claim the same.
        self.claims = Claims::default();
        if self.taken {
            *TAKEN.0.lock().expect("nobody panics with it") = false;
            TAKEN.1.notify_one();
        }
    }
}

impl Run {
    /// Both, if the other follows.
    fn joined(self, next: Run) -> Option<Run> {
        let size = self.pages * PAGE_SIZE;
        let follows = self.start + size == next.start
            && self.offset + size == next.offset
            && self.write == next.write;
        follows.then_some(Run { pages: self.pages + next.pages, ..self })
    }
}
