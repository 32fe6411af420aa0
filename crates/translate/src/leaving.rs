//! The vCPU between translated code and whatever comes next.

use cpu::tlb::layout as tlb;
use cpu::{Access, Activity, Cpu, Place, Seg, flag, gpr};
use types::{PAGE_MASK, PAGE_SIZE};

use crate::classify::Mode;
use crate::layout;
use crate::site::Site;
use crate::words::Words;

/// A vCPU that just left translated code.
pub(crate) struct Leaving<'a, 'c> {
    pub(crate) cpu: &'a mut Cpu<'c>,
    pub(crate) until: u64,
    pub(crate) mode: Mode,
    pub(crate) words: Words,
    /// The address space that the words are beside.
    pub(crate) space: usize,
}

impl Leaving<'_, '_> {
    /// Copies to the words what instructions of the fall-back engine may change.
    pub(crate) fn refresh(&self) {
        let vcpu = &*self.cpu.vcpu;
        self.words.set(layout::FS_BASE, vcpu.mode.bases[Seg::Fs as usize]);
        self.words.set(layout::GS_BASE, vcpu.mode.bases[Seg::Gs as usize]);
        let waits = vcpu.regs.rflags_other & flag::IF == 0 && self.cpu.interrupt_waits();
        self.words.set(layout::INTERRUPT_WAITS, u64::from(waits));
    }

    /// Whether a waiting x87 instruction would raise #MF, which comes before its access.
    pub(crate) fn x87_exception_waits(&self) -> bool {
        self.cpu.vcpu.regs.fx.fsw() & 0x80 != 0
    }

    /// Whether the access is the fetch after a branch that the run ends with: it is not done then.
    pub(crate) fn ends_with_fetch(&self, access: Access, site: Site) -> bool {
        access == Access::Exec && site.unretired == 1 && self.words.get(layout::BUDGET) == 0
    }

    /// Whether the vCPU is as translated code expects it, with the TLB of the same address space.
    pub(crate) fn is_undisturbed(&self) -> bool {
        let vcpu = &*self.cpu.vcpu;
        vcpu.tlb.space() == self.space
            && vcpu.activity == Activity::Running
            && !vcpu.attention
            && !vcpu.needs_step()
    }

    /// Makes RIP and the branch count right after a branch to another page; the new RIP.
    pub(crate) fn arrived(&mut self) -> u64 {
        let page = self.words.get(layout::PAGE);
        let rip = page + (self.words.get(layout::EXIT_ADDRESS) & PAGE_MASK);
        self.settle(rip, 0);
        rip
    }

    /// Makes RIP and the branch count right.
    pub(crate) fn settle(&mut self, rip: u64, unretired: u8) {
        self.cpu.vcpu.regs.gpr[gpr::RIP] = rip;
        let left = self.words.get(layout::BUDGET).wrapping_add(u64::from(unretired));
        self.cpu.vcpu.branches = self.until - left;
    }

    /// Whether nothing was done since the last branch retired, be it that its target was fetched:
    /// RIP and the branch count are right.
    pub(crate) fn is_behind_branch(&self) -> bool {
        self.words.get(layout::NOT_BEHIND) != self.until - self.cpu.vcpu.branches
    }

    /// Linear address of the access that missed.
    pub(crate) fn missed(&self, access: Access) -> u64 {
        let field = match access {
            Access::Read => tlb::READ,
            Access::Write => tlb::WRITE,
            Access::Exec => tlb::EXEC,
        };
        let side = tlb::side(self.cpu.vcpu.mode.walk_side);
        let entry = side + self.words.get(layout::EXIT_INDEX) as usize;
        self.words.get(layout::EXIT_ADDRESS) ^ self.words.get(layout::in_block(entry + field))
    }

    /// Caches the walk for the access to `gva`, which missed; false if only the fall-back engine
    /// can do it.
    pub(crate) fn fill(&mut self, access: Access, gva: u64, size: u64) -> bool {
        let side = self.cpu.vcpu.mode.walk_side;
        if (gva & PAGE_MASK) + size > PAGE_SIZE || !self.cpu.is_valid_linear(gva) {
            return false;
        }
        let Ok(Place::Ram(_)) = self.cpu.translate(side, gva, access) else { return false };
        let tlb = &self.cpu.vcpu.tlb;
        match access {
            Access::Read => tlb.lookup_read(side, gva).is_some(),
            Access::Write => tlb.lookup_write(side, gva).is_some(),
            Access::Exec => tlb.lookup_exec(side, gva).is_some(),
        }
    }
}
