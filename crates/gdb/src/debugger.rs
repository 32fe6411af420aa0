//! What gdb debugs: a traveller, and what gdb wants to be stopped at.

use std::time::Instant;

use gdbstub::common::Signal;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{
    ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use travel::{Halt, Stops, Travel, TravelError};

use crate::arch::{X86, X86Registers};
use crate::monitor;
use crate::symbols::Symbols;

/// How gdb wants the machine to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    GoOn,
    Step,
    GoBack,
    StepBack,
}

/// A traveller with a debugger on its back.
pub struct Debugger {
    pub(crate) travel: Travel,
    pub(crate) stops: Stops,
    pub(crate) wanted: Move,
    /// Page tables to read memory by, if not those in use.
    pub(crate) cr3: Option<u64>,
    pub(crate) symbols: Symbols,
    /// Breakpoints of `monitor break`, which gdb knows nothing of.
    pub(crate) asked: Vec<u64>,
}

impl Debugger {
    /// Debugs `travel` from where it is.
    pub fn new(travel: Travel) -> Debugger {
        let (stops, symbols) = (Stops::default(), Symbols::default());
        Debugger { travel, stops, wanted: Move::Step, cr3: None, symbols, asked: Vec::new() }
    }

    /// Names for the guest kernel's addresses.
    pub fn set_symbols(&mut self, symbols: Symbols) {
        self.symbols = symbols;
    }

    /// An address, with the name it has.
    pub(crate) fn name(&self, address: u64) -> String {
        let name = self.symbols.at(address).map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{address:#x}{name}")
    }

    /// The traveller.
    pub fn travel(&mut self) -> &mut Travel {
        &mut self.travel
    }

    /// Moves as gdb wants.
    pub(crate) fn go(
        &mut self,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, TravelError> {
        match self.wanted {
            Move::GoOn => self.travel.go_on(&self.stops, interrupted),
            Move::GoBack => self.travel.go_back(&self.stops, interrupted),
            Move::Step => self.travel.step(),
            Move::StepBack => self.travel.step_back(),
        }
    }
}

impl Target for Debugger {
    type Arch = X86;
    type Error = TravelError;

    fn base_ops(&mut self) -> BaseOps<'_, X86, TravelError> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Debugger {
    fn read_registers(&mut self, regs: &mut X86Registers) -> TargetResult<(), Self> {
        *regs = X86Registers::of(self.travel.machine().vcpu(), self.travel.linear_rip());
        Ok(())
    }

    fn write_registers(&mut self, _: &X86Registers) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        match self.travel.read(self.cr3, start, data) {
            Ok(()) => Ok(data.len()),
            Err(travel::NotMapped(at)) => match at.wrapping_sub(start) as usize {
                0 => Err(TargetError::NonFatal),
                readable => Ok(readable),
            },
        }
    }

    fn write_addrs(&mut self, _: u64, _: &[u8]) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadResume for Debugger {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), TravelError> {
        self.wanted = Move::GoOn;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Debugger {
    fn step(&mut self, _: Option<Signal>) -> Result<(), TravelError> {
        self.wanted = Move::Step;
        Ok(())
    }
}

impl ReverseCont<()> for Debugger {
    fn reverse_cont(&mut self) -> Result<(), TravelError> {
        self.wanted = Move::GoBack;
        Ok(())
    }
}

impl ReverseStep<()> for Debugger {
    fn reverse_step(&mut self, _: ()) -> Result<(), TravelError> {
        self.wanted = Move::StepBack;
        Ok(())
    }
}

impl Breakpoints for Debugger {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugger {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.stops.breakpoints.push(address);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(remove(&mut self.stops.breakpoints, &address))
    }
}

impl HwBreakpoint for Debugger {
    fn add_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.add_sw_breakpoint(address, kind)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.remove_sw_breakpoint(address, kind)
    }
}

impl HwWatchpoint for Debugger {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        if len == 0 || len > 4096 {
            return Ok(false);
        }
        match access(kind) {
            None => self.stops.watches.push((address, len)),
            Some(kind) => self.stops.accesses.push((address, len, kind)),
        }
        Ok(true)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(match access(kind) {
            None => remove(&mut self.stops.watches, &(address, len)),
            Some(kind) => remove(&mut self.stops.accesses, &(address, len, kind)),
        })
    }
}

/// How a watchpoint of gdb's is watched that is not for changes alone.
fn access(kind: WatchKind) -> Option<machine::WatchKind> {
    match kind {
        WatchKind::Write => None,
        WatchKind::Read => Some(machine::WatchKind::Loads),
        WatchKind::ReadWrite => Some(machine::WatchKind::Accesses),
    }
}

/// Removes one `item`; whether there was one.
pub(crate) fn remove<T: PartialEq>(items: &mut Vec<T>, item: &T) -> bool {
    let index = items.iter().position(|other| other == item);
    index.is_some_and(|index| {
        items.remove(index);
        true
    })
}

impl MonitorCmd for Debugger {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), TravelError> {
        let command = String::from_utf8_lossy(command).into_owned();
        let mut said = Instant::now();
        let answer = monitor::answer(self, &command, &mut || {
            if said.elapsed() >= monitor::PATIENCE {
                out.write_raw(b".");
                out.flush();
                said = Instant::now();
            }
        })?;
        out.write_raw(answer.as_bytes());
        Ok(())
    }
}
