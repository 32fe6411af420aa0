//! The mapping of guest RAM: a memfd, mapped shared once, with bounds-checked copies in and out.
//!
//! UNSAFETY: this file owns the raw mapping; everything above it is safe.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is zero, not a multiple of a page, or beyond what addresses can name.
    #[error("guest memory of {size} bytes: it must be a multiple of 4096 between {min} and {max}")]
    Size {
        /// Bytes asked for.
        size: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// The host refused the mapping.
    #[error("the host cannot map {size} bytes of guest memory; use a smaller --memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
}

/// One shared, zero-filled mapping of a memfd.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    size: u64,
    file: File,
}

// SAFETY: the mapping is plain memory that lives as long as `Mapping`; access goes through
// `&Mapping` reads and `&mut Mapping` writes, so sending it to another thread is sound.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn new(size: u64) -> Result<Mapping, RamError> {
        let fail = || RamError::Map { size, source: std::io::Error::last_os_error() };
        // SAFETY: the name is a valid C string; the flags are documented.
        let fd = unsafe { libc::memfd_create(c"doppel-ram".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(fail());
        }
        // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size).map_err(|source| RamError::Map { size, source })?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), size as usize, protection, flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(fail());
        }
        // SAFETY: advice on a mapping we own; failure is harmless (small pages).
        unsafe { libc::madvise(at, size as usize, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(at.cast::<u8>()).ok_or_else(fail)?;
        Ok(Mapping { base, size, file })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Pointer to `len` bytes at `offset`; panics outside the mapping (a bug of the caller).
    #[inline(always)]
    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        assert!(offset <= self.size && len as u64 <= self.size - offset, "RAM offset {offset:#x}");
        // SAFETY: `offset` is within the mapping, as asserted.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, offset: u64) -> [u8; N] {
        let from = self.at(offset, N);
        // SAFETY: N bytes at `from` are mapped; arrays of bytes have alignment 1. Volatile because
        // the kernel may write the pages concurrently on behalf of registered I/O.
        unsafe { from.cast::<[u8; N]>().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store<const N: usize>(&mut self, offset: u64, value: [u8; N]) {
        let to = self.at(offset, N);
        // SAFETY: as in `load`; `&mut self` excludes other writers of this process.
        unsafe { to.cast::<[u8; N]>().write_volatile(value) }
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: source is mapped for the whole length and cannot overlap a Rust slice.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: destination is mapped for the whole length and cannot overlap a Rust slice.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Calls `with` on the bytes of one page.
    pub(crate) fn with_page<R>(&self, page: u64, with: impl FnOnce(&[u8; 4096]) -> R) -> R {
        let bytes = self.load::<4096>(page * 4096);
        with(&bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and size are those of the mapping made in `new`; nothing refers to it now
        // (views borrow the `Ram` that owns this).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}
