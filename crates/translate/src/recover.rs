//! Hardware exceptions raised inside translations: the thread continues at the trampoline that
//! leaves, what is known of the exception in words, and the dispatcher serves the access or has the
//! fall-back engine raise the guest's exception.

use cpu::StatusFlags;
use cpu::gpr::RSP;
use native::signal::{self, Interrupted, Watch};

use crate::TranslateError;
use crate::code_memory::CodeMemory;
use crate::dispatch::{Next, Translator};
use crate::fallback::Reason;
use crate::layout::{self, Budget, Flags};
use crate::leaving::Leaving;
use crate::shadow::Served;
use crate::site::{FaultSite, Faults};
use crate::words::Words;

/// Vector of #PF.
const PAGE_FAULT: u64 = 14;

/// Watches `code`, whose trampoline for faults is at offset `trampoline`.
pub(crate) fn watch(code: &CodeMemory, trampoline: u32) -> Result<Watch, TranslateError> {
    let (base, size) = (code.base() as usize, code.size());
    // SAFETY: `leave` touches its arguments and words; the trampoline is code of this code memory,
    // which is mapped as long as it is watched, and keeps the contract of translations.
    let watch = unsafe { signal::watch(base, size, trampoline as usize, leave) };
    Ok(watch?)
}

fn leave(trampoline: usize, base: usize, at: &mut Interrupted) -> bool {
    // Where instructions may fault RSP is the address of the words.
    let words = Words(std::ptr::with_exposed_provenance_mut(at.rsp as usize));
    words.set(layout::FAULT_RIP, at.rip);
    words.set(layout::FAULT_FLAGS, at.rflags);
    words.set(layout::FAULT_RAX, at.rax);
    words.set(layout::FAULT_VECTOR, at.vector as u64);
    words.set(layout::FAULT_ADDRESS, at.address);
    at.rip = (base + trampoline) as u64;
    true
}

impl Translator {
    /// The hardware raised an exception: the access goes on once its page is in the shadow, or by
    /// the TLB; anything else is executed again by the fall-back engine.
    pub(crate) fn recover(&mut self, leaving: &mut Leaving<'_, '_>) -> Next {
        let host_rip = leaving.words.get(layout::FAULT_RIP);
        let Some(site) = self.cache.fault_site(host_rip) else {
            panic!("host fault at {host_rip:#x} in a translation, at no known instruction");
        };
        let page_fault = leaving.words.get(layout::FAULT_VECTOR) == PAGE_FAULT;
        let served = match site.faults {
            Faults::Budget => Served::Not,
            Faults::Check | Faults::Moved | Faults::Access(_) if page_fault => {
                self.serve(leaving, site, host_rip)
            }
            Faults::Moved => Served::Not,
            _ => Served::Raises,
        };
        if served == Served::Whole {
            return Next::Enter(self.cache.trampolines().again);
        }
        if site.flags == Flags::Host {
            let flags = leaving.words.get(layout::FAULT_FLAGS);
            leaving.cpu.vcpu.regs.status = StatusFlags::from_rflags(flags);
        }
        for (word, gpr) in site.held.registers() {
            leaving.cpu.vcpu.regs.gpr[gpr] = leaving.words.get(word);
        }
        let rsp = &mut leaving.cpu.vcpu.regs.gpr[RSP];
        *rsp = rsp.wrapping_add_signed(site.ahead.into());
        if site.budget == Budget::Rsi {
            leaving.words.set(layout::BUDGET, leaving.words.get(layout::EXIT_INDEX));
        }
        let rip = leaving.words.get(layout::PAGE).wrapping_add(u64::from(site.offset));
        leaving.settle(rip, site.unretired);
        // The instruction before is done, and this one not begun.
        let between = site.faults == Faults::Moved;
        if between
            || leaving.cpu.vcpu.branches >= leaving.until
            || (site.faults == Faults::Budget && self.ends_early(leaving))
        {
            return Next::Boundary;
        }
        if served == Served::Raises {
            self.step_for(leaving.cpu, Reason::Exception);
            return Next::Boundary;
        }
        if !leaving.cpu.vcpu.attention
            && self.shadow.is_of(&leaving.cpu.vcpu.tlb, leaving.mode.side)
            && let Some((_, entry)) = self.careful(leaving, rip)
        {
            leaving.words.set(layout::BUDGET, leaving.until - leaving.cpu.vcpu.branches);
            return Next::Enter(entry);
        }
        Next::Boundary
    }

    /// Whether the access that faulted can be done now where it is.
    fn serve(&mut self, leaving: &mut Leaving<'_, '_>, site: FaultSite, host_rip: u64) -> Served {
        let address = leaving.words.get(layout::FAULT_ADDRESS);
        if leaving.x87_exception_waits() || !self.fills.may_help(host_rip as u32, address) {
            return Served::Not;
        }
        let changes = leaving.cpu.vcpu.tlb.changes();
        let served = self.shadow.serve(leaving.cpu, address, site.faults);
        if served != Served::Whole {
            return served;
        }
        self.statistics.shadowed += 1;
        let goes_on = leaving.cpu.vcpu.tlb.changes() == changes
            && self.cache.is_right(leaving.cpu.ram)
            && self.may_enter(leaving);
        if goes_on { Served::Whole } else { Served::Not }
    }
}
