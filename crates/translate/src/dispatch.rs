//! In and out of the code cache: the engine.

use std::io::Write;
use std::num::NonZeroU32;

use cpu::{Access, Cpu, Engine, Exit, Registers, Shadow, Vcpu};
use memory::RamOffset;
use types::{PAGE_MASK, PAGE_SIZE};

use crate::TranslateError;
use crate::cache::{Cache, FarBranch, Jump, Wanted};
use crate::classify::Mode;
use crate::crossing::NO_GATE;
use crate::entry::SOFT_MARGIN;
use crate::fallback::{Fallbacks, Reason};
use crate::fetch::fetch_place;
use crate::fills::Fills;
use crate::helper::{self, Outcome};
use crate::layout::{self, Flags};
use crate::leaving::Leaving;
use crate::options::Options;
use crate::plan::Variant;
use crate::shadow::ShadowMap;
use crate::site::{SITE_FAULT, SITE_LOOKUP, Site, SiteId, Why};
use crate::statistics::Statistics;
use crate::string;
use crate::words::Words;

/// Dispatches after which control goes back even if nothing happened.
const DISPATCHES_MAX: u32 = 1 << 16;
/// Times translated code is entered after which the same holds: one string instruction over
/// terabytes, for instance.
const ENTRIES_MAX: u32 = 1 << 18;
/// Branches the fall-back engine runs at a time where nothing is translated.
const FOREIGN_BRANCHES: u64 = 64;
const HOST_MXCSR: u64 = 0x1f80;

/// The translating engine.
pub struct Translator {
    pub(crate) cache: Cache,
    pub(crate) shadow: ShadowMap,
    pub(crate) fallback: Box<dyn Engine>,
    pub(crate) options: Options,
    pub(crate) statistics: Statistics,
    pub(crate) fallbacks: Fallbacks,
    /// The fall-back engine stopped at a breakpoint.
    hit_breakpoint: bool,
    dispatches: u64,
    pub(crate) instructions: u64,
    /// Executing one instruction.
    pub(crate) stepping: bool,
    /// The run may end before its last branches.
    pub(crate) soft: bool,
    /// The branch that the run ended behind, before its last one.
    pub(crate) ended: Option<u64>,
    /// Times translated code was entered in this run.
    pub(crate) turns: u32,
    /// The last TLB fills, and faults served by the shadow.
    pub(crate) fills: Fills,
}

// SAFETY: everything is owned; code memory and tables are not bound to a thread, and the host's GS
// base is set anew by each run.
unsafe impl Send for Translator {}

/// An instruction that is not translated, as in [`Why::Step`].
struct Step {
    mnemonic: u16,
    len: u16,
    then: Option<NonZeroU32>,
}

/// What to do after leaving translated code.
pub(crate) enum Next {
    /// Enter again at this offset in code memory.
    Enter(u32),
    /// The vCPU is at an instruction boundary; look around.
    Boundary,
}

impl Translator {
    /// A translator that leaves to `fallback` what it does not translate.
    ///
    /// # Errors
    /// When the host CPU lacks instructions of the model, or code memory cannot be mapped.
    pub fn new(fallback: Box<dyn Engine>, options: Options) -> Result<Translator, TranslateError> {
        native::support()?;
        Ok(Translator {
            cache: Cache::new(options)?,
            shadow: ShadowMap::new(options),
            fallback,
            options,
            statistics: Statistics::default(),
            fallbacks: Fallbacks::new(),
            hit_breakpoint: false,
            dispatches: 0,
            instructions: 0,
            stepping: false,
            soft: false,
            ended: None,
            turns: 0,
            fills: Fills::default(),
        })
    }

    /// Has each translation listed from now on, a line in the form of `perf`'s map files: address
    /// and size of the code in hexadecimal, a name with the guest's address. Errors of `list` end
    /// the list.
    pub fn list_translations(&mut self, list: Box<dyn Write + Send>) {
        self.cache.list_translations(list);
    }

