//! Offsets and bits of the registers (SDM vol. 3, tables 11-1 and 11-6).

/// IA32_APIC_BASE.
pub(super) mod base {
    pub const BOOTSTRAP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const ADDRESS: u64 = ((1 << crate::PHYSICAL_BITS) - 1) & !0xfff;
    pub const ADDRESS_RESET: u64 = 0xfee0_0000;
}

/// Register offsets in the memory-mapped page; an x2APIC MSR is 0x800 plus a sixteenth of it.
pub(super) mod offset {
    pub const ID: u32 = 0x020;
    pub const VERSION: u32 = 0x030;
    pub const TPR: u32 = 0x080;
    pub const APR: u32 = 0x090;
    pub const PPR: u32 = 0x0a0;
    pub const EOI: u32 = 0x0b0;
    pub const RRD: u32 = 0x0c0;
    pub const LDR: u32 = 0x0d0;
    pub const DFR: u32 = 0x0e0;
    pub const SVR: u32 = 0x0f0;
    pub const ISR: u32 = 0x100;
    pub const ISR_LAST: u32 = 0x170;
    pub const TMR: u32 = 0x180;
    pub const TMR_LAST: u32 = 0x1f0;
    pub const IRR: u32 = 0x200;
    pub const IRR_LAST: u32 = 0x270;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT: u32 = 0x320;
    pub const LVT_LAST: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Version 0x14, six LVT entries, no suppression of EOI broadcasts.
pub(super) const VERSION: u32 = 0x0005_0014;

/// SVR: the APIC is enabled by software.
pub(super) const SVR_ENABLE: u32 = 1 << 8;
/// SVR after reset: spurious vector 0xff, disabled.
pub(super) const SVR_RESET: u32 = 0xff;
/// SVR bits that can be written: vector, enable, focus checking.
pub(super) const SVR_WRITABLE: u32 = 0x3ff;

/// Bits of the error status register.
pub(super) mod error {
    pub const SEND_ILLEGAL_VECTOR: u8 = 1 << 5;
    pub const RECEIVED_ILLEGAL_VECTOR: u8 = 1 << 6;
    pub const ILLEGAL_REGISTER: u8 = 1 << 7;
}

/// The local vector table: indices of entries and their bits (SDM figure 11-8).
pub(super) mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;

    pub const MODE: u32 = 7 << 8;
    pub const MODE_FIXED: u32 = 0 << 8;
    pub const MODE_NMI: u32 = 4 << 8;
    pub const MODE_INIT: u32 = 5 << 8;
    pub const MODE_EXTINT: u32 = 7 << 8;
    pub const MASKED: u32 = 1 << 16;

    /// What software may write to each entry.
    pub const WRITABLE: [u32; 6] = [0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];
    /// Delivery status and remote IRR: read-only, not reserved.
    pub const READ_ONLY: u32 = 0x5000;
}

/// The interrupt command register (SDM figures 11-12 and 11-28).
pub(super) mod icr {
    pub const LOGICAL: u64 = 1 << 11;
    pub const BUSY: u64 = 1 << 12;
    pub const ASSERT: u64 = 1 << 14;
    pub const SHORTHAND_SHIFT: u32 = 18;
    pub const DESTINATION_SHIFT: u32 = 32;
    /// Low half: vector, delivery mode, destination mode, level, trigger, shorthand.
    pub const LOW_WRITABLE: u64 = 0xc_cfff;
    /// Reserved in x2APIC mode.
    pub const X2APIC_RESERVED: u64 = 0xfff3_2000;
}
