//! The translator as an engine: a run to a branch count, and a single step.

use cpu::{Cpu, Engine, Exit};

use crate::classify::Mode;
use crate::dispatch::Translator;
use crate::entry::SOFT_RUN;
use crate::shadow::FILL_WORK;

/// Makes the TLB ready for generated code.
fn prepare(cpu: &mut Cpu<'_>) {
    cpu.vcpu.tlb.set_bias(cpu.ram.base().as_ptr() as u64);
}

impl Engine for Translator {
    fn run(&mut self, cpu: &mut Cpu<'_>, until: u64) -> Exit {
        prepare(cpu);
        cpu.vcpu.attention = false;
        self.turns = 0;
        self.soft =
            cpu.vcpu.patience.is_some() && until.saturating_sub(cpu.vcpu.branches) > SOFT_RUN;
        let (before, begun) = (Mode::of(cpu.vcpu, &self.shadow), cpu.vcpu.branches);
        let filled = self.statistics.fills;
        self.ended = None;
        let mut exit = self.run_to(cpu, until);
        if exit == Exit::Attention && self.ended == Some(cpu.vcpu.branches) {
            exit = Exit::Ended;
        }
        if let Some(mode) = before
            && Mode::of(cpu.vcpu, &self.shadow) == Some(mode)
        {
            let fills = self.statistics.fills - filled;
            self.shadow.note_work(cpu, mode, cpu.vcpu.branches - begun + fills * FILL_WORK);
        }
        exit
    }

    /// By the fall-back engine, unless blocks are of one instruction and not linked: then by
    /// translation.
    fn step(&mut self, cpu: &mut Cpu<'_>) -> Exit {
        if self.options.block_insns_max != 1 || self.options.links {
            return self.fallback.step(cpu);
        }
        prepare(cpu);
        cpu.vcpu.attention = false;
        self.turns = 0;
        (self.stepping, self.soft) = (true, false);
        let before = cpu.vcpu.point();
        // What a dispatch comes to may be no more than a change of the TLB.
        while cpu.vcpu.point() == before && cpu.vcpu.boundary(u64::MAX).is_none() {
            self.dispatch(cpu, u64::MAX);
        }
        self.stepping = false;
        cpu.vcpu.boundary(u64::MAX).unwrap_or(Exit::Reached)
    }

    fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.cache.set_breakpoints(addresses, &mut self.statistics);
        self.fallback.set_breakpoints(addresses);
    }

    fn instructions(&self) -> u64 {
        self.fallback.instructions() + self.instructions
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.statistics.counters();
        counters.push(("address spaces shadowed".to_owned(), self.shadow.begun));
        let (code, tables) = self.cache.bytes();
        counters.push(("bytes of code memory in use".to_owned(), code as u64));
        counters.push(("bytes of its tables".to_owned(), tables as u64));
        counters.extend(self.fallbacks.counters());
        counters
    }

    fn name(&self) -> &'static str {
        "translate"
    }
}
