//! The host's page tables as shadow page tables: pages of one guest address space, mapped at the
//! guest's own addresses, so that an access is one instruction and the host's MMU looks it up.
//!
//! A page comes into the shadow with the rights that it has in the TLB, or would have. Whatever
//! would take it or a right from the TLB is noted there ([`cpu::tlb::Tlb::lost`]) and takes it from
//! the shadow before translated code goes on that relies on it. So accessed and dirty bits, the
//! write trap, watched code and page tables, devices and breakpoints are as with the TLB alone. A
//! page that is not there faults, and comes into the shadow with its neighbours
//! ([`ShadowMap::serve`]).
//!
//! The addresses are this process's as well, so translated code goes only where this module has
//! claimed everything ([`claims`]), which it checks before each access: a byte of the TLB's `PASS`
//! stands for 64 KiB, and those of chunks that are not claimed cannot be read.

mod claims;
mod host;
mod merit;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use cpu::tlb::{Lost, SIDE_USER, Tlb, layout};
use cpu::{Access, Cpu, Place, SettledWalk};
use memory::Ram;
use types::{Gpa, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

use crate::classify::Mode;
use crate::options::{Options, Shadowing};
use crate::site::Faults;
use claims::Claims;
pub(crate) use claims::MARGIN;
use host::Run;
pub(crate) use merit::FILL_WORK;
use merit::Merit;

/// A fault brings in what can be brought in of so many pages, an aligned block of them.
const AROUND: u64 = 16;
/// All of a large page's, or of so much of a still larger one.
const LARGE: u64 = 512;
/// What bringing in pages costs about, in branches, and taking one out.
const SERVE_COST: u64 = 1500;
const LOSS_COST: u64 = 300;
/// With more runs of pages than this to be taken out at once, all are.
const LOST_MAX: usize = 1024;
/// So many wait to be taken out at once: a kernel that ends a process takes its pages from it one
/// after the other, and often enough no code of that space follows.
const WAITING_MAX: usize = LOST_MAX / 2;

/// Mappings made before all are taken out; the host has a limit (vm.max_map_count, 65,530).
const RUNS_MAX: usize = 16_000;

/// How often walks were followed anew.
static REIGNS: AtomicU64 = AtomicU64::new(0);

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
    /// Mappings made since it was empty.
    runs: usize,
    /// The page of an access that raised #PF: the guest will do it again.
    raised: Option<u64>,
    /// Another one each time that walks are followed anew: what was known of others is not any
    /// more.
    pub(crate) reign: u64,
    /// This one is the process's.
    taken: bool,
    /// The owner spent too much. It loses the shadow between blocks: translations that rely on it
    /// may be on their way.
    tired: bool,
    /// Times an address space got it.
    pub(crate) begun: u64,
}

impl ShadowMap {
    pub(crate) fn new(options: Options) -> ShadowMap {
        // The check of an address is made of its instructions.
        let able = std::arch::is_x86_feature_detected!("bmi2");
        let shadowing = if able { options.shadow } else { Shadowing::Never };
        ShadowMap {
            owner: None,
            shadowing,
            merit: Merit::new(shadowing),
            claims: Claims::default(),
            runs: 0,
            raised: None,
            reign: 0,
            taken: false,
            tired: false,
            begun: 0,
        }
    }

    /// Whether code that accesses `side` in the address space in use has the shadow. A TLB that
    /// another one took the place of, as when the machine was reset, has lost it.
    #[inline]
    pub(crate) fn is_of(&self, tlb: &Tlb, side: u8) -> bool {
        self.owner == Some(Owner { space: tlb.space(), side }) && tlb.following() == self.reign
    }

    /// Code of `mode` did so much work, in branches; it may get the shadow.
    pub(crate) fn note_work(&mut self, cpu: &mut Cpu<'_>, mode: Mode, work: u64) {
        let wanted = match self.shadowing {
            Shadowing::Never => false,
            Shadowing::Earned => !mode.kernel,
            // Where CLAC and STAC change nothing, and code and data are in the lower half.
            Shadowing::Always | Shadowing::Fickle => {
                !mode.kernel || !mode.smap && cpu.vcpu.regs.rip() >> 63 == 0
            }
        };
        if !wanted {
            return;
        }
        let space = cpu.vcpu.tlb.space();
        let followed = cpu.vcpu.tlb.following() == self.reign;
        let owner = self.owner.filter(|owner| followed && owner.side == mode.side);
        let shadowed = owner.map(|owner| owner.space);
        if self.merit.note_work(space, work, shadowed) {
            self.begin(cpu, Owner { space, side: mode.side });
        }
    }

