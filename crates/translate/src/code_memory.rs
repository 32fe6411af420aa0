//! Memory for translations: one memfd mapped twice, writable here, executable there.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use types::PAGE_SIZE;

use crate::TranslateError;

/// The two views.
pub(crate) struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    size: usize,
    /// Where the host provided pages last.
    provided: Range<usize>,
}

/// Bytes that the host provides together: a fault for each page of each view takes longer.
const TOGETHER: usize = 256 << 10;

// SAFETY: the mappings belong to this value alone and are not bound to a thread.
unsafe impl Send for CodeMemory {}

fn map(size: usize, protection: i32, fd: i32) -> Result<*mut u8, TranslateError> {
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(TranslateError::CodeMemory(io::Error::last_os_error()));
    }
    Ok(address.cast())
}

fn memory_file(size: usize) -> Result<OwnedFd, TranslateError> {
    let failed = || TranslateError::CodeMemory(io::Error::last_os_error());
    // SAFETY: the name is a C string; the call has no other precondition.
    let fd = unsafe { libc::memfd_create(c"translations".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(failed());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no precondition beyond an open descriptor.
    if unsafe { libc::ftruncate(file.as_raw_fd(), size as libc::off_t) } != 0 {
        return Err(failed());
    }
    Ok(file)
}

impl CodeMemory {
    pub(crate) fn new(size: usize) -> Result<CodeMemory, TranslateError> {
        let file = memory_file(size)?;
        let fd = file.as_raw_fd();
        let writable = map(size, libc::PROT_READ | libc::PROT_WRITE, fd)?;
        let executable = map(size, libc::PROT_READ | libc::PROT_EXEC, fd).inspect_err(|_| {
            // SAFETY: mapped just above with this size; nothing refers to it.
            unsafe { libc::munmap(writable.cast(), size) };
        })?;
        Ok(CodeMemory { writable, executable, size, provided: 0..0 })
    }

    /// Address of the executable view.
    pub(crate) fn base(&self) -> u64 {
        self.executable as u64
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Gives back what the writable view costs the host, until it is written again.
    pub(crate) fn forget_writable(&mut self) {
        // SAFETY: this is the whole writable view, a shared mapping of a file: what was written
        // stays there, and only page-table entries go.
        unsafe { libc::madvise(self.writable.cast(), self.size, libc::MADV_DONTNEED) };
    }

    /// Has the host provide the pages at `range` and some behind it, up to `end`, where it does not
    /// have them: code is about to fill them one after the other. Where the host cannot do that
    /// (before Linux 5.14) each page comes when it is touched.
    pub(crate) fn provide(&mut self, range: Range<usize>, end: usize) {
        if self.provided.contains(&range.start) && range.end <= self.provided.end {
            return;
        }
        let start = range.start & !(PAGE_SIZE as usize - 1);
        let end = (start + TOGETHER).max(range.end).min(end);
        assert!(start <= end && end <= self.size);
        for (view, advice) in [
            (self.writable, libc::MADV_POPULATE_WRITE),
            (self.executable.cast_mut(), libc::MADV_POPULATE_READ),
        ] {
            // SAFETY: the range is inside the view, asserted above; its pages are there
            // afterwards, with what they hold.
            unsafe { libc::madvise(view.add(start).cast(), end - start, advice) };
        }
        self.provided = start..end;
    }

    /// Whether `bytes` are at `offset`.
    pub(crate) fn has(&self, offset: usize, bytes: &[u8]) -> bool {
        assert!(offset <= self.size && bytes.len() <= self.size - offset);
        // SAFETY: the range is inside the writable view, asserted above; no other reference to it
        // exists while this one does.
        let there = unsafe { std::slice::from_raw_parts(self.writable.add(offset), bytes.len()) };
        there == bytes
    }

    /// Puts `code` at `offset`.
    pub(crate) fn write(&mut self, offset: usize, code: &[u8]) {
        assert!(offset <= self.size && code.len() <= self.size - offset);
        // SAFETY: the range is inside the writable view, asserted above; no reference to it
        // exists, and the only thread that runs this code is the one that writes it.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(offset), code.len()) };
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for view in [self.writable, self.executable.cast_mut()] {
            // SAFETY: mapped in `new` with this size; nothing refers to it any more.
            unsafe { libc::munmap(view.cast(), self.size) };
        }
    }
}
