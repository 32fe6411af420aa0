//! When: the execution point (branches, rip, iterations) and virtual time in nanoseconds.

use std::fmt;
use std::time::Duration;

/// Nanoseconds of guest time since the machine was created; a function of the branch count.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualTime(pub u64);

impl VirtualTime {
    /// The end of time; a timer armed at it never fires.
    pub const MAX: VirtualTime = VirtualTime(u64::MAX);

    /// `self` plus `ns` nanoseconds, saturating at [`VirtualTime::MAX`].
    #[must_use]
    pub const fn saturating_add_ns(self, ns: u64) -> VirtualTime {
        VirtualTime(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`, 0 if `earlier` is later.
    pub const fn ns_since(self, earlier: VirtualTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Guest time as a [`Duration`] since the machine was created.
    pub const fn duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl fmt::Debug for VirtualTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtualTime({self})")
    }
}

impl fmt::Display for VirtualTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// Where an execution is (mechanism L1): before the instruction at `rip`, after `branches`
/// retired branches and `iterations` completed iterations of a repeated string instruction.
///
/// Two points of one execution are ordered by (branches, iterations, progress of `rip`); `rip`
/// alone is compared only for equality.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ExecutionPoint {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// Retired branches; see `cpu::branch` for what counts.
    pub branches: u64,
    /// Offset of the next instruction in its code segment.
    pub rip: u64,
    /// Completed iterations of the repeated string instruction at `rip`, else 0.
    pub iterations: u64,
}

impl fmt::Debug for ExecutionPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutionPoint({self})")
    }
}

impl fmt::Display for ExecutionPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu {} branch {} rip {:#x}", self.vcpu, self.branches, self.rip)?;
        if self.iterations != 0 {
            write!(f, " iteration {}", self.iterations)?;
        }
        Ok(())
    }
}
