//! Where things are in a case's address space, the same for the host process and the guest.

/// Two pages that can be read and executed; the instruction is in them.
pub const CODE: u64 = 0x1000_0000;
/// Size of the code pages.
pub const CODE_SIZE: u64 = 0x2000;
/// Start of data: [`WRITABLE_SIZE`] bytes to read and write, then one page to read only.
/// The pages before and after are absent.
pub const DATA: u64 = 0x2000_0000;
/// Bytes of data that can be written.
pub const WRITABLE_SIZE: u64 = 0x3000;
/// All bytes of data.
pub const DATA_SIZE: u64 = 0x4000;

/// The byte that data holds at `offset` unless the case says otherwise. Part of the corpus format.
pub fn pattern(offset: u64) -> u8 {
    let mixed = (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995;
    (mixed >> (offset % 8 * 8)) as u8
}
