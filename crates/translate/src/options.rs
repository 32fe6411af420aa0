//! Knobs. None of them changes what the guest sees; the tests turn them to prove it.

/// Whose accesses to memory go by the host's page tables instead of the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadowing {
    /// Nobody's.
    Never,
    /// Those of user code that has run for long enough to make up for what it costs.
    Earned,
    /// Stress: all user code from the first on, and code of kernels that live in the lower half.
    Always,
    /// Stress: the same, but it is lost after a few faults, now more, now less, and had again
    /// at once.
    Fickle,
}

impl Shadowing {
    /// Whether nothing need be earned.
    pub(crate) fn is_stress(self) -> bool {
        matches!(self, Shadowing::Always | Shadowing::Fickle)
    }
}

/// How a [`crate::Translator`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of code memory, at least 1 MiB; when they are used up, a sixteenth is emptied.
    pub cache_size: usize,
    /// Longest block, guest instructions; but for loops that are repeated.
    pub block_insns_max: usize,
    /// Blocks run on past conditional branches and through jumps.
    pub traces: bool,
    /// Accesses at constant distances share a TLB lookup.
    pub groups: bool,
    /// Whose accesses go by the host's page tables.
    pub shadow: Shadowing,
    /// Where accesses go by the host's page tables, runs go carefully for their last branches,
    /// about so many, to see their end coming instead of faulting.
    pub margin: u8,
    /// Direct branches go from translation to translation.
    pub links: bool,
    /// Stress: drop all translations after so many dispatches; 0 is never.
    pub flush_every: u64,
    /// Stress: every memory access takes the slow path, which is the fall-back engine.
    pub always_slow: bool,
    /// Count instructions begun (costs a little in each block).
    pub count_instructions: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache_size: 64 << 20,
            block_insns_max: 64,
            traces: true,
            groups: true,
            shadow: Shadowing::Earned,
            margin: 200,
            links: true,
            flush_every: 0,
            always_slow: false,
            count_instructions: false,
        }
    }
}
