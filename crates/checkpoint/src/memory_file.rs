//! The file of guest memory: sparse, each page at its RAM offset, so that it can be mapped; then a
//! page that says whose it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use memory::{Page, PageSink};
use xxhash_rust::xxh3::xxh3_64;

use crate::CheckpointError;
use crate::index::{is_zero, page_sum};
use crate::manifest::Id;
use crate::store::failed;

const MAGIC: &[u8; 8] = b"DOPPLMEM";
const VERSION: u32 = 1;
/// Bytes of the trailer.
pub(crate) const TRAILER_SIZE: u64 = 4096;

/// What the machine wrote of a memory file.
type ByMachine = (Vec<(usize, Option<u64>)>, Option<std::io::Error>);

/// A memory file that is being written, by a saver and, at the limit of copies, by the machine.
pub(crate) struct MemoryFile {
    pub file: File,
    pub path: PathBuf,
    /// Pages that the machine wrote itself, with their checksums, and its first failure.
    by_machine: Mutex<ByMachine>,
}

impl MemoryFile {
    pub fn new(file: File, path: PathBuf) -> Arc<MemoryFile> {
        Arc::new(MemoryFile { file, path, by_machine: Mutex::default() })
    }

    /// What the machine wrote since the last call.
    pub fn take_written_by_machine(&self) -> Result<Vec<(usize, Option<u64>)>, CheckpointError> {
        let mut written = self.by_machine.lock().unwrap_or_else(PoisonError::into_inner);
        match written.1.take() {
            Some(error) => Err(failed("write", &self.path)(error)),
            None => Ok(std::mem::take(&mut written.0)),
        }
    }

    /// Writes pages from page `first` on.
    pub fn write(&self, first: usize, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_all_at(bytes, first as u64 * 4096).map_err(failed("write", &self.path))
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
        self.file.write_all_at(&trailer, memory_size).map_err(failed("write", &self.path))
    }
}

/// The machine's way into a memory file.
pub(crate) struct Sink(pub Arc<MemoryFile>);

impl PageSink for Sink {
    fn save(&mut self, page: usize, bytes: &Page) {
        let sum = (!is_zero(bytes)).then(|| page_sum(bytes));
        let result = match sum {
            Some(_) => self.0.file.write_all_at(bytes, page as u64 * 4096),
            None => Ok(()),
        };
        let mut written = self.0.by_machine.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => written.0.push((page, sum)),
            Err(error) => written.1 = written.1.take().or(Some(error)),
        }
    }
}

/// Checks length and trailer of a memory file; in words what is wrong with it.
pub(crate) fn check(file: &File, len: u64, id: Id, memory_size: u64) -> Result<(), String> {
    let expected = memory_size.checked_add(TRAILER_SIZE);
    if expected != Some(len) {
        return Err(format!("it has {len} bytes; for {memory_size} bytes of memory that is wrong"));
    }
    let mut trailer = [0; 48];
    file.read_exact_at(&mut trailer, memory_size).map_err(|error| error.to_string())?;
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
