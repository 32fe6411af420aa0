//! Running to an execution point: timers fire, interrupts are delivered and outputs leave at
//! points that follow from the state alone.

use cpu::{Activity, Cpu, Engine, Exit};
use devices::PowerEvent;
use journal::{DiskCompletion, DiskRequest, Output};
use types::VirtualTime;

use crate::machine::Machine;

/// Times an engine may come back without a branch executed until the machine gives control back:
/// one endless string instruction, for instance, must not hold the monitor.
const STILL_EXITS_MAX: u32 = 256;
/// Slow pieces of work in a slice, each of 2 to 10 microseconds.
const PATIENCE: u32 = 32;

/// Why the machine gave control back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The branch count is what was asked for.
    Reached,
    /// The next instruction is at a breakpoint of the engine's.
    Breakpoint,
    /// The watch of this number was written to, by the instruction before or by a device.
    Touched(usize),
    /// Nothing happened; run again. Never visible to the guest.
    Yielded,
    /// The vCPU is halted until `deadline` or an input.
    Idle {
        /// When the next timer fires, if one is armed.
        deadline: Option<VirtualTime>,
    },
    /// The guest changed the power state, or ended the run.
    Power(PowerEvent),
    /// Triple fault.
    Shutdown,
}

/// Where outputs go, and disk completions come from. What it answers is a function of the
/// outputs alone, so it is no source of non-determinism.
pub trait Outside {
    /// Something leaves the machine.
    fn output(&mut self, output: Output);

    /// What left the machine at one point is complete.
    fn outputs_complete(&mut self) {}

    /// Waits until request `id` of disk `disk` is done. The point at which it enters the machine
    /// is fixed already; if the host is slower than the model, the guest stands still.
    fn disk_wait(&mut self, disk: u32, id: u64) -> DiskCompletion;
}

fn hand_over(outputs: Vec<Output>, outside: &mut dyn Outside) {
    if !outputs.is_empty() {
        outputs.into_iter().for_each(|output| outside.output(output));
        outside.outputs_complete();
    }
}

impl Machine {
    /// Runs until the branch count is `until`, exactly, or something else stops it.
    pub fn run(&mut self, engine: &mut dyn Engine, outside: &mut dyn Outside, until: u64) -> Stop {
        self.vcpu.patience = None;
        self.run_with_patience(engine, outside, until)
    }

    /// As [`Machine::run`], but after much slow work it is content with fewer branches: `until` was
    /// chosen for the time that branches usually take, and first writes and new code may take a
    /// hundred times as long. The engine may leave out the last few branches too, where stopping
    /// exactly takes longer. [`Stop::Reached`] is at a branch all the same.
    pub fn run_slice(
        &mut self,
        engine: &mut dyn Engine,
        outside: &mut dyn Outside,
        until: u64,
    ) -> Stop {
        self.vcpu.patience = Some(PATIENCE);
        self.run_with_patience(engine, outside, until)
    }

    fn run_with_patience(
        &mut self,
        engine: &mut dyn Engine,
        outside: &mut dyn Outside,
        mut until: u64,
    ) -> Stop {
        let mut still_exits = 0;
        while still_exits < STILL_EXITS_MAX {
            if let Some(stop) = self.between_runs(outside, until) {
                return stop;
            }
            let before = self.vcpu.branches;
            let next = until.min(self.next_deadline_branches());
            let mut cpu = Cpu { vcpu: &mut self.vcpu, ram: &mut self.ram, bus: &mut self.board };
            cpu.sync_tlb();
            let exit = engine.run(&mut cpu, next);
            if let Some(stop) = self.debugger_stop(exit) {
                self.settle(outside);
                return stop;
            }
            if exit == Exit::Yielded {
                break;
            }
            still_exits = if self.vcpu.branches == before { still_exits + 1 } else { 0 };
            if exit == Exit::Ended {
                until = self.vcpu.branches;
            } else if self.vcpu.patience == Some(0) {
                until = until.min(self.vcpu.branches + 1);
            }
        }
        self.settle(outside);
        Stop::Yielded
    }

