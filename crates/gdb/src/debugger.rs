//! A subject with gdb on its back: how gdb wants it to move, and what to stop at.

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
use travel::{Halt, Stops};

use crate::arch::{X86, X86Registers};
use crate::monitor;
use crate::subject::{Move, Subject};
use crate::symbols::Symbols;

/// A subject with a debugger on its back.
pub struct Debugger<S> {
    pub(crate) subject: S,
    pub(crate) stops: Stops,
    pub(crate) wanted: Move,
    /// Page tables to read memory by, if not those in use.
    pub(crate) cr3: Option<u64>,
    pub(crate) symbols: Symbols,
    /// Breakpoints of `monitor break`, which gdb knows nothing of.
    pub(crate) asked: Vec<u64>,
}

impl<S> Debugger<S> {
    /// Debugs `subject` from where it is.
    pub fn new(subject: S, symbols: Symbols) -> Debugger<S> {
        let (stops, wanted) = (Stops::default(), Move::Step);
        Debugger { subject, stops, wanted, cr3: None, symbols, asked: Vec::new() }
    }

    /// An address, with the name it has.
    pub(crate) fn name(&self, address: u64) -> String {
        let name = self.symbols.at(address).map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{address:#x}{name}")
    }

    /// What is debugged.
    pub fn subject(&mut self) -> &mut S {
        &mut self.subject
    }
}

impl<S: Subject> Debugger<S> {
    /// Moves as gdb wants.
    pub(crate) fn go(&mut self, interrupted: &mut dyn FnMut() -> bool) -> Result<Halt, S::Error> {
        self.subject.go(self.wanted, &self.stops, interrupted)
    }
}

impl<S: Subject> Target for Debugger<S> {
    type Arch = X86;
    type Error = S::Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86, S::Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl<S: Subject> SingleThreadBase for Debugger<S> {
    fn read_registers(&mut self, regs: &mut X86Registers) -> TargetResult<(), Self> {
        *regs = self.subject.registers().map_err(TargetError::Fatal)?;
        Ok(())
    }

    fn write_registers(&mut self, _: &X86Registers) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        match self.subject.read(self.cr3, start, data) {
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

impl<S: Subject> SingleThreadResume for Debugger<S> {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), S::Error> {
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

impl<S: Subject> SingleThreadSingleStep for Debugger<S> {
    fn step(&mut self, _: Option<Signal>) -> Result<(), S::Error> {
        self.wanted = Move::Step;
        Ok(())
    }
}

impl<S: Subject> ReverseCont<()> for Debugger<S> {
    fn reverse_cont(&mut self) -> Result<(), S::Error> {
        self.wanted = Move::GoBack;
        Ok(())
    }
}

impl<S: Subject> ReverseStep<()> for Debugger<S> {
    fn reverse_step(&mut self, _: ()) -> Result<(), S::Error> {
        self.wanted = Move::StepBack;
        Ok(())
    }
}

impl<S: Subject> Breakpoints for Debugger<S> {
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

impl<S: Subject> SwBreakpoint for Debugger<S> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.stops.breakpoints.push(address);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(remove(&mut self.stops.breakpoints, &address))
    }
}

impl<S: Subject> HwBreakpoint for Debugger<S> {
    fn add_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.add_sw_breakpoint(address, kind)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.remove_sw_breakpoint(address, kind)
    }
}

impl<S: Subject> HwWatchpoint for Debugger<S> {
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

impl<S: Subject> MonitorCmd for Debugger<S> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), S::Error> {
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
