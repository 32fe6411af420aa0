//! Locks on image files, in the scheme of QEMU's `block/file-posix.c`, so that a running QEMU or
//! `qemu-img` and this program keep out of each other's way.
//!
//! QEMU numbers what a user may do with an image: 0 consistent read, 1 write, 2 write unchanged
//! data, 3 resize. A user takes a *shared* open-file-description lock on byte 100+n for each n it
//! does itself, and on byte 200+n for each n it does not allow others. Then it asks the kernel
//! whether an exclusive lock *would* conflict on 200+n for each of its own n, and on 100+n for each
//! n it forbids. Nobody ever holds an exclusive lock, so a file open for reading is enough.
//!
//! The lock lives as long as the open file description: until the last duplicate is closed.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::DiskError;

const PERMISSION_BASE: i64 = 100;
const FORBIDDEN_BASE: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What a use of an image does, and what it does not allow others meanwhile.
struct Claim {
    does: &'static [i64],
    forbids: &'static [i64],
}

/// Readers forbid writing and resizing; a writer reads, writes and resizes as well.
const READER: Claim = Claim { does: &[CONSISTENT_READ], forbids: &[WRITE, RESIZE] };
const WRITER: Claim = Claim { does: &[CONSISTENT_READ, WRITE, RESIZE], forbids: &[WRITE, RESIZE] };

/// Locks `file` for one writer or for many readers; dropped with the file.
///
/// Fails with [`DiskError::InUse`] if another process excludes this use, [`DiskError::Lock`] if
/// the file system has no locks.
pub(crate) fn lock(file: &File, path: &Path, writable: bool) -> Result<(), DiskError> {
    let claim = if writable { &WRITER } else { &READER };
    let failed = |errno: Errno| match errno {
        Errno::EAGAIN | Errno::EACCES => DiskError::InUse { path: path.into() },
        other => DiskError::Lock { path: path.into(), source: io::Error::from(other) },
    };
    for byte in bytes(PERMISSION_BASE, claim.does).chain(bytes(FORBIDDEN_BASE, claim.forbids)) {
        let request = byte_lock(libc::F_RDLCK, byte);
        fcntl(file, FcntlArg::F_OFD_SETLK(&request)).map_err(failed)?;
    }
    for byte in bytes(FORBIDDEN_BASE, claim.does).chain(bytes(PERMISSION_BASE, claim.forbids)) {
        let mut probe = byte_lock(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).map_err(failed)?;
        if probe.l_type != libc::F_UNLCK as i16 {
            return Err(DiskError::InUse { path: path.into() });
        }
    }
    Ok(())
}

/// Turns a writer's lock into a reader's: this process writes no more, others may read.
///
/// Fails with [`DiskError::Lock`].
pub(crate) fn downgrade(file: &File, path: &Path) -> Result<(), DiskError> {
    for does in [WRITE, RESIZE] {
        let request = byte_lock(libc::F_UNLCK, PERMISSION_BASE + does);
        fcntl(file, FcntlArg::F_OFD_SETLK(&request))
            .map_err(|errno| DiskError::Lock { path: path.into(), source: errno.into() })?;
    }
    Ok(())
}

/// Turns a reader's lock into a writer's.
///
/// Fails with [`DiskError::InUse`] while others read, and the lock is a reader's then.
pub(crate) fn upgrade(file: &File, path: &Path) -> Result<(), DiskError> {
    lock(file, path, true).inspect_err(|_| {
        let _ = downgrade(file, path);
    })
}

fn bytes(base: i64, numbers: &'static [i64]) -> impl Iterator<Item = i64> {
    numbers.iter().map(move |number| base + number)
}

fn byte_lock(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
