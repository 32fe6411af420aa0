//! The one trait every kind of disk implements.

use crate::DiskError;

/// A disk of fixed size, addressed by byte. Calls are synchronous; one thread owns a backend.
///
/// Every operation fails with [`DiskError::OutOfRange`] if it reaches past [`size`], those that
/// change the disk with [`DiskError::ReadOnly`] on a read-only one, and otherwise with
/// [`DiskError::Io`] when the host fails.
///
/// [`size`]: BlockBackend::size
pub trait BlockBackend: Send {
    /// Bytes of the disk, a multiple of 512.
    fn size(&self) -> u64;

    /// Whether the disk refuses changes.
    fn read_only(&self) -> bool;

    /// Fills `buffer` from byte `offset`.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;

    /// Writes all of `data` at byte `offset`. Durable after the next successful [`flush`].
    ///
    /// [`flush`]: BlockBackend::flush
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Makes everything written so far durable. Once it has failed it keeps failing with
    /// [`DiskError::FlushLost`], because the kernel forgets which pages it could not write.
    fn flush(&mut self) -> Result<(), DiskError>;

    /// Gives back the storage of a range if possible; it reads as zeroes from now on.
    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Makes a range read as zeroes, keeping its storage where possible.
    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;
}

/// Checks that `len` bytes at `offset` lie within `size`.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange { offset, len, size }),
    }
}