    pub(crate) fn step_for(&mut self, cpu: &mut Cpu<'_>, reason: Reason) {
        self.fallbacks.note(reason);
        self.fall_back(cpu);
    }

    /// One instruction by the fall-back engine, which ends an interrupt shadow: then an interrupt
    /// that was held back may be delivered.
    fn fall_back(&mut self, cpu: &mut Cpu<'_>) {
        let inhibited = cpu.vcpu.pending.shadow != Shadow::None;
        self.fallback.step(cpu);
        if inhibited && cpu.vcpu.pending.shadow == Shadow::None {
            cpu.vcpu.attention = true;
        }
    }

    /// The instruction for which a translation left.
    fn step_instruction(&mut self, leaving: &mut Leaving<'_, '_>, step: Step) -> Next {
        let Step { mnemonic, len, then } = step;
        let (rip, branches) = (leaving.cpu.vcpu.regs.rip(), leaving.cpu.vcpu.branches);
        let outcome = helper::help(leaving.cpu, mnemonic, len);
        match outcome {
            Outcome::Next => self.fallbacks.note_helped(mnemonic),
            Outcome::Went => {
                self.fallbacks.note_helped(mnemonic);
                return self.go_to(leaving);
            }
            Outcome::Declined if string::is_string(mnemonic) => {
                self.fallbacks.note_step(mnemonic);
                self.run_string(leaving.cpu);
                return Next::Boundary;
            }
            Outcome::Declined => {
                self.fallbacks.note_step(mnemonic);
                self.fall_back(leaving.cpu);
                leaving.words.set(layout::GATE, u64::from(self.cache.gate(leaving.cpu.vcpu)));
            }
        }
        if let Some(resume) = then
            && self.options.links
            && leaving.cpu.vcpu.regs.rip() == rip.wrapping_add(u64::from(len))
            && leaving.cpu.vcpu.branches == branches
            && leaving.is_undisturbed()
            && !self.cache.meets_breakpoints(leaving.cpu.vcpu, &mut self.statistics)
            && Mode::of(leaving.cpu.vcpu, &self.shadow) == Some(leaving.mode)
            && self.cache.is_right(leaving.cpu.ram)
        {
            leaving.refresh();
            return Next::Enter(resume.get());
        }
        Next::Boundary
    }

    /// On to the translation at RIP, which an instruction set that may have changed the mode.
    fn go_to(&mut self, leaving: &mut Leaving<'_, '_>) -> Next {
        let vcpu = &*leaving.cpu.vcpu;
        let (rip, branches) = (vcpu.regs.rip(), vcpu.branches);
        let Some(mode) = Mode::of(vcpu, &self.shadow) else { return Next::Boundary };
        // Also where RF is set, as after #PF, so that one instruction is stepped first.
        self.shadow.come_back(leaving.cpu);
        if !leaving.is_undisturbed() || branches >= leaving.until {
            return Next::Boundary;
        }
        leaving.mode = mode;
        leaving.words.set(layout::BUDGET, leaving.until - branches);
        leaving.words.set(layout::PAGE, rip & !PAGE_MASK);
        leaving.refresh();
        self.go_on(leaving, rip)
    }

    /// A string instruction by the fall-back engine: all iterations at once, and what follows up
    /// to the next branch.
    fn run_string(&mut self, cpu: &mut Cpu<'_>) {
        if self.stepping {
            return self.fall_back(cpu);
        }
        let until = cpu.vcpu.branches + 1;
        self.run_fallback(cpu, until);
    }

    /// What lies between instructions, or code of a kind that is not translated.
    fn run_foreign(&mut self, cpu: &mut Cpu<'_>, until: u64) {
        let watched = self.cache.has_breakpoints(cpu.vcpu.regs.rip());
        if self.stepping || (cpu.vcpu.needs_step() && !watched) {
            self.step_for(cpu, Reason::Between);
        } else {
            let legacy = cpu.vcpu.mode.bits != 64;
            self.fallbacks.note(if legacy { Reason::Legacy } else { Reason::Watched });
            let until = until.min(cpu.vcpu.branches + FOREIGN_BRANCHES);
            self.run_fallback(cpu, until);
        }
    }

