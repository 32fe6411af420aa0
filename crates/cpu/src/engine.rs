//! The seam between a vCPU and what executes its instructions.

use crate::{Activity, Cpu, Vcpu};

/// Why an engine gave control back. No host fact is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The branch count is what was asked for.
    Reached,
    /// The run ended before that, right behind a branch: an exact one to the branch count as it is
    /// now would have left the same state. Only where the vCPU's `patience` allows it.
    Ended,
    /// The machine or the vCPU asked for attention at this instruction boundary: an interrupt may
    /// have become deliverable, a timer or line changed, the power state changes.
    Attention,
    /// HLT.
    Halted,
    /// Triple fault.
    Shutdown,
    /// The next instruction is at a breakpoint of a debugger outside the guest.
    Breakpoint,
    /// Nothing happened, but the engine lets its caller look around. Never visible to the guest.
    Yielded,
}

impl Vcpu {
    /// Why an engine that runs to branch count `until` must stop before the next instruction, if it
    /// must.
    #[inline]
    pub fn boundary(&self, until: u64) -> Option<Exit> {
        match self.activity {
            Activity::Running => {}
            Activity::Halted => return Some(Exit::Halted),
            Activity::Shutdown => return Some(Exit::Shutdown),
        }
        if self.attention {
            return Some(Exit::Attention);
        }
        (self.branches >= until).then_some(Exit::Reached)
    }
}

/// Executes instructions. Every engine gives the same state at the same execution point.
pub trait Engine: Send {
    /// Runs until the vCPU's branch count is `until`, exactly, or until an [`Exit`] before that.
    /// Leaves at an instruction boundary (or between iterations of a repeated string
    /// instruction) with all of the vCPU's state in place.
    fn run(&mut self, cpu: &mut Cpu<'_>, until: u64) -> Exit;

    /// Executes one instruction (one iteration of a repeated string instruction), or delivers the
    /// exception it raises.
    fn step(&mut self, cpu: &mut Cpu<'_>) -> Exit;

    /// From now on [`Engine::run`] stops before an instruction at one of these linear addresses,
    /// also if it begins there. A debugger sets them; the guest cannot tell.
    fn set_breakpoints(&mut self, addresses: &[u64]);

    /// Instructions begun so far; a statistic of the engine, not state of the guest.
    fn instructions(&self) -> u64;

    /// Counters for people who tune the engine, by name; not state of the guest.
    fn counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// Short name for messages.
    fn name(&self) -> &'static str;
}