    /// Makes virtual time the deadline that the idle vCPU waits for, if there is one. That it did
    /// so, how often, is part of the execution point: an iteration of waiting.
    pub fn skip_idle(&mut self, outside: &mut dyn Outside) {
        let Some(deadline) = self.next_deadline() else { return };
        if self.vcpu.activity == Activity::Halted {
            self.board.clock.skip_to(self.vcpu.branches, deadline);
            self.vcpu.iterations += 1;
            self.settle(outside);
        }
    }

    /// Executes one instruction, or delivers the interrupt that comes before it.
    pub fn step(&mut self, engine: &mut dyn Engine, outside: &mut dyn Outside) -> Stop {
        let before = self.vcpu.branches;
        if let Some(stop) = self.between_runs(outside, u64::MAX) {
            return stop;
        }
        if self.vcpu.branches == before {
            let mut cpu = Cpu { vcpu: &mut self.vcpu, ram: &mut self.ram, bus: &mut self.board };
            cpu.sync_tlb();
            engine.step(&mut cpu);
        }
        self.settle(outside);
        self.touched().map_or(Stop::Reached, Stop::Touched)
    }

    /// Everything that happens at an instruction boundary, then why to stop there, if at all.
    fn between_runs(&mut self, outside: &mut dyn Outside, until: u64) -> Option<Stop> {
        self.board.attention = false;
        self.settle(outside);
        if let Some(event) = self.board.power_event.take() {
            return Some(Stop::Power(event));
        }
        if self.vcpu.activity == Activity::Shutdown {
            return Some(Stop::Shutdown);
        }
        // A stop is before the interrupts of its point, so that inputs injected there come first.
        if self.vcpu.branches >= until {
            return Some(Stop::Reached);
        }
        let mut cpu = Cpu { vcpu: &mut self.vcpu, ram: &mut self.ram, bus: &mut self.board };
        while cpu.service_pending() {}
        (self.vcpu.activity == Activity::Halted)
            .then(|| Stop::Idle { deadline: self.next_deadline() })
    }

    /// Lets timers fire that are due and messages arrive. After it the state is the same however
    /// often it is called, so that inputs find the same machine live and in replay.
    pub fn settle(&mut self, outside: &mut dyn Outside) {
        self.give_out(outside);
        self.fire_due_timers(outside);
        self.deliver_messages();
    }

    /// Disk requests that left and have not come back, by disk: a restored machine needs them done
    /// again (mechanisms C7, C8, F13).
    pub fn outstanding(&self) -> Vec<(u32, DiskRequest)> {
        let disks = (0..).zip(&self.board.disk_slots);
        let of_disk = |(disk, slot): (u32, &u8)| {
            let requests = self.board.pci.outstanding(*slot);
            requests.into_iter().map(move |request| (disk, request))
        };
        disks.flat_map(of_disk).collect()
    }

    fn give_out(&mut self, outside: &mut dyn Outside) {
        hand_over(self.board.take_outputs(), outside);
    }

    fn fire_due_timers(&mut self, outside: &mut dyn Outside) {
        let now = self.now();
        if self.vcpu.lapic.timer_deadline().is_some_and(|at| at <= now) {
            self.vcpu.lapic.timer_fired(now);
        }
        let mut wait = |board: &mut crate::board::Board, disk, id| {
            hand_over(board.take_outputs(), outside);
            outside.disk_wait(disk, id)
        };
        while self.board.fire_due(&mut self.ram, now, &mut wait) {}
        self.give_out(outside);
    }

    fn deliver_messages(&mut self) {
        for message in std::mem::take(&mut self.board.messages) {
            self.vcpu.receive_message(&message);
        }
    }

    fn next_deadline(&self) -> Option<VirtualTime> {
        let lapic = self.vcpu.lapic.timer_deadline();
        self.board.timers.deadline().into_iter().chain(lapic).min()
    }

    fn next_deadline_branches(&self) -> u64 {
        let deadline = self.next_deadline().unwrap_or(VirtualTime::MAX);
        self.board.clock.branches_at(deadline).max(self.vcpu.branches + 1)
    }
}