    pub(crate) fn dispatch(&mut self, cpu: &mut Cpu<'_>, until: u64) {
        self.shadow.rest(&mut cpu.vcpu.tlb);
        self.shadow.offer(cpu);
        let mode = match Mode::of(cpu.vcpu, &self.shadow) {
            Some(mode) if !cpu.vcpu.needs_step() => mode,
            _ => return self.run_foreign(cpu, until),
        };
        self.cache.sync(cpu.ram, &mut self.statistics);
        self.dispatches += 1;
        let every = self.options.flush_every;
        if every != 0 && self.dispatches.is_multiple_of(every) {
            self.cache.flush(&mut self.statistics);
        }
        let rip = cpu.vcpu.regs.rip();
        match self.lookup(cpu, mode, rip, false) {
            // Next time it is not the same translation.
            Some(_) if self.cache.meets_breakpoints(cpu.vcpu, &mut self.statistics) => {}
            Some(entry) => self.execute(cpu, until, mode, entry),
            None if self.cache.has_breakpoints(rip) => self.run_foreign(cpu, until),
            None => self.step_for(cpu, Reason::Fetch),
        }
    }

    pub(crate) fn run_to(&mut self, cpu: &mut Cpu<'_>, until: u64) -> Exit {
        for _ in 0..DISPATCHES_MAX {
            if std::mem::take(&mut self.hit_breakpoint) {
                return Exit::Breakpoint;
            }
            if let Some(exit) = cpu.vcpu.boundary(until) {
                return exit;
            }
            if self.turns > ENTRIES_MAX {
                break;
            }
            self.dispatch(cpu, until);
        }
        Exit::Yielded
    }

    /// The fall-back engine knows the breakpoints, and code that has some is left to it.
    fn run_fallback(&mut self, cpu: &mut Cpu<'_>, until: u64) {
        self.hit_breakpoint |= self.fallback.run(cpu, until) == Exit::Breakpoint;
    }

    /// The translation of the code at linear address `rip`, unless fetching there raises
    /// something, it is not RAM, or it has a breakpoint.
    fn lookup(&mut self, cpu: &mut Cpu<'_>, mode: Mode, rip: u64, from_flags: bool) -> Option<u32> {
        let at = fetch_place(cpu, rip)?;
        self.statistics.lookups += 1;
        self.cache.get(
            cpu,
            Wanted { at, gva: rip, mode, variant: Variant::Fast, from_flags },
            &mut self.statistics,
        )
    }

    /// To the instruction at `rip`, which reaches into another page than when it was translated.
    fn next_page(&mut self, leaving: &mut Leaving<'_, '_>, rip: u64, entry: u32) -> Next {
        let (mode, at) = (leaving.mode, fetch_place(leaving.cpu, rip));
        let mut forget = |at, variant| {
            self.cache.forget(Wanted { at, gva: rip, mode, variant, from_flags: false }, entry)
        };
        if at.is_some_and(|at| forget(at, Variant::Fast) && forget(at, Variant::Careful)) {
            return self.go_on(leaving, rip);
        }
        self.step_for(leaving.cpu, Reason::NextPage);
        Next::Boundary
    }

    /// Runs translated code from `entry` until it must be left.
    fn execute(&mut self, cpu: &mut Cpu<'_>, until: u64, mode: Mode, entry: u32) {
        let until = until.min(cpu.vcpu.branches.saturating_add(layout::BUDGET_MAX));
        let words = Words::of(cpu.vcpu);
        words.set(layout::BUDGET, until - cpu.vcpu.branches);
        words.set(layout::PAGE, cpu.vcpu.regs.rip() & !PAGE_MASK);
        words.set(layout::INSTRUCTIONS, 0);
        words.set(layout::VECTORS, 0);
        words.set(layout::X87, 0);
        words.set(layout::SOFT, u64::from(self.soft));
        words.set(layout::HOST_MXCSR, HOST_MXCSR);
        words.set(layout::GATE, u64::from(self.cache.gate(cpu.vcpu)));
        let space = cpu.vcpu.tlb.space();
        let mut leaving = Leaving { cpu, until, mode, words, space };
        leaving.refresh();
        let mut entry = entry;
        loop {
            self.settle(&mut leaving);
            self.set_tables(&leaving);
            self.statistics.entries += 1;
            self.turns += 1;
            words.set(layout::NOT_BEHIND, words.get(layout::BUDGET));
            enter(&self.cache, leaving.cpu.vcpu, entry);
            match self.leave(&mut leaving) {
                Next::Enter(next) => entry = next,
                Next::Boundary => break,
            }
        }
        self.instructions += words.get(layout::INSTRUCTIONS);
    }

