//! The whole deterministic computer: wiring, schedule, timers, inputs, outputs, state hash.
//!
//! Invariants: the same state with the same inputs at the same execution points has the same
//! future, bit for bit; input enters only through [`Machine::inject`]; output leaves only through
//! [`Outside`]; nothing here knows an engine, the host's clock, threads, files or sockets.

#![forbid(unsafe_code)]

mod board;
mod bus;
mod clock;
mod debug;
mod input;
mod machine;
mod run;
mod saved;
mod spec;
mod timers;

pub use clock::Clock;
pub use debug::WatchKind;
pub use input::Observer;
pub use machine::Machine;
pub use run::{Outside, Stop};
pub use spec::{DiskSpec, MachineError, MachineSpec, NicSpec, console_port};

/// Which function of state and inputs this machine is: the same number, the same future to the
/// bit, whatever the engine. It goes up with every change after which an older recording would
/// come to another state (what an instruction or a device does, what is saved, how time passes).
pub const SEMANTICS: u32 = 1;
