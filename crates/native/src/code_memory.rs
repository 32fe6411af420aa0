//! Memory for generated code: one memfd mapped twice, writable here, executable there.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::NativeError;

/// Bytes of code memory; when they are used up, all stubs are dropped.
pub(crate) const CODE_SIZE: usize = 16 << 20;
/// A fault exit is recorded for each so many bytes of code.
pub(crate) const EXIT_GRAIN: usize = 16;
const EXITS_SIZE: usize = CODE_SIZE / EXIT_GRAIN * size_of::<u32>();

/// The two views, and the table that leads from a faulting address to its stub's fault exit.
pub(crate) struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    exits: *mut u32,
}

fn map(size: usize, protection: i32, flags: i32, fd: i32) -> Result<*mut u8, NativeError> {
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(NativeError::CodeMemory(io::Error::last_os_error()));
    }
    Ok(address.cast())
}

fn unmap(address: *mut u8, size: usize) {
    // SAFETY: the range was mapped by `map` with this size and nothing refers to it any more.
    unsafe { libc::munmap(address.cast(), size) };
}

fn memory_file() -> Result<OwnedFd, NativeError> {
    let failed = || NativeError::CodeMemory(io::Error::last_os_error());
    // SAFETY: the name is a C string; the call has no other precondition.
    let fd = unsafe { libc::memfd_create(c"native-stubs".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(failed());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no precondition beyond an open descriptor.
    if unsafe { libc::ftruncate(file.as_raw_fd(), CODE_SIZE as libc::off_t) } != 0 {
        return Err(failed());
    }
    Ok(file)
}

impl CodeMemory {
    pub(crate) fn new() -> Result<CodeMemory, NativeError> {
        let file = memory_file()?;
        let fd = file.as_raw_fd();
        let writable = map(CODE_SIZE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd)?;
        let executable = map(CODE_SIZE, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED, fd)
            .inspect_err(|_| unmap(writable, CODE_SIZE))?;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let exits =
            map(EXITS_SIZE, libc::PROT_READ | libc::PROT_WRITE, private, -1).inspect_err(|_| {
                unmap(writable, CODE_SIZE);
                unmap(executable, CODE_SIZE);
            })?;
        Ok(CodeMemory { writable, executable, exits: exits.cast() })
    }

    /// Address of the executable view.
    #[inline]
    pub(crate) fn base(&self) -> *const u8 {
        self.executable
    }

    /// The table of fault exits, one offset for each [`EXIT_GRAIN`] bytes of code.
    pub(crate) fn exits(&self) -> *mut u32 {
        self.exits
    }

    /// Puts `code` at `offset`, whose faults continue at `fault_exit` (an offset, too).
    pub(crate) fn write(&mut self, offset: usize, code: &[u8], fault_exit: u32) {
        assert!(offset.is_multiple_of(EXIT_GRAIN) && offset + code.len() <= CODE_SIZE);
        // SAFETY: the range is inside the writable view, asserted above; no reference to it
        // exists, and no thread runs code that a caller has not been given yet.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(offset), code.len()) };
        for grain in offset / EXIT_GRAIN..(offset + code.len()).div_ceil(EXIT_GRAIN) {
            // SAFETY: `grain` is below CODE_SIZE / EXIT_GRAIN, the table's length. The handler
            // reads it on the thread that runs a stub, after the write.
            unsafe { self.exits.add(grain).write(fault_exit) };
        }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        unmap(self.writable, CODE_SIZE);
        unmap(self.executable.cast_mut(), CODE_SIZE);
        unmap(self.exits.cast(), EXITS_SIZE);
    }
}
