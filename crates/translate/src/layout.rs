//! The contract of generated code: what lives where while it runs.
//!
//! ```text
//! host RSP       the words below (`word`), behind the TLB's entries; the stack above them is for
//!                exit numbers, and for signals that ask for no stack of their own
//! host RAX       the guest's status flags as LAHF and SETO leave them, or nothing ([`Flags`]); or
//!                scratch ([`crate::mirror`])
//! host RDI, RSI  scratch: the address of an access and its TLB index; or in RSI the budget
//!                ([`Budget`])
//! other twelve   guest registers, see [`HOME`]; four guest registers are kept in words
//! host YMM0..15  the guest's, and MXCSR too, if the word VECTORS is 1
//! host x87       the guest's if the word X87 is 1
//! ```
//! The budget is the number of branches that may still retire; a block that ends in a branch takes
//! its own off when it is entered. Every translation is entered with the flags in AX and the budget
//! in the word BUDGET; or at its other entry with the flags in RFLAGS and, where accesses go by the
//! host's page tables ([`crate::classify::Mode::direct`]), the budget in RSI. It may leave only
//! through `trampoline`'s exit, with the number of a site pushed, as for the first entry.

use cpu::tlb::layout as tlb;

use crate::group::GROUPS_MAX;

/// Host register numbers.
pub(crate) mod host {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RDX: u8 = 2;
    pub(crate) const RBX: u8 = 3;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const RBP: u8 = 5;
    pub(crate) const RSI: u8 = 6;
    pub(crate) const RDI: u8 = 7;
}

/// Where a guest register is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In a host register.
    Host(u8),
    /// In a word beside the TLB.
    Word(i32),
}

/// Displacement from RSP of word `index`. The first sixteen have short encodings.
pub(crate) const fn word(index: usize) -> i32 {
    assert!(index < tlb::SCRATCH_WORDS);
    (8 * index) as i32
}

/// Displacement from RSP of what is at `offset` in the TLB's block.
pub(crate) const fn in_block(offset: usize) -> i32 {
    offset as i32 - tlb::SCRATCH as i32
}

/// Branches that may still retire.
pub(crate) const BUDGET: i32 = word(0);
/// Linear address of the page whose code runs.
pub(crate) const PAGE: i32 = word(1);
const SPILLED: usize = 2;
/// Guest registers that are kept in words.
pub(crate) const SPILLED_COUNT: usize = 4;
const GROUPS: usize = 6;
/// 1 once the host's vector registers and MXCSR are the guest's; kept when translated code is left
/// for a moment, so that they are loaded again.
pub(crate) const VECTORS: i32 = word(14);
/// Free within one instruction, but not across a miss.
pub(crate) const TEMPORARY: i32 = word(15);
/// Address of the table of indirect branches for the current mode.
pub(crate) const BRANCH_TABLE: i32 = word(16);
/// Address of the guest's `Registers`.
pub(crate) const REGISTERS: i32 = word(17);
/// Bases of FS and GS.
pub(crate) const FS_BASE: i32 = word(18);
pub(crate) const GS_BASE: i32 = word(19);
/// Page and host address of a call's target while its return address is pushed.
pub(crate) const NEXT_PAGE: i32 = word(20);
pub(crate) const TARGET: i32 = word(21);
/// Number of the site that was left by, and RDI and RSI there.
pub(crate) const EXIT_SITE: i32 = word(22);
pub(crate) const EXIT_ADDRESS: i32 = word(23);
pub(crate) const EXIT_INDEX: i32 = word(24);
/// RIP and RFLAGS of a hardware exception.
pub(crate) const FAULT_RIP: i32 = word(25);
pub(crate) const FAULT_FLAGS: i32 = word(26);
/// The host's MXCSR and stack pointer.
pub(crate) const HOST_MXCSR: i32 = word(27);
pub(crate) const HOST_RSP: i32 = word(28);
/// Instructions begun, if they are counted.
pub(crate) const INSTRUCTIONS: i32 = word(29);
/// 1 if an interrupt would be delivered as soon as IF is set.
pub(crate) const INTERRUPT_WAITS: i32 = word(30);
/// While a string instruction runs: the flags, the host address it reads from, the count, and the
/// elements it does at once.
pub(crate) const STRING_FLAGS: i32 = word(31);
pub(crate) const STRING_SOURCE: i32 = word(32);
pub(crate) const STRING_COUNT: i32 = word(33);
pub(crate) const STRING_DONE: i32 = word(34);
/// 1 once the host's x87 state is the guest's; as VECTORS.
pub(crate) const X87: i32 = word(35);
/// Registers while x87 state is loaded.
pub(crate) const X87_SPILLED: [i32; 3] = [word(36), word(37), word(38)];

