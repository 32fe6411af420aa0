//! A gdb server for machines that run, and for those that travel in time: gdb's commands become
//! journeys.
//!
//! gdb sees one thread, the vCPU. Memory is read by guest virtual address through the page tables
//! in use, or those of any process (`monitor cr3`). Nothing can be written: the past is what it
//! was. Breakpoints and watchpoints are in any number, and cost the guest nothing between hits.

#![forbid(unsafe_code)]

mod arch;
mod debugger;
mod monitor;
mod past;
mod serve;
mod subject;
mod symbols;

pub use arch::X86Registers;
pub use debugger::Debugger;
pub use serve::{ServeError, serve};
pub use subject::{Move, Subject};
pub use symbols::{Named, Symbols};