    /// Where all are to have the shadow, this one gets it.
    #[inline]
    pub(crate) fn offer(&mut self, cpu: &mut Cpu<'_>) {
        if self.shadowing.is_stress()
            && let Some(mode) = Mode::of(cpu.vcpu, self)
        {
            // A kernel that turned SMAP on: from now on its STAC and CLAC give and take rights.
            self.tired |= mode.smap && self.owner.is_some_and(|owner| owner.side != SIDE_USER);
            self.rest(&mut cpu.vcpu.tlb);
            self.note_work(cpu, mode, 0);
        }
    }

    /// Gives the shadow to another owner, with nothing in it yet.
    #[cold]
    fn begin(&mut self, cpu: &mut Cpu<'_>, owner: Owner) {
        if cpu.ram.fd().is_none() || !cpu.vcpu.tlb.has_pass() || !self.take() {
            return;
        }
        self.clear();
        if self.claims.are_many() {
            cpu.vcpu.tlb.close_pass();
            self.claims = Claims::default();
        }
        (self.owner, self.tired) = (Some(owner), false);
        self.begun += 1;
        self.follow(&mut cpu.vcpu.tlb);
        self.merit.begin();
    }

    fn follow(&mut self, tlb: &mut Tlb) {
        if let Some(owner) = self.owner {
            self.reign = REIGNS.fetch_add(1, Ordering::Relaxed) + 1;
            tlb.begin_following(owner.side, self.reign);
        }
    }

    /// Makes the process's one shadow this one. Where all are to have it, and in tests, waits until
    /// nobody else has.
    fn take(&mut self) -> bool {
        let (taken, given_back) = &TAKEN;
        let mut taken = taken.lock().expect("nobody panics with it");
        let waits = cfg!(test) || self.shadowing.is_stress();
        while *taken && !self.taken && waits {
            taken = given_back.wait(taken).expect("nobody panics with it");
        }
        self.taken |= !std::mem::replace(&mut *taken, true);
        self.taken
    }

    /// Whether the owner is to lose the shadow, so that no block is to be gone on to.
    #[inline]
    pub(crate) fn is_tired(&self) -> bool {
        self.tired
    }

    /// Nobody has the shadow any more if its owner spent too much. To be called when no translated
    /// code is on its way.
    #[inline]
    pub(crate) fn rest(&mut self, tlb: &mut Tlb) {
        if std::mem::take(&mut self.tired) && self.owner.take().is_some() {
            self.clear();
            tlb.end_following();
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.runs) != 0 {
            self.claims.clear();
        }
    }

    fn spend(&mut self, branches: u64) {
        if let Some(owner) = self.owner {
            self.tired |= self.merit.spend(owner.space, branches);
        }
    }

    /// Takes out what the TLB lost. To be called before translated code goes on that relies on the
    /// shadow.
    #[inline]
    pub(crate) fn settle(&mut self, tlb: &mut Tlb) {
        let Some(owner) = self.owner else { return };
        if self.is_of(tlb, owner.side) && tlb.lost().is_some() {
            self.take_out(tlb);
        }
    }

    /// The same before translated code that does not rely on it: whether something is left to be
    /// taken out.
    #[inline]
    pub(crate) fn settle_later(&mut self, tlb: &mut Tlb) -> bool {
        let owned = self.owner.is_some_and(|owner| self.is_of(tlb, owner.side));
        let waits = owned && tlb.lost().is_some_and(|lost| lost.len() < WAITING_MAX);
        if !waits {
            self.settle(tlb);
        }
        waits
    }

    #[cold]
    fn take_out(&mut self, tlb: &mut Tlb) {
        let Some(lost) = tlb.lost() else { return };
        let mut lost = std::mem::take(lost);
        let cost = LOSS_COST * lost.len().min(LOST_MAX) as u64;
        if lost.len() > LOST_MAX {
            self.empty(tlb);
        } else {
            lost.sort_unstable_by_key(|run| run.gva);
            let follows = |a: &Lost, b: &Lost| a.gva + a.pages * PAGE_SIZE == b.gva;
            for runs in lost.chunk_by(follows) {
                let pages: u64 = runs.iter().map(|run| run.pages).sum();
                host::empty(runs[0].gva, pages * PAGE_SIZE);
            }
        }
        self.spend(cost);
    }