    /// What the TLB lost goes from what was made of it: from the shadow only before code that
    /// relies on it. Other code comes to such code by way of the dispatcher then, which the number
    /// of no gate sees to.
    #[inline]
    fn settle(&mut self, leaving: &mut Leaving<'_, '_>) {
        let tlb = &mut leaving.cpu.vcpu.tlb;
        let waits = if leaving.mode.direct {
            self.shadow.settle(tlb);
            false
        } else {
            self.shadow.settle_later(tlb)
        };
        if waits || leaving.words.get(layout::GATE) == u64::from(NO_GATE) {
            let gate = if waits { NO_GATE } else { self.cache.gate(leaving.cpu.vcpu) };
            leaving.words.set(layout::GATE, u64::from(gate));
        }
        let tlb = &mut leaving.cpu.vcpu.tlb;
        if let Some(lost) = tlb.lost_code() {
            self.cache.linear.forget_pages(lost.drain(..));
        }
    }

    /// Where branches of the code that is entered, and of what it may go on to, are looked up.
    fn set_tables(&mut self, leaving: &Leaving<'_, '_>) {
        let mode = leaving.mode;
        let other = mode.beyond(&self.shadow, &leaving.cpu.vcpu.tlb);
        let (here, beyond) = (self.cache.table(mode), self.cache.table(other));
        let (user, kernel) = if mode.kernel { (beyond, here) } else { (here, beyond) };
        for (word, table) in [
            (layout::BRANCH_TABLE, here),
            (layout::USER_TABLE, user),
            (layout::KERNEL_TABLE, kernel),
        ] {
            leaving.words.set(word, table);
        }
        for mode in [mode, other] {
            if mode.direct {
                let table = self.cache.linear.table(mode, self.shadow.reign);
                leaving.words.set(layout::LINEAR_TABLE, table);
            }
        }
    }

    fn leave(&mut self, leaving: &mut Leaving<'_, '_>) -> Next {
        // CLAC and STAC, SYSCALL and SYSRET change it.
        let vcpu = &*leaving.cpu.vcpu;
        (leaving.mode.side, leaving.mode.kernel) = (vcpu.mode.side, vcpu.cpl == 0);
        leaving.mode.direct = self.shadow.is_of(&vcpu.tlb, vcpu.mode.side);
        let id = leaving.words.get(layout::EXIT_SITE) as SiteId;
        match id {
            SITE_LOOKUP => {
                let rip = leaving.arrived();
                self.go_on(leaving, rip)
            }
            SITE_FAULT => self.recover(leaving),
            _ => {
                let site = self.cache.site(id);
                self.leave_by(leaving, site)
            }
        }
    }

    /// On to the translation at `rip`, if blocks may follow each other.
    fn go_on(&mut self, leaving: &mut Leaving<'_, '_>, rip: u64) -> Next {
        self.go_on_from(leaving, rip, false)
    }

