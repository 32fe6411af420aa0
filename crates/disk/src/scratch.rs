//! A disk whose changes are forgotten: what a replay writes to, over an image that stays as it is.
//!
//! Changes go to the end of a nameless file, block by block, and a map says where the latest
//! version of each block is. So the disk as it was at any moment is a copy of the map: a
//! [`ScratchMoment`] costs nothing until the disk changes, and going back to it costs nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::check_range;
use crate::{BlockBackend, DiskError};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// In the map: the block reads as zeroes.
const ZEROES: u64 = u64::MAX;

type Map = Arc<BTreeMap<u64, u64>>;

/// A disk whose changes are forgotten; clones are the same disk, forks are not.
#[derive(Clone)]
pub struct ScratchDisk {
    store: Arc<Mutex<Store>>,
    view: Arc<Mutex<View>>,
    size: u64,
    read_only: bool,
}

/// What forks of a disk have in common.
struct Store {
    /// Images below: the disk at several moments that others kept.
    bases: Vec<Box<dyn BlockBackend>>,
    changes: File,
    /// Blocks in `changes`.
    blocks: u64,
}

/// What a disk shows.
#[derive(Clone)]
struct View {
    /// The base that `map` is over.
    base: usize,
    map: Map,
}

/// Both, locked in this order.
struct Inner<'a> {
    view: MutexGuard<'a, View>,
    store: MutexGuard<'a, Store>,
}

/// The contents of a [`ScratchDisk`] at one moment: what changed, over which of its bases.
#[derive(Clone, Debug)]
pub struct ScratchMoment(Map, usize);

impl ScratchDisk {
    /// A disk that shows `base`; what is written is kept in a file without a name in `folder`.
    /// The guest sees `read_only` as given.
    ///
    /// # Errors
    /// [`DiskError::Io`] when the file cannot be made.
    pub fn new(
        base: Box<dyn BlockBackend>,
        folder: &Path,
        read_only: bool,
    ) -> Result<ScratchDisk, DiskError> {
        let changes = nameless(folder).map_err(|source| DiskError::Io {
            path: folder.into(),
            operation: "create a file in",
            offset: 0,
            len: 0,
            source,
        })?;
        let size = base.size();
        let store = Store { bases: vec![base], changes, blocks: 0 };
        let view = View { base: 0, map: Map::default() };
        let (store, view) = (Arc::new(Mutex::new(store)), Arc::new(Mutex::new(view)));
        Ok(ScratchDisk { store, view, size, read_only })
    }

    /// Another disk that is what this one is now. Moments of either are moments of both.
    pub fn fork(&self) -> ScratchDisk {
        let view = self.lock().view.clone();
        ScratchDisk { view: Arc::new(Mutex::new(view)), ..self.clone() }
    }

    /// The disk as it is now.
    pub fn moment(&self) -> ScratchMoment {
        let inner = self.lock();
        ScratchMoment(Arc::clone(&inner.view.map), inner.view.base)
    }

    /// The disk becomes `base`, which has as many bytes: it as it was at another moment. What was
    /// over another base stays with that.
    ///
    /// # Panics
    /// When the sizes differ.
    pub fn put_over(&self, base: Box<dyn BlockBackend>) {
        assert_eq!(base.size(), self.size);
        let mut inner = self.lock();
        inner.store.bases.push(base);
        *inner.view = View { base: inner.store.bases.len() - 1, map: Map::default() };
    }

    /// The disk becomes what it was at `moment`, which is one of its own.
    pub fn go_to(&self, moment: &ScratchMoment) {
        let mut inner = self.lock();
        *inner.view = View { base: moment.1, map: Arc::clone(&moment.0) };
    }

    fn lock(&self) -> Inner<'_> {
        // A panic leaves at worst a block that nobody knows of.
        Inner {
            view: self.view.lock().unwrap_or_else(PoisonError::into_inner),
            store: self.store.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn change(&self, offset: u64, len: u64) -> Result<Inner<'_>, DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: "scratch".into() });
        }
        check_range(offset, len, self.size)?;
        Ok(self.lock())
    }
}

/// A file that is gone when it is closed.
pub(crate) fn nameless(folder: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?))
}

/// The pieces of a range by block: block, offset in it, length, offset in the range.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done;
        let step = (BLOCK - at % BLOCK).min(len - done);
        let piece = (at / BLOCK, at % BLOCK, step, done);
        done += step;
        Some(piece)
    })
}

impl Inner<'_> {
    /// Reads within one block.
    fn read(&mut self, block: u64, at: u64, into: &mut [u8]) -> Result<(), DiskError> {
        match self.view.map.get(&block) {
            None => self.store.bases[self.view.base].read_at(block * BLOCK + at, into),
            Some(&ZEROES) => {
                into.fill(0);
                Ok(())
            }
            Some(&place) => {
                self.store.changes.read_exact_at(into, place * BLOCK + at).map_err(failed("read"))
            }
        }
    }

    /// Writes within one block, as a new version of it.
    fn write(&mut self, block: u64, at: u64, data: &[u8], size: u64) -> Result<(), DiskError> {
        let mut whole = [0; BLOCK as usize];
        if (data.len() as u64) < BLOCK {
            let there = (size - block * BLOCK).min(BLOCK) as usize;
            self.read(block, 0, &mut whole[..there])?;
        }
        whole[at as usize..at as usize + data.len()].copy_from_slice(data);
        let place = self.store.blocks;
        self.store.changes.write_all_at(&whole, place * BLOCK).map_err(failed("write"))?;
        Arc::make_mut(&mut self.view.map).insert(block, place);
        self.store.blocks += 1;
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64, size: u64) -> Result<(), DiskError> {
        for (block, at, step, _) in pieces(offset, len) {
            if step == BLOCK {
                Arc::make_mut(&mut self.view.map).insert(block, ZEROES);
            } else {
                self.write(block, at, &[0; BLOCK as usize][..step as usize], size)?;
            }
        }
        Ok(())
    }
}

