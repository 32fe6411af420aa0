//! The vCPU: everything about an x86-64 processor but how its instructions are executed.
//!
//! Invariants: no host fact is visible to the guest; guest faults are values ([`Exception`]),
//! never errors or panics; what is derived (TLB, mode) is never saved.

#![forbid(unsafe_code)]

mod access;
mod apic;
pub mod branch;
mod bus;
mod control;
pub mod cpuid;
mod engine;
mod exception;
mod far;
mod fpu;
mod interrupt;
pub mod lapic;
pub mod msr;
mod paging;
mod port;
mod registers;
mod saved;
pub mod segment;
mod stack;
mod state;
pub mod tlb;

pub use access::{ACCESS_SIZE_MAX, Word};
pub use bus::{Bus, EmptyBus};
pub use engine::{Engine, Exit};
pub use exception::{Exception, Result, vector};
pub use far::{FarPointer, syscall_segments, sysret_segments};
pub use fpu::{SaveForm, Unit};
pub use interrupt::Cause;
pub use paging::{Access, PHYSICAL_BITS, Place, SettledWalk};
pub use registers::{FxArea, Registers, StatusFlags, flag, gpr};
pub use saved::VcpuSaved;
pub use stack::{Stack, stack_mask};
pub use state::{
    Activity, DR6_BS, Mode, Msrs, Pending, Seg, Segment, Shadow, Table, Vcpu, attr, cr,
};

/// A vCPU with what it is connected to for the length of a run.
pub struct Cpu<'a> {
    /// The vCPU.
    pub vcpu: &'a mut Vcpu,
    /// Guest RAM.
    pub ram: &'a mut memory::Ram,
    /// Devices and the clock.
    pub bus: &'a mut dyn Bus,
}
