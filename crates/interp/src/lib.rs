//! The reference engine: decodes, executes one instruction at a time, exact about faults.
//!
//! Anything that only computes on registers and at most one memory operand runs on the host CPU
//! through a stub of `native`; what is left is memory, control flow and the system instructions,
//! one file per family. Invariants: an instruction that faults has changed nothing but accessed
//! and dirty bits; what is cached (blocks, stubs) never shows.

#![forbid(unsafe_code)]

mod bcd;
mod branches;
mod cache;
mod condition;
mod data;
mod decode;
mod exec;
mod gather;
mod insn;
mod native_ops;
mod stack_ops;
mod string;
mod string_bulk;
mod system;
mod system_fpu;
mod system_segments;

pub use exec::Interp;
