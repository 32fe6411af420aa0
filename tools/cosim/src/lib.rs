//! Random instructions with random state, run for real and by our executors, compared in
//! everything: registers, flags, memory, fault.
//!
//! ```text
//! generate::Generator -> Case -> host::HostExecutor  (ground truth) -> Outcome \
//!                            `-> stub::StubExecutor, ... (under test) -> Outcome -> compare
//! ```

// UNSAFETY: the host executor jumps to the instruction under test and handles what it raises.
#![allow(unsafe_code)]

pub mod address;
pub mod case;
mod choice;
pub mod compare;
pub mod corpus;
pub mod coverage;
pub mod engine;
pub mod generate;
pub mod host;
pub mod layout;
pub mod random;
pub mod report;
pub mod stub;

pub use case::{Case, Executor, Fault, Outcome};
