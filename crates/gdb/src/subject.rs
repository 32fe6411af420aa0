//! What gdb can be put on: a recording that is travelled in, or a machine that runs.

use travel::{Halt, NotMapped, Stops};

use crate::arch::X86Registers;
use crate::symbols::Symbols;

/// How gdb wants the machine to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// On, until something of the stops happens.
    GoOn,
    /// One instruction on.
    Step,
    /// Back, until something of the stops happens.
    GoBack,
    /// One instruction back.
    StepBack,
}

impl Move {
    /// Whether it leads back.
    pub fn is_back(self) -> bool {
        matches!(self, Move::GoBack | Move::StepBack)
    }
}

/// A machine with one vCPU that stands still between journeys.
pub trait Subject {
    /// Why it can be debugged no longer.
    type Error: std::fmt::Display;

    /// What [`Subject::monitor`] knows, a line for each command.
    const HELP: &'static str;

    /// The registers.
    ///
    /// # Errors
    /// When the machine is gone.
    fn registers(&mut self) -> Result<X86Registers, Self::Error>;

    /// Copies guest memory at virtual address `gva`, by the page tables that `cr3` leads to, or
    /// those in use.
    ///
    /// # Errors
    /// [`NotMapped`] with the first address where nothing is.
    fn read(&mut self, cr3: Option<u64>, gva: u64, into: &mut [u8]) -> Result<(), NotMapped>;

    /// Moves; `interrupted` says when gdb wants it to halt.
    ///
    /// # Errors
    /// When it cannot move.
    fn go(
        &mut self,
        how: Move,
        stops: &Stops,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, Self::Error>;

    /// Why it cannot go back, and how to get what can; `None` if it can.
    fn no_way_back(&mut self) -> Option<String>;

    /// Does a command of its own; what to print, or `None` if it knows no such. `tick` is to be
    /// called now and then on long journeys.
    ///
    /// # Errors
    /// When it could not move as it had to.
    fn monitor(
        &mut self,
        symbols: &Symbols,
        words: &[&str],
        tick: &mut dyn FnMut(),
    ) -> Result<Option<String>, Self::Error>;
}
