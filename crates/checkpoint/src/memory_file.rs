//! The file of guest memory, and a last page that says whose it is.
//!
//! Plain, it is sparse, each page at its RAM offset, so that it can be mapped. Packed, it is runs
//! of pages in the order in which they were saved, each a zstd frame, or as it is where that is not
//! shorter or there is no time: the index says where they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{io, mem};

use memory::{Page, PageSink};
use xxhash_rust::xxh3::xxh3_64;
use zstd::bulk::Compressor;

use crate::CheckpointError;
use crate::index::{PageSums, Place, is_zero, page_sum};
use crate::manifest::Id;
use crate::store::failed;

const MAGIC: &[u8; 8] = b"DOPPLMEM";
const VERSION: u32 = 1;
/// Bytes of the trailer.
pub(crate) const TRAILER_SIZE: u64 = 4096;
/// Pages written at once.
const BATCH_PAGES: usize = 64;
/// Pages compressed at once: longer runs gain little, shorter ones lose.
const PACKED_PAGES: usize = 32;
/// Fast; higher levels are slower than disks and gain a few hundredths.
const ZSTD_LEVEL: i32 = 1;

/// What the machine wrote of a memory file.
type ByMachine = (Vec<(usize, Option<u64>)>, Option<io::Error>);

/// A memory file that is being written, by a saver and, at the limit of copies, by the machine.
pub(crate) struct MemoryFile {
    pub file: File,
    pub path: PathBuf,
    packing: Option<Packing>,
    /// Pages that the machine wrote itself, with their checksums, and its first failure.
    by_machine: Mutex<ByMachine>,
}

/// What a packed file has: written at its end by whoever has something.
#[derive(Default)]
struct Packing {
    end: AtomicU64,
    places: Mutex<Vec<PlacedRun>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Packing {
    /// Writes bytes that nobody else has the place of; where that is.
    fn append(&self, file: &File, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        file.write_all_at(bytes, offset)?;
        Ok(offset)
    }
}

/// First page, number of pages, and where they are in the file.
pub(crate) type PlacedRun = (usize, usize, Place);

impl MemoryFile {
    pub fn new(file: File, path: PathBuf, packed: bool) -> Arc<MemoryFile> {
        let packing = packed.then(Packing::default);
        Arc::new(MemoryFile { file, path, packing, by_machine: Mutex::default() })
    }

    /// What the machine wrote since the last call.
    pub fn take_written_by_machine(&self) -> Result<Vec<(usize, Option<u64>)>, CheckpointError> {
        let mut written = lock(&self.by_machine);
        match written.1.take() {
            Some(error) => Err(failed("write", &self.path)(error)),
            None => Ok(mem::take(&mut written.0)),
        }
    }

    /// Where the runs of a packed file are, and its length without the trailer.
    pub fn take_places(&self) -> Option<(Vec<PlacedRun>, u64)> {
        let packing = self.packing.as_ref()?;
        Some((mem::take(&mut lock(&packing.places)), packing.end.load(Ordering::Relaxed)))
    }

    /// Writes a page as it is.
    fn write_page(&self, page: usize, bytes: &Page) -> io::Result<()> {
        let Some(packing) = &self.packing else {
            return self.file.write_all_at(bytes, page as u64 * 4096);
        };
        let offset = packing.append(&self.file, bytes)?;
        lock(&packing.places).push((page, 1, Place::Raw { offset }));
        Ok(())
    }

    /// Makes the file as long as it is to be, with its trailer.
    pub fn end(&self, id: Id, memory_size: u64) -> Result<(), CheckpointError> {
        let mut trailer = vec![0; TRAILER_SIZE as usize];
        trailer[..8].copy_from_slice(MAGIC);
        trailer[8..12].copy_from_slice(&VERSION.to_le_bytes());
        trailer[16..32].copy_from_slice(&id.0);
        trailer[32..40].copy_from_slice(&memory_size.to_le_bytes());
        let sum = xxh3_64(&trailer[..40]);
        trailer[40..48].copy_from_slice(&sum.to_le_bytes());
        let packed = self.packing.as_ref().map(|packing| packing.end.load(Ordering::Relaxed));
        let at = packed.unwrap_or(memory_size);
        self.file.write_all_at(&trailer, at).map_err(failed("write", &self.path))
    }
}

/// Writes pages to a memory file, neighbours together.
pub(crate) struct Batch<'a> {
    file: &'a MemoryFile,
    compressor: Option<Compressor<'static>>,
    packed: Vec<u8>,
    pages_max: usize,
    first: usize,
    bytes: Vec<u8>,
    /// Bytes of pages that were written.
    pub written: u64,
}

