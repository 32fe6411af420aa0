//! The mapping of guest RAM: a memfd, mapped shared once, or private copies of checkpoint files,
//! with bounds-checked copies in and out.
//!
//! UNSAFETY: this file owns the raw mapping; everything above it is safe.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

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

/// Address space that is mapped as long as anybody holds it.
struct Region {
    base: NonNull<u8>,
    size: u64,
}

// SAFETY: the region is plain memory, mapped until the last holder drops it. Writes go through the
// `&mut` of the one `Mapping`; reads from other threads are copies that their takers throw away
// unless nothing was written meanwhile (`cow`).
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and size are those of a mapping of ours, and nobody holds it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

/// RAM's mapping: a memfd shared and filled with zeroes, or private copies of checkpoint files.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    size: u64,
    file: Option<File>,
    region: Arc<Region>,
}

// SAFETY: `base` is the region's, which may be sent.
unsafe impl Send for Mapping {}

/// Reads pages while the mapping's owner may be writing them: the bytes are to be used only when
/// it is known afterwards that it was not.
#[derive(Clone)]
pub(crate) struct PageReader(Arc<Region>);

impl PageReader {
    /// Copies page `page`; panics outside the mapping (a bug of the caller).
    pub(crate) fn read_page(&self, page: usize, into: &mut [u8; 4096]) {
        let offset = page as u64 * 4096;
        assert!(offset < self.0.size, "RAM page {page}");
        // SAFETY: the page is mapped as long as the region is held. The copy is made by the C
        // library on memory that no Rust reference points to; what it yields under a concurrent
        // write is bytes of some sort, which the caller discards.
        unsafe {
            let from = self.0.base.as_ptr().add(offset as usize);
            libc::memcpy(into.as_mut_ptr().cast(), from.cast(), 4096);
        }
    }

    pub(crate) fn page_count(&self) -> usize {
        (self.0.size / 4096) as usize
    }
}

/// Maps `size` bytes at an address of the kernel's choice, or at `at`, over what is there.
fn map(
    at: Option<NonNull<u8>>,
    size: u64,
    flags: i32,
    from: Option<(&File, u64)>,
) -> Result<NonNull<u8>, RamError> {
    let fail = || RamError::Map { size, source: std::io::Error::last_os_error() };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let (fd, offset) = from.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
    let fixed = if at.is_some() { libc::MAP_FIXED } else { 0 };
    let address = at.map_or(std::ptr::null_mut(), |at| at.as_ptr().cast());
    // SAFETY: a fresh mapping overlaps nothing; a fixed one lies inside a region of ours, as every
    // caller checks, and no reference into it exists.
    let got = unsafe {
        libc::mmap(address, size as usize, protection, flags | fixed, fd, offset as libc::off_t)
    };
    if got == libc::MAP_FAILED {
        return Err(fail());
    }
    NonNull::new(got.cast::<u8>()).ok_or_else(fail)
}

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
        let base = map(None, size, libc::MAP_SHARED | libc::MAP_NORESERVE, Some((&file, 0)))?;
        // SAFETY: advice on a mapping we own; failure is harmless (small pages).
        unsafe { libc::madvise(base.as_ptr().cast(), size as usize, libc::MADV_HUGEPAGE) };
        let region = Arc::new(Region { base, size });
        Ok(Mapping { base, size, file: Some(file), region })
    }

    /// Zeroes that are private to this process, for [`Mapping::map_private`] to put files over.
    pub(crate) fn private(size: u64) -> Result<Mapping, RamError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = map(None, size, flags, None)?;
        Ok(Mapping { base, size, file: None, region: Arc::new(Region { base, size }) })
    }

    /// Puts a private copy of `size` bytes of `file` at the same offset as in the file, or zeroes
    /// if there is no file. Pages arrive when they are touched.
    pub(crate) fn map_private(
        &mut self,
        file: Option<&File>,
        offset: u64,
        size: u64,
    ) -> Result<(), RamError> {
        assert!(size.is_multiple_of(4096) && offset.is_multiple_of(4096));
        let at = NonNull::new(self.at(offset, size as usize)).expect("inside the mapping");
        let anonymous = if file.is_some() { 0 } else { libc::MAP_ANONYMOUS };
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous;
        map(Some(at), size, flags, file.map(|file| (file, offset))).map(drop)
    }

    /// A second reader, for another thread.
    pub(crate) fn reader(&self) -> PageReader {
        PageReader(Arc::clone(&self.region))
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
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
