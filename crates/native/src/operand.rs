//! The stand-in memory operand: bytes a stub reads and writes in place of guest memory.

/// Largest operand, FSAVE's 108 bytes, with room to spare.
const DATA_MAX: usize = 576;

/// Stand-in for the memory operand of one instruction.
///
/// The data starts at the guest address modulo 64, so that the hardware's alignment checks
/// (MOVAPS, CMPXCHG16B) fault here exactly when they would in the guest.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Operand {
    bytes: [u8; 64 + DATA_MAX],
    misalignment: usize,
}

macro_rules! accessors {
    ($($load:ident $store:ident $type:ty),*) => { $(
        /// The first bytes as a little-endian number.
        #[inline]
        pub fn $load(&self) -> $type {
            let at = self.start();
            let bytes = &self.bytes[at..at + size_of::<$type>()];
            <$type>::from_le_bytes(bytes.try_into().expect("length is the type's"))
        }

        /// Sets the first bytes to a little-endian number.
        #[inline]
        pub fn $store(&mut self, value: $type) {
            let at = self.start();
            self.bytes[at..at + size_of::<$type>()].copy_from_slice(&value.to_le_bytes());
        }
    )* };
}

impl Operand {
    /// Zeroed, aligned to 64.
    pub const fn new() -> Operand {
        Operand { bytes: [0; 64 + DATA_MAX], misalignment: 0 }
    }

    /// Places the data as `guest_address` lies within its 64 bytes. Contents are then unspecified.
    #[inline]
    pub fn align(&mut self, guest_address: u64) {
        self.misalignment = (guest_address & 63) as usize;
    }

    #[inline]
    fn start(&self) -> usize {
        self.misalignment & 63
    }

    accessors! {
        load_u8 store_u8 u8, load_u16 store_u16 u16, load_u32 store_u32 u32,
        load_u64 store_u64 u64, load_u128 store_u128 u128
    }

    /// The first `len` bytes.
    #[inline]
    pub fn slice(&self, len: usize) -> &[u8] {
        let at = self.start();
        &self.bytes[at..at + len]
    }

    /// The first `len` bytes, to be written.
    #[inline]
    pub fn slice_mut(&mut self, len: usize) -> &mut [u8] {
        let at = self.start();
        &mut self.bytes[at..at + len]
    }

    #[inline]
    pub(crate) fn data(&mut self) -> *mut u8 {
        let at = self.start();
        self.bytes[at..].as_mut_ptr()
    }
}

impl Default for Operand {
    fn default() -> Self {
        Operand::new()
    }
}