fn failed(operation: &'static str) -> impl Fn(std::io::Error) -> DiskError {
    move |source| DiskError::Io {
        path: "the replay's scratch file".into(),
        operation,
        offset: 0,
        len: BLOCK,
        source,
    }
}

impl BlockBackend for ScratchDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let len = buffer.len() as u64;
        check_range(offset, len, self.size)?;
        let mut inner = self.lock();
        if inner.view.map.is_empty() {
            let base = inner.view.base;
            return inner.store.bases[base].read_at(offset, buffer);
        }
        for (block, at, step, done) in pieces(offset, len) {
            inner.read(block, at, &mut buffer[done as usize..(done + step) as usize])?;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut inner = self.change(offset, data.len() as u64)?;
        for (block, at, step, done) in pieces(offset, data.len() as u64) {
            inner.write(block, at, &data[done as usize..(done + step) as usize], self.size)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.change(offset, len)?.zero(offset, len, self.size)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.change(offset, len)?.zero(offset, len, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of ones.
    struct Ones;

    impl BlockBackend for Ones {
        fn size(&self) -> u64 {
            3 * BLOCK + 512
        }
        fn read_only(&self) -> bool {
            true
        }
        fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            check_range(offset, buffer.len() as u64, self.size())?;
            buffer.fill(1);
            Ok(())
        }
        fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), DiskError> {
            unreachable!("the base is not written to")
        }
        fn flush(&mut self) -> Result<(), DiskError> {
            Ok(())
        }
        fn discard(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
            unreachable!("the base is not written to")
        }
        fn write_zeroes(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
            unreachable!("the base is not written to")
        }
    }

    fn contents(disk: &mut ScratchDisk) -> Vec<u8> {
        let mut bytes = vec![9; disk.size() as usize];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn scratch_disk_changes_and_goes_back_to_any_moment() {
        let mut disk = ScratchDisk::new(Box::new(Ones), &std::env::temp_dir(), false).unwrap();
        let mut expected = vec![1; disk.size() as usize];
        let mut moments = Vec::new();
        let mut change = |disk: &mut ScratchDisk, expected: &mut Vec<u8>, at: usize, len: usize| {
            moments.push((disk.moment(), expected.clone()));
            let data: Vec<u8> = (0..len).map(|n| (n * 7 + at) as u8).collect();
            disk.write_at(at as u64, &data).unwrap();
            expected[at..at + len].copy_from_slice(&data);
        };
        change(&mut disk, &mut expected, 512, 1024);
        change(&mut disk, &mut expected, 4096 - 512, 4096 + 1024);
        change(&mut disk, &mut expected, 3 * 4096, 512);
        disk.discard(4096, 8192).unwrap();
        expected[4096..3 * 4096].fill(0);
        disk.write_zeroes(0, 512).unwrap();
        expected[..512].fill(0);
        change(&mut disk, &mut expected, 5120, 512);
        assert_eq!(contents(&mut disk), expected);
        for (moment, expected) in moments.iter().rev().chain(&moments) {
            disk.go_to(moment);
            assert_eq!(&contents(&mut disk), expected);
        }
        assert!(disk.write_at(3 * 4096, &[0; 1024]).is_err());
    }

    #[test]
    fn fork_and_original_go_their_own_ways_and_know_each_others_moments() {
        let mut disk = ScratchDisk::new(Box::new(Ones), &std::env::temp_dir(), false).unwrap();
        disk.write_at(0, &[2; 512]).unwrap();
        let mut fork = disk.fork();
        fork.write_at(0, &[3; 512]).unwrap();
        disk.write_at(4096, &[4; 512]).unwrap();
        let moment = disk.moment();
        disk.write_at(4096, &[5; 512]).unwrap();
        let firsts = |disk: &mut ScratchDisk| [0, 4096].map(|at| contents(disk)[at]);
        assert_eq!((firsts(&mut disk), firsts(&mut fork)), ([2, 5], [3, 1]));
        fork.go_to(&moment);
        assert_eq!((firsts(&mut disk), firsts(&mut fork)), ([2, 5], [2, 4]));
    }

    #[test]
    fn read_only_scratch_disk_refuses_changes() {
        let mut disk = ScratchDisk::new(Box::new(Ones), &std::env::temp_dir(), true).unwrap();
        assert!(matches!(disk.write_at(0, &[0; 512]), Err(DiskError::ReadOnly { .. })));
        assert!(matches!(disk.discard(0, 512), Err(DiskError::ReadOnly { .. })));
    }
}