    /// The same, by a jump with flags in RFLAGS or not.
    fn go_on_from(&mut self, leaving: &mut Leaving<'_, '_>, rip: u64, from_flags: bool) -> Next {
        // Where the run ends nothing is fetched any more: it would set accessed bits.
        let ends = leaving.cpu.vcpu.branches >= leaving.until;
        if !self.options.links || ends || self.shadow.is_tired() {
            return Next::Boundary;
        }
        // A block loads the registers of the units that it needs.
        leaving.words.set(layout::VECTORS, 0);
        leaving.words.set(layout::X87, 0);
        match self.lookup(leaving.cpu, leaving.mode, rip, from_flags) {
            Some(entry) if self.may_enter(leaving) => Next::Enter(entry),
            _ => Next::Boundary,
        }
    }

    /// Whether slow work asked for no attention, and no breakpoint came into reach. One instruction
    /// is executed whatever it takes.
    pub(crate) fn may_enter(&mut self, leaving: &Leaving<'_, '_>) -> bool {
        let vcpu = &*leaving.cpu.vcpu;
        (!vcpu.attention || self.stepping)
            && !self.cache.meets_breakpoints(vcpu, &mut self.statistics)
    }

    /// Whether the access that missed has its walk cached now.
    fn fill(&mut self, leaving: &mut Leaving<'_, '_>, access: Access, size: u16, at: u32) -> bool {
        let gva = leaving.missed(access);
        self.fills.may_help(at, gva) && leaving.fill(access, gva, u64::from(size))
    }

    fn leave_by(&mut self, leaving: &mut Leaving<'_, '_>, site: Site) -> Next {
        let tired = site.in_string && self.turns > ENTRIES_MAX;
        let changes = leaving.cpu.vcpu.tlb.changes();
        if let Why::Miss { access, size, resume } = site.why
            && !tired
            && !(access != Access::Exec && leaving.x87_exception_waits())
            && !leaving.ends_with_fetch(access, site)
            && self.fill(leaving, access, size, resume)
        {
            self.statistics.fills += 1;
            if leaving.cpu.vcpu.tlb.changes() == changes && self.may_enter(leaving) {
                return Next::Enter(resume);
            }
            // What the block looked up before may not be allowed any more.
            let rip = leaving.words.get(layout::PAGE).wrapping_add(u64::from(site.offset));
            leaving.settle(rip, site.unretired);
            return Next::Boundary;
        }
        if let Why::Far { constant, stub, direct } = site.why {
            return self.link_far(leaving, FarBranch { constant, stub, direct });
        }
        let rip = leaving.words.get(layout::PAGE).wrapping_add(u64::from(site.offset));
        leaving.settle(rip, site.unretired);
        match site.why {
            Why::Budget | Why::Goto | Why::Far { .. } => {}
            Why::Ending => self.end(leaving),
            Why::Step { mnemonic, len, then } => {
                return self.step_instruction(leaving, Step { mnemonic, len, then });
            }
            // Fallen off the page's end: nothing is being executed.
            Why::Miss { access: Access::Exec, .. } if u64::from(site.offset) >= PAGE_SIZE => {}
            Why::Miss { access: Access::Exec, .. } => self.step_for(leaving.cpu, Reason::Target),
            Why::Miss { .. } if tired => {}
            Why::Miss { .. } if site.in_string => {
                self.fallbacks.note(Reason::StringAccess);
                self.run_string(leaving.cpu);
            }
            Why::Miss { .. } => self.step_for(leaving.cpu, Reason::Access),
            Why::NextPage { entry } => return self.next_page(leaving, rip, entry),
            Why::Link { patch, stub, flags, direct } => {
                return self.link(leaving, rip, Jump { patch, stub, flags, direct });
            }
            Why::Careful { patch, stub, begins } => {
                let direct = leaving.mode.direct;
                let jump = Jump { patch, stub, flags: Flags::Saved, direct };
                return self.go_carefully(leaving, rip, jump, begins);
            }
        }
        Next::Boundary
    }