    /// Takes everything out; the owner stays.
    fn empty(&mut self, tlb: &mut Tlb) {
        self.clear();
        self.follow(tlb);
    }

    /// Translated code faulted at an address: brings in what that is of.
    pub(crate) fn serve(&mut self, cpu: &mut Cpu<'_>, address: u64, faults: Faults) -> Served {
        let Some(owner) = self.owner.filter(|owner| self.is_of(&cpu.vcpu.tlb, owner.side)) else {
            return Served::Not;
        };
        let pass = cpu.vcpu.tlb.block() as u64 + layout::PASS as u64;
        let served = match (faults, address.checked_sub(pass)) {
            (Faults::Check | Faults::Moved, Some(at)) if at < layout::PASS_SIZE as u64 => {
                self.admit(&mut cpu.vcpu.tlb, at >> PAGE_SHIFT)
            }
            (Faults::Access(access), _) => self.bring_in(cpu, owner, address & !PAGE_MASK, access),
            _ => Served::Not,
        };
        self.spend(SERVE_COST);
        served
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
                Err(_) => {
                    self.raised = Some(page);
                    return Served::Raises;
                }
            }
        }
        let cached = cpu.vcpu.tlb.lookup(owner.side, page, access).is_some()
            && cpu.vcpu.tlb.lookup_read(owner.side, page).is_some();
        if !cached {
            return Served::Not;
        }
        if self.map_around(cpu, owner, page) { Served::Whole } else { Served::Not }
    }

    /// The guest's kernel went back to user code: brings in the page that it provided, if it did,
    /// before user code faults for it once more.
    pub(crate) fn come_back(&mut self, cpu: &mut Cpu<'_>) {
        let (Some(page), Some(owner)) = (self.raised, self.owner) else { return };
        if !self.is_of(&cpu.vcpu.tlb, cpu.vcpu.mode.side) {
            return;
        }
        self.raised = None;
        self.settle(&mut cpu.vcpu.tlb);
        if self.map_around(cpu, owner, page) {
            self.spend(LOSS_COST);
        }
    }

    /// Maps what the guest's page tables lead to around a page: all of a large page, or some small
    /// ones. False if the host refuses, or they do not lead there without being changed.
    fn map_around(&mut self, cpu: &mut Cpu<'_>, owner: Owner, page: u64) -> bool {
        let Some(walk) = cpu.settled_walk(owner.side, page) else { return false };
        if self.runs > RUNS_MAX {
            self.empty(&mut cpu.vcpu.tlb);
        }
        let pages = if walk.size > PAGE_SIZE { LARGE } else { AROUND };
        let first = page & !(pages * PAGE_SIZE - 1);
        let mut walk = Some(walk);
        let mut run: Option<Run> = None;
        for at in (first..first + pages * PAGE_SIZE).step_by(PAGE_SIZE as usize) {
            if walk.is_none_or(|walk| (walk.gva ^ at) & !(walk.size - 1) != 0) {
                walk = cpu.settled_walk(owner.side, at);
            }
            let next = walk.and_then(|walk| self.missing(cpu, walk, at));
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

    /// The page at `at`, which the walk leads to, if the shadow does not have it, or with fewer
    /// rights.
    fn missing(&self, cpu: &Cpu<'_>, walk: SettledWalk, at: u64) -> Option<Run> {
        let gpa = Gpa((walk.gpa.0 & !(walk.size - 1)) | (at & (walk.size - 1)));
        let (offset, write) = cpu.settled_page(gpa, walk.write)?;
        let followed = cpu.vcpu.tlb.followed(at);
        let there = followed.is_some_and(|may_write| may_write || !write);
        let missing = !there && self.claims.has(at);
        missing.then_some(Run { start: at, pages: 1, offset: offset.0, write })
    }

    fn map(&mut self, ram: &Ram, tlb: &mut Tlb, run: Run) -> bool {
        let Some(fd) = ram.fd() else { return false };
        if !host::map(fd, run) {
            return false;
        }
        self.runs += 1;
        tlb.follow(run.start, run.offset, run.pages, run.write);
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
