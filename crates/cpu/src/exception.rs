//! Exceptions as values: what the guest did wrong, to be delivered through its IDT.

/// Vectors (SDM vol. 3, table 6-1).
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// A synchronous exception that the current instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which, 0..32.
    pub vector: u8,
    /// Pushed after the return address, where the vector has one.
    pub error_code: Option<u32>,
    /// Linear address for CR2 (#PF) or cause bits for DR6 (#DB); 0 otherwise.
    pub payload: u64,
}

/// Result of an operation that may raise an exception in the guest.
pub type Result<T> = std::result::Result<T, Exception>;

impl Exception {
    const fn plain(vector: u8) -> Exception {
        Exception { vector, error_code: None, payload: 0 }
    }

    const fn with_code(vector: u8, code: u32) -> Exception {
        Exception { vector, error_code: Some(code), payload: 0 }
    }

    /// #DE, divide error.
    pub const DE: Exception = Exception::plain(vector::DE);
    /// #UD, invalid opcode.
    pub const UD: Exception = Exception::plain(vector::UD);
    /// #NM, device not available.
    pub const NM: Exception = Exception::plain(vector::NM);
    /// #MF, x87 error.
    pub const MF: Exception = Exception::plain(vector::MF);
    /// #XM, SIMD floating-point error.
    pub const XM: Exception = Exception::plain(vector::XM);
    /// #BR, bound range exceeded.
    pub const BR: Exception = Exception::plain(vector::BR);
    /// #AC(0), alignment check.
    pub const AC0: Exception = Exception::with_code(vector::AC, 0);
    /// #GP(0).
    pub const GP0: Exception = Exception::with_code(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Exception = Exception::with_code(vector::SS, 0);

    /// #GP with a selector or IDT error code.
    pub const fn gp(code: u32) -> Exception {
        Exception::with_code(vector::GP, code)
    }

    /// The same, raised while an event from outside the program, or an earlier exception, was
    /// delivered: its error code has EXT set (SDM vol. 3, 6.13).
    pub(crate) fn external(self) -> Exception {
        match self.vector {
            vector::TS | vector::NP | vector::SS | vector::GP => {
                Exception { error_code: self.error_code.map(|code| code | 1), ..self }
            }
            _ => self,
        }
    }

    /// #TS with a selector.
    pub const fn ts(code: u32) -> Exception {
        Exception::with_code(vector::TS, code)
    }

    /// #NP with a selector.
    pub const fn np(code: u32) -> Exception {
        Exception::with_code(vector::NP, code)
    }

    /// #SS with a selector.
    pub const fn ss(code: u32) -> Exception {
        Exception::with_code(vector::SS, code)
    }

    /// #PF at linear address `gva`.
    pub const fn pf(code: u32, gva: u64) -> Exception {
        Exception { vector: vector::PF, error_code: Some(code), payload: gva }
    }

    /// #DB with the DR6 bits that say why.
    pub const fn db(dr6: u64) -> Exception {
        Exception { vector: vector::DB, error_code: None, payload: dr6 }
    }

    /// Whether it is one of the contributory exceptions (SDM vol. 3, table 6-4).
    pub const fn is_contributory(vector: u8) -> bool {
        matches!(vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
    }
}
