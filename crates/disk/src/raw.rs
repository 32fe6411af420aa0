//! Raw images: a file or block device whose bytes are the disk's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::backend::check_range;
use crate::overlay::{Retained, TakenLayer, raw_access};
use crate::{BlockBackend, DiskError, Format, SECTOR_SIZE};

/// Zeroes written at once where the file system cannot make a range zero by itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A raw image, open and locked.
///
/// A file whose length is no multiple of 512 is refused for writing; for reading, the rest of the
/// last sector reads as zeroes.
#[derive(Debug)]
pub struct RawDisk {
    path: PathBuf,
    file: File,
    size: u64,
    read_only: bool,
    flush_lost: bool,
}

impl RawDisk {
    /// Takes over a locked `file` of `len` bytes.
    pub(crate) fn new(
        path: &Path,
        file: File,
        len: u64,
        read_only: bool,
    ) -> Result<RawDisk, DiskError> {
        let size = check_size(path, len, read_only)?;
        Ok(RawDisk { path: path.into(), file, size, read_only, flush_lost: false })
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: self.path.clone() });
        }
        check_range(offset, len, self.size)
    }

    fn failed(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> impl Fn(io::Error) -> DiskError {
        let path = self.path.clone();
        move |source| DiskError::Io { path: path.clone(), operation, offset, len, source }
    }

    /// Zeroes a range by the first of `ways` the file system knows, else by writing.
    fn zero(&self, offset: u64, len: u64, ways: [FallocateFlags; 2]) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        for way in ways {
            let flags = way | FallocateFlags::KEEP_SIZE;
            match retry(|| rustix::fs::fallocate(&self.file, flags, offset, len)) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NODEV) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.write_zero_bytes(offset, len)
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let chunk = len.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..chunk as usize], offset)?;
            offset += chunk;
            len -= chunk;
        }
        Ok(())
    }
}

/// Size in bytes of a disk held in `len` bytes of file, or why it cannot be one.
pub(crate) fn check_size(path: &Path, len: u64, read_only: bool) -> Result<u64, DiskError> {
    let refuse = |problem| Err(DiskError::Size { path: path.into(), size: len, problem });
    if len == 0 {
        return refuse("so there is nothing to read; give it a size with `truncate -s 1G`");
    }
    if len.is_multiple_of(SECTOR_SIZE) {
        return Ok(len);
    }
    if !read_only {
        return refuse(
            "which is no multiple of 512; pad it with `truncate -s %512` or add readonly",
        );
    }
    match len.checked_next_multiple_of(SECTOR_SIZE) {
        Some(size) => Ok(size),
        None => refuse("which is too much"),
    }
}

impl BlockBackend for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let len = buffer.len() as u64;
        check_range(offset, len, self.size)?;
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                // Past the end of the file: the padding of the last sector, or a file that
                // somebody shortened behind our lock.
                Ok(0) => {
                    buffer[done..].fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read", offset, len)(error)),
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let len = data.len() as u64;
        self.check_change(offset, len)?;
        self.file.write_all_at(data, offset).map_err(self.failed("write", offset, len))
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        if self.flush_lost {
            return Err(DiskError::FlushLost { path: self.path.clone() });
        }
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| {
            self.flush_lost = true;
            self.failed("flush", 0, self.size)(error)
        })
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        self.zero(offset, len, ways).map_err(self.failed("discard", offset, len))
    }

    fn take_layer(&mut self) -> Result<TakenLayer, DiskError> {
        self.check_change(0, 0)?;
        let clone = || {
            let failed = self.failed("duplicate", 0, 0);
            self.file.try_clone().map_err(failed)
        };
        let access = raw_access(&self.path, clone()?)?;
        let retained = Retained::new(&self.path, Format::Raw, self.size, clone()?);
        Ok(TakenLayer { access, retained })
    }

    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        let ways = [FallocateFlags::ZERO_RANGE, FallocateFlags::PUNCH_HOLE];
        self.zero(offset, len, ways).map_err(self.failed("zero", offset, len))
    }
}

fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
