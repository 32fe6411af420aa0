//! The translating engine: guest code is rewritten block by block into host code that keeps the
//! guest's registers in the host's and looks every address up in the software TLB.
//!
//! Invariants: whatever is not translated, and whatever a fast path cannot do (faults, devices,
//! watched pages, page crossings), is executed by the fall-back engine, one instruction at a
//! time, from a state that is exactly the guest's before that instruction; so the two engines
//! agree at every execution point. No page is ever writable and executable at once through one
//! mapping. The contract of generated code is in [`layout`]; docs/translator.md explains.

// UNSAFETY: this crate generates machine code, jumps to it, and handles its signals.
#![allow(unsafe_code)]

mod address;
mod assembler;
mod block;
mod breakpoints;
mod cache;
mod classify;
mod code_memory;
mod compute;
mod control;
mod crossing;
mod direct;
mod dispatch;
mod effects;
mod encode;
mod engine;
mod entry;
mod fallback;
mod fetch;
mod fills;
mod flags;
mod group;
mod helper;
mod key;
mod layout;
mod leaving;
mod linear;
mod mirror;
mod operands;
mod options;
mod plan;
mod recover;
mod region;
mod shadow;
mod site;
mod stack;
mod statistics;
mod string;
mod stub;
mod system;
mod tables;
#[cfg(test)]
mod tests;
mod trampoline;
mod words;
mod x87;

pub use dispatch::Translator;
pub use options::{Options, Shadowing};

/// Why a translator cannot be had on this host.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// The host CPU or its code memory will not do.
    #[error(transparent)]
    Native(#[from] native::NativeError),
    /// Code memory could not be mapped.
    #[error("cannot map code memory for translations: {0}")]
    CodeMemory(#[source] std::io::Error),
}