impl<'a> Batch<'a> {
    pub fn new(file: &'a MemoryFile) -> Result<Batch<'a>, CheckpointError> {
        let compressor = file.packing.as_ref().map(|_| Compressor::new(ZSTD_LEVEL)).transpose();
        let compressor = compressor.map_err(failed("compress", &file.path))?;
        let pages_max = if compressor.is_some() { PACKED_PAGES } else { BATCH_PAGES };
        let packed = vec![0; if compressor.is_some() { PACKED_PAGES * 4096 } else { 0 }];
        let bytes = Vec::with_capacity(pages_max * 4096);
        Ok(Batch { file, compressor, packed, pages_max, first: 0, bytes, written: 0 })
    }

    /// Adds a page, unless it is all zeroes, and notes its checksum.
    pub fn add(
        &mut self,
        page: usize,
        bytes: &Page,
        sums: &mut PageSums,
    ) -> Result<(), CheckpointError> {
        if is_zero(bytes) {
            sums.note(page, None);
            return Ok(());
        }
        sums.note(page, Some(page_sum(bytes)));
        let next = self.first + self.bytes.len() / 4096;
        if page != next || self.bytes.len() == self.pages_max * 4096 {
            self.flush()?;
            self.first = page;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what was added.
    pub fn flush(&mut self) -> Result<(), CheckpointError> {
        if !self.bytes.is_empty() {
            self.write().map_err(failed("write", &self.file.path))?;
            self.written += self.bytes.len() as u64;
            self.bytes.clear();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let file = &self.file.file;
        let (Some(packing), Some(compressor)) = (&self.file.packing, &mut self.compressor) else {
            return file.write_all_at(&self.bytes, self.first as u64 * 4096);
        };
        // What does not fit is not shorter.
        let size_max = self.bytes.len() - 1;
        let size = compressor.compress_to_buffer(&self.bytes, &mut self.packed[..size_max]);
        let place = match size {
            Ok(size) => {
                let offset = packing.append(file, &self.packed[..size])?;
                Place::Zstd { offset, size: size as u32 }
            }
            Err(_) => Place::Raw { offset: packing.append(file, &self.bytes)? },
        };
        lock(&packing.places).push((self.first, self.bytes.len() / 4096, place));
        Ok(())
    }
}

/// The machine's way into a memory file, as long as the saver has it: closing the file, which may
/// have been removed by then, is nothing for the machine's thread.
pub(crate) struct Sink(pub Weak<MemoryFile>);

impl PageSink for Sink {
    fn save(&mut self, page: usize, bytes: &Page) {
        let Some(file) = self.0.upgrade() else { return };
        let sum = (!is_zero(bytes)).then(|| page_sum(bytes));
        let result = match sum {
            Some(_) => file.write_page(page, bytes),
            None => Ok(()),
        };
        let mut written = lock(&file.by_machine);
        match result {
            Ok(()) => written.0.push((page, sum)),
            Err(error) => written.1 = written.1.take().or(Some(error)),
        }
    }
}

/// Checks length and trailer of a memory file that has `contents` bytes before it; in words what is
/// wrong with it.
pub(crate) fn check(
    file: &File,
    len: u64,
    contents: u64,
    id: Id,
    memory_size: u64,
) -> Result<(), String> {
    let expected = contents.checked_add(TRAILER_SIZE);
    if expected != Some(len) {
        return Err(format!("it has {len} bytes; {contents} and a last page are expected"));
    }
    let mut trailer = [0; 48];
    file.read_exact_at(&mut trailer, contents).map_err(|error| error.to_string())?;
    let sum = u64::from_le_bytes(trailer[40..48].try_into().unwrap_or_default());
    if trailer[..8] != *MAGIC || xxh3_64(&trailer[..40]) != sum {
        return Err("its last page is damaged".into());
    }
    if trailer[8..12] != VERSION.to_le_bytes() {
        return Err("it has another version".into());
    }
    if trailer[16..32] != id.0 || trailer[32..40] != memory_size.to_le_bytes() {
        return Err("it belongs to another checkpoint".into());
    }
    Ok(())
}
