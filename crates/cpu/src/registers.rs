//! Registers that instructions compute on, laid out for native stubs and translated code.

/// Indices into [`Registers::gpr`].
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R11: usize = 11;
    /// Index of RIP, so that RIP-relative addresses need no case of their own.
    pub const RIP: usize = 16;
    /// Index of a register that is always zero: an absent base or index.
    pub const ZERO: usize = 17;
}

/// Bits of RFLAGS (SDM vol. 1, 3.4.3).
pub mod flag {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six status flags that arithmetic writes.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every flag that exists, status flags excluded.
    pub const OTHER: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// The status flags in the form `SETO AL` and `LAHF` leave them, so that a stub loads and stores
/// them with two bytes moved and no PUSHF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFlags {
    /// OF: 0 or 1.
    pub overflow: u8,
    /// SF, ZF, AF, PF and CF at their places in RFLAGS; bit 1 is set, bits 3 and 5 clear.
    pub low: u8,
}

impl StatusFlags {
    /// The status flags of `rflags`.
    #[inline]
    pub const fn from_rflags(rflags: u64) -> StatusFlags {
        let low = (rflags & (flag::STATUS & 0xff)) as u8 | flag::FIXED as u8;
        StatusFlags { overflow: ((rflags & flag::OF) != 0) as u8, low }
    }

    /// The flags at their places in RFLAGS, bit 1 set.
    #[inline]
    pub const fn to_rflags(self) -> u64 {
        ((self.overflow as u64) << 11) | self.low as u64
    }
}

/// The legacy FXSAVE area (SDM vol. 1, 10.5.1, 64-bit format): x87/MMX state and MXCSR.
///
/// The XMM part and the FPU instruction and data pointers in it are not guest state and are kept
/// zero; XMM registers live in [`Registers::ymm`].
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct FxArea(pub [u8; 512]);

impl FxArea {
    /// State after INIT: FCW 0x37F, FTW empty, MXCSR 0x1F80.
    pub const fn init() -> FxArea {
        let mut bytes = [0; 512];
        bytes[0] = 0x7f;
        bytes[1] = 0x03;
        bytes[24] = 0x80;
        bytes[25] = 0x1f;
        FxArea(bytes)
    }

    /// x87 control word.
    pub fn fcw(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    /// x87 status word.
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// SSE control and status.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes([self.0[24], self.0[25], self.0[26], self.0[27]])
    }

    /// Sets SSE control and status.
    pub fn set_mxcsr(&mut self, mxcsr: u32) {
        self.0[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    }
}

/// Everything an unprivileged computation reads or writes. `repr(C)`: stubs and translated code
/// address its fields by `offset_of!`.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Registers {
    /// The sixteen GPRs, RIP, and a zero; see [`gpr`].
    pub gpr: [u64; 18],
    /// The status flags.
    pub status: StatusFlags,
    /// RFLAGS less the status flags and bit 1; see [`flag::OTHER`].
    pub rflags_other: u64,
    /// YMM0 to YMM15, low quadword first.
    pub ymm: [[u64; 4]; 16],
    /// x87 state and MXCSR.
    pub fx: FxArea,
}

impl Registers {
    /// State after power-up reset, but for RIP, RDX and segments (SDM vol. 3, 10.1.1).
    pub const fn reset() -> Registers {
        Registers {
            gpr: [0; 18],
            status: StatusFlags::from_rflags(0),
            rflags_other: 0,
            ymm: [[0; 4]; 16],
            fx: FxArea::init(),
        }
    }

    /// RFLAGS whole.
    #[inline]
    pub const fn rflags(&self) -> u64 {
        self.status.to_rflags() | self.rflags_other
    }

    /// Sets RFLAGS; bits that do not exist are dropped.
    #[inline]
    pub const fn set_rflags(&mut self, rflags: u64) {
        self.status = StatusFlags::from_rflags(rflags);
        self.rflags_other = rflags & flag::OTHER;
    }

    /// The instruction pointer.
    #[inline]
    pub const fn rip(&self) -> u64 {
        self.gpr[gpr::RIP]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rflags_round_trip_keeps_every_existing_bit() {
        let mut registers = Registers::reset();
        assert_eq!(registers.rflags(), flag::FIXED);
        registers.set_rflags(u64::MAX);
        assert_eq!(registers.rflags(), flag::STATUS | flag::OTHER | flag::FIXED);
        registers.set_rflags(flag::OF | flag::CF | flag::IF);
        assert_eq!(registers.rflags(), flag::OF | flag::CF | flag::IF | flag::FIXED);
    }
}
