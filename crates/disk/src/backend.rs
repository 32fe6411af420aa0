//! The one trait every kind of disk implements.

use crate::DiskError;
use crate::overlay::TakenLayer;

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

    /// Where the bytes at `offset` are, and for how many, `len` at most, that holds.
    fn place(&mut self, offset: u64, len: u64) -> Result<(Place, u64), DiskError> {
        let _ = offset;
        Ok((Place::Here, len))
    }

    /// Gives up the image, to be hung below an overlay; the backend is of no use after that. If it
    /// fails, nothing changes.
    fn take_layer(&mut self) -> Result<TakenLayer, DiskError> {
        Err(DiskError::NoOverlay { why: "this kind of disk cannot have one" })
    }

    /// Whether there is something to do when no request waits.
    fn has_work(&self) -> bool {
        false
    }

    /// Does a little of it: at most a few hundred KiB of input and output.
    fn work(&mut self) {}
}

/// Where bytes of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image on top.
    Here,
    /// Nowhere: the image on top says that they are zero.
    Zero,
    /// Below it, or nowhere.
    Below,
}

/// Checks that `len` bytes at `offset` lie within `size`.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange { offset, len, size }),
    }
}