    /// To the block at `rip` in the same page; the jump that led here leads there from now on.
    fn link(&mut self, leaving: &mut Leaving<'_, '_>, rip: u64, jump: Jump) -> Next {
        let epoch = self.cache.epoch;
        // What the two entries of a block take is told by this.
        let same = jump.direct == leaving.mode.direct;
        let next = self.go_on_from(leaving, rip, same && jump.flags == Flags::Host);
        if let Next::Enter(entry) = next
            && same
            && self.cache.epoch == epoch
            && let Some(at) = fetch_place(leaving.cpu, rip)
        {
            let (mode, variant) = (leaving.mode, Variant::Fast);
            self.cache.link(jump, Wanted { at, gva: rip, mode, variant, from_flags: false }, entry);
            self.statistics.links += 1;
        }
        next
    }

    /// Whether the run ends because its budget does not last for a block that would begin now:
    /// where it need not be exact and few branches are left, as using them up takes a translation
    /// that is good for nothing else.
    pub(crate) fn ends_early(&mut self, leaving: &mut Leaving<'_, '_>) -> bool {
        let left = leaving.until - leaving.cpu.vcpu.branches;
        let ends = self.soft && left <= u64::from(SOFT_MARGIN);
        if ends {
            self.end(leaving);
        }
        ends
    }

    /// Ends the run, which need not be exact, before a block: behind a branch, as an exact run
    /// ends, if nothing was done since it retired.
    fn end(&mut self, leaving: &mut Leaving<'_, '_>) {
        self.ended = leaving.is_behind_branch().then_some(leaving.cpu.vcpu.branches);
        leaving.cpu.vcpu.tire();
    }

    /// To the careful block at `rip`, in the page whose code runs.
    fn go_carefully(
        &mut self,
        leaving: &mut Leaving<'_, '_>,
        rip: u64,
        jump: Jump,
        begins: bool,
    ) -> Next {
        if begins && self.ends_early(leaving) {
            return Next::Boundary;
        }
        let epoch = self.cache.epoch;
        let Some((at, entry)) = self.careful(leaving, rip) else { return Next::Boundary };
        if self.cache.epoch == epoch {
            let (mode, variant) = (leaving.mode, Variant::Careful);
            self.cache.link(jump, Wanted { at, gva: rip, mode, variant, from_flags: false }, entry);
        }
        Next::Enter(entry)
    }

    /// The careful block at `rip`, if it may be entered now, and where its code is.
    pub(crate) fn careful(
        &mut self,
        leaving: &mut Leaving<'_, '_>,
        rip: u64,
    ) -> Option<(RamOffset, u32)> {
        let at = fetch_place(leaving.cpu, rip)?;
        let (mode, variant) = (leaving.mode, Variant::Careful);
        let wanted = Wanted { at, gva: rip, mode, variant, from_flags: false };
        self.statistics.careful += 1;
        let entry = self.cache.get(leaving.cpu, wanted, &mut self.statistics)?;
        self.may_enter(leaving).then_some((at, entry))
    }

    /// To the block that a branch to another page leads to, and leads to directly from now on.
    fn link_far(&mut self, leaving: &mut Leaving<'_, '_>, branch: FarBranch) -> Next {
        let epoch = self.cache.epoch;
        let rip = leaving.arrived();
        let next = self.go_on(leaving, rip);
        if let Next::Enter(entry) = next
            && self.cache.epoch == epoch
        {
            self.cache.link_far(branch, leaving.words.get(layout::EXIT_ADDRESS), entry);
            self.statistics.links += 1;
        }
        next
    }
}

fn enter(cache: &Cache, vcpu: &mut Vcpu, entry: u32) {
    let (base, at) = (cache.base(), cache.trampolines().enter);
    let words = Words::of(vcpu).0 as u64;
    let vcpu: *mut Vcpu = vcpu;
    // SAFETY: `enter` is the trampoline's address in the executable view, with this signature;
    // `entry` is the offset of a translation's entry or resumption; `words` is beside this vCPU's
    // TLB. Generated code keeps the contract of `layout`: it touches registers, fields of the vCPU
    // beside them, the block and RAM the TLB leads to, and returns.
    unsafe {
        let code: extern "sysv64" fn(*mut Registers, u64, u64) =
            std::mem::transmute(base + u64::from(at));
        code(&raw mut (*vcpu).regs, base + u64::from(entry), words);
    }
}
