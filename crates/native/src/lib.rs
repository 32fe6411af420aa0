//! One guest instruction run on the host CPU with given registers and a stand-in memory operand.
//!
//! Invariants: code memory is never writable and executable through one mapping; a stub touches
//! nothing but the [`cpu::Registers`] and the [`Operand`] it is given; host state (callee-saved
//! registers, MXCSR, x87 control word, direction flag) is the same after a stub as before it; an
//! exception the guest's instruction raises is a value, [`NativeFault`].

// UNSAFETY: this crate generates machine code, jumps to it, and handles its signals.
#![allow(unsafe_code)]

pub mod approx;
mod assembler;
mod code_memory;
mod fault;
mod generate;
mod operand;
mod plan;
mod rewrite;
pub mod signal;
mod stubs;
mod support;
#[cfg(test)]
mod tests;

pub use fault::NativeFault;
pub use operand::Operand;
pub use plan::sized;
pub use rewrite::{is_computation, uses_x87};
pub use stubs::{Stub, Stubs};
pub use support::support;

/// Why native stubs cannot be had on this host.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The host CPU lacks instructions that the model offers to guests.
    #[error(
        "this host's CPU lacks {missing}, which the guest CPU model offers; \
             a CPU of the x86-64-v3 level with AES, PCLMULQDQ, SHA and ADX is needed"
    )]
    HostCpu {
        /// Names of the missing features, comma separated.
        missing: String,
    },
    /// Code memory could not be mapped.
    #[error("cannot map code memory: {0}")]
    CodeMemory(#[source] std::io::Error),
    /// Signal handlers could not be installed.
    #[error("cannot install the handler of hardware exceptions: {0}")]
    Signal(#[source] std::io::Error),
    /// More code memories at once than the handler can watch.
    #[error("too many code memories in one process (at most {max})")]
    TooMany {
        /// The limit.
        max: usize,
    },
}
