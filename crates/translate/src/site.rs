//! Sites: the numbered places where translations leave, and what is known about them.

use std::num::NonZeroU32;

use cpu::Access;

use crate::layout::{Budget, Flags};
use crate::mirror::Held;

/// Number of a site in the cache's list.
pub(crate) type SiteId = u32;

/// The indirect-branch lookup found nothing: the target is PAGE plus EXIT_ADDRESS's low bits.
pub(crate) const SITE_LOOKUP: SiteId = 0x7fff_fff0;
/// A hardware exception at FAULT_RIP.
pub(crate) const SITE_FAULT: SiteId = 0x7fff_fff1;

/// Why a translation leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The budget is used up.
    Budget,
    /// The instruction here is for the fall-back engine.
    Step {
        /// Number of its mnemonic.
        mnemonic: u16,
        /// Bytes.
        len: u16,
        /// Where the translation of the next is: offset in code memory.
        then: Option<NonZeroU32>,
    },
    /// An access, or the target of a branch, missed the TLB; `resume` is where it is tried again.
    Miss {
        /// What it does.
        access: Access,
        /// Bytes.
        size: u16,
        /// Offset in code memory.
        resume: u32,
    },
    /// To the instruction at the site's offset; the jump at `patch` may be linked.
    Link {
        /// Offset in code memory of the jump's displacement.
        patch: u32,
        /// Offset in code memory of the code that leaves by this site.
        stub: u32,
        /// Where the flags are at the jump.
        flags: Flags,
        /// It is in code whose accesses go by the host's page tables.
        direct: bool,
    },
    /// To the target, in another page, whose host address is EXIT_ADDRESS; may be linked.
    Far {
        /// Offset in code memory of the address it is linked for.
        constant: u32,
        /// Offset in code memory of the code that leaves by this site.
        stub: u32,
        /// As in `Link`.
        direct: bool,
    },
    /// The instruction here reaches into the next page, and that is another one than when it was
    /// translated to the block with this entry.
    NextPage {
        /// Offset in code memory.
        entry: u32,
    },
    /// To the careful block at the site's offset; the jump at `patch` may be linked.
    Careful {
        /// Offset in code memory of the jump's displacement.
        patch: u32,
        /// Offset in code memory of the code that leaves by this site.
        stub: u32,
        /// It is where the block begins, and the budget does not last for it.
        begins: bool,
    },
    /// The run is to end here: few of its branches are left, and it need not be exact.
    Ending,
    /// Stands for where a far branch is, until it is emitted.
    Goto,
}

/// One site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) why: Why,
    /// Offset of the guest's RIP from the page, 0 to 4096.
    pub(crate) offset: u16,
    /// Branches that the block took off the budget and has not come to yet.
    pub(crate) unretired: u8,
    /// It is in a string instruction.
    pub(crate) in_string: bool,
}

/// An instruction that may raise a hardware exception, by where its host code is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultSite {
    /// Offset in code memory, and bytes.
    pub(crate) start: u32,
    pub(crate) size: u8,
    /// As in [`Site`].
    pub(crate) offset: u16,
    pub(crate) unretired: u8,
    /// Where the flags and the budget are when it faults.
    pub(crate) flags: Flags,
    pub(crate) budget: Budget,
    pub(crate) faults: Faults,
    /// Which guest registers the scratch registers hold that their words do not.
    pub(crate) held: Held,
    /// How many bytes guest RSP is above its register.
    pub(crate) ahead: i8,
}

impl FaultSite {
    /// Offset in code memory of what follows it.
    pub(crate) fn end(&self) -> u32 {
        self.start + u32::from(self.size)
    }
}

/// What may fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    /// The instruction, for reasons of its own.
    Instruction,
    /// The check whether the budget lasts for the block.
    Budget,
    /// The check whether its access may go by the host's page tables.
    Check,
    /// The same for a stack pointer that the instruction before moved.
    Moved,
    /// Its access, which does so.
    Access(Access),
}

/// From a far branch's constant to the displacement of its jump if the target is another.
pub(crate) const FAR_DIFFERS: u32 = 8 + 3 + 2;
/// From a far branch's constant to the displacement of its jump to the target.
pub(crate) const FAR_TARGET: u32 = FAR_DIFFERS + 4 + 1;