/// Number of the MSRs by which SYSCALL and SYSRET work; see [`crate::crossing::Gates`].
pub(crate) const GATE: i32 = word(39);

/// Addresses of the tables of indirect branches for the code that SYSRET and SYSCALL go to.
pub(crate) const USER_TABLE: i32 = word(40);
pub(crate) const KERNEL_TABLE: i32 = word(41);
/// Address of the table of indirect branches by linear address, and the target that is to be put in
/// it.
pub(crate) const LINEAR_TABLE: i32 = word(45);
pub(crate) const ARRIVED: i32 = word(46);
/// 1 if the run may end before its last branches.
pub(crate) const SOFT: i32 = word(47);
/// The budget when translated code was entered, or when a block ended without a branch, last: with
/// that budget an end of the run is not right behind a branch.
pub(crate) const NOT_BEHIND: i32 = word(48);
/// RAX, vector and address of a hardware exception, besides [`FAULT_RIP`] and [`FAULT_FLAGS`].
pub(crate) const FAULT_RAX: i32 = word(42);
pub(crate) const FAULT_VECTOR: i32 = word(43);
pub(crate) const FAULT_ADDRESS: i32 = word(44);

/// Host address of the first byte of a block's group `number`.
pub(crate) const fn group(number: usize) -> i32 {
    assert!(number < GROUPS_MAX);
    word(GROUPS + number)
}

/// The guest registers that are kept in words, in the order of those.
pub(crate) const SPILLED_GUESTS: [usize; SPILLED_COUNT] = [10, 11, 9, 15];

/// Which of the guest registers that are kept in words is the one of this word.
pub(crate) fn spilled(word: i32) -> usize {
    word as usize / 8 - SPILLED
}

/// Where each guest register is kept, by its number.
pub(crate) const HOME: [Home; 16] = [
    Home::Host(10),                // RAX
    Home::Host(host::RCX),         // RCX
    Home::Host(host::RDX),         // RDX
    Home::Host(host::RBX),         // RBX
    Home::Host(11),                // RSP
    Home::Host(host::RBP),         // RBP
    Home::Host(14),                // RSI
    Home::Host(15),                // RDI
    Home::Host(8),                 // R8
    Home::Word(word(SPILLED + 2)), // R9
    Home::Word(word(SPILLED)),     // R10
    Home::Word(word(SPILLED + 1)), // R11
    Home::Host(12),                // R12
    Home::Host(13),                // R13
    Home::Host(9),                 // R14
    Home::Word(word(SPILLED + 3)), // R15
];

const _: () = {
    let mut index = 0;
    while index < SPILLED_COUNT {
        let home = HOME[SPILLED_GUESTS[index]];
        assert!(matches!(home, Home::Word(at) if at == word(SPILLED + index)));
        index += 1;
    }
};

/// The host registers of guest RAX and RSP.
pub(crate) const GUEST_RAX: u8 = 10;
pub(crate) const GUEST_RSP: u8 = 11;

/// Where the guest's status flags are at a point of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// In RFLAGS.
    Host,
    /// In AX: OF in AL, the rest in AH.
    Saved,
    /// Nowhere, within a block: code of this number among its `redos` makes them.
    Redo(u8),
}

/// Where the budget is at a point of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Budget {
    /// In its word.
    Word,
    /// In RSI.
    Rsi,
}

/// Displacement from RSP of bytes of which one is loaded to see that a budget is not negative: the
/// one whose number is the budget, shifted as for `PASS`. They begin half a page away from the
/// words: where the low twelve bits of its address are those of a store before it, a load waits for
/// that.
pub(crate) const BUDGET_BYTES: i32 = in_block(BUDGET_BYTES_AT);
const BUDGET_BYTES_AT: usize = 2048;
/// Most that a budget is at once.
pub(crate) const BUDGET_MAX: u64 = 1 << 31;
const _: () =
    assert!(BUDGET_BYTES_AT as u64 + (BUDGET_MAX >> tlb::SCRATCH_COUNT) < tlb::SCRATCH as u64);

/// Slots of a table of indirect branches; a power of two.
pub(crate) const BRANCH_SLOTS: usize = 1 << 16;

/// One slot: the host address of a target's first byte, and of its translation.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BranchSlot {
    pub(crate) key: u64,
    pub(crate) target: u64,
}

/// The slot of a target; `trampoline` has the same in code.
pub(crate) fn branch_slot(key: u64) -> usize {
    let low = key as u32;
    ((low ^ (low >> 13)) as usize) & (BRANCH_SLOTS - 1)
}
