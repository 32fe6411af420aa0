//! Saving in the background: originals go to the memory file while the machine runs (mechanism
//! C6), then index, sections and manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memory::{CowCounts, CowGuest, CowSaver, Epoch, Page, Pages, Taken};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::capture::Captured;
use crate::index::{Index, IndexedRun, PageSums, is_zero, page_sum};
use crate::manifest::{DiskKept, FileKept, Id, MachineKept, Manifest, MemoryKept, Parent, VERSION};
use crate::memory_file::{MemoryFile, Sink};
use crate::sections::{self, DiskReads};
use crate::store::{Draft, INDEX, MANIFEST, MEMORY, SECTIONS, failed};
use crate::{CheckpointError, capture};

/// Pages written at once.
const BATCH_PAGES: usize = 64;
/// Copies that are made ready before the stop, so that first writes find memory.
const READY_COPIES: usize = 4096;

/// On top of which checkpoint a new one is saved.
#[derive(Clone, Debug)]
pub struct Since {
    /// The epoch that began when that one was captured from, or restored to, this machine.
    pub epoch: Epoch,
    /// Which one it is.
    pub parent: Parent,
}

/// How far a save is; shared with whoever watches it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Pages of RAM to look at.
    pub pages: AtomicU64,
    /// Pages looked at.
    pub pages_done: AtomicU64,
    /// Bytes of memory written.
    pub bytes: AtomicU64,
    /// Originals that the machine copied because it wrote to them.
    pub copied: AtomicU64,
    /// Originals that the machine wrote to the file itself, at the limit of copies.
    pub overflowed: AtomicU64,
    /// Set to give the checkpoint up.
    pub cancelled: AtomicBool,
}

impl Progress {
    /// Fails if it was given up.
    pub fn check(&self) -> Result<(), CheckpointError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(CheckpointError::Cancelled);
        }
        Ok(())
    }

    fn note(&self, counts: CowCounts) {
        self.copied.store(counts.copied, Ordering::Relaxed);
        self.overflowed.store(counts.overflowed, Ordering::Relaxed);
    }
}

/// What was saved.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its manifest.
    pub manifest: Manifest,
    /// Copies and overflows.
    pub counts: CowCounts,
}

/// A checkpoint in the making.
pub struct Saver {
    id: Id,
    draft: Draft,
    memory: Arc<MemoryFile>,
    cow: CowSaver,
    since: Option<Since>,
    durable: bool,
    progress: Arc<Progress>,
}

/// Memory that was saved: the runs of the index, and the pages in the file.
struct SavedMemory {
    runs: Vec<IndexedRun>,
    pages: u64,
}

impl Saver {
    /// Prepares a checkpoint in the new folder `target` of the machine that `pages` are of, while
    /// it runs. `copies_max` originals may wait in memory; those beyond are written by the
    /// machine itself. With `since`, only what changed is saved. If not `durable`, a power cut
    /// may leave a folder that is refused when it is opened.
    ///
    /// # Errors
    /// [`CheckpointError::Exists`] or [`CheckpointError::Io`].
    pub fn prepare(
        target: &Path,
        pages: &Pages,
        copies_max: usize,
        since: Option<Since>,
        durable: bool,
        progress: Arc<Progress>,
    ) -> Result<(Saver, CowGuest), CheckpointError> {
        let id = Id::random()?;
        let draft = Draft::new(target)?;
        let file = draft.create(MEMORY)?;
        let memory = MemoryFile::new(file, draft.path(MEMORY));
        let sink = Box::new(Sink(Arc::clone(&memory)));
        let epoch = since.as_ref().map(|since| since.epoch);
        let (guest, cow) = pages.prepare(epoch, copies_max, READY_COPIES, sink);
        progress.pages.store(pages.count() as u64, Ordering::Relaxed);
        Ok((Saver { id, draft, memory, cow, since, durable, progress }, guest))
    }

    /// Which checkpoint it will be.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Where a further file of the checkpoint goes.
    pub fn path(&self, name: &str) -> PathBuf {
        self.draft.path(name)
    }

    /// Saves the memory of the instant, after the capture.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], or [`CheckpointError::Cancelled`].
    pub fn save_memory(self) -> Result<SavedSaver, CheckpointError> {
        let pages = self.cow.page_count();
        let mut sums = PageSums::new(pages);
        let mut batch = Batch::new(&self.memory, &self.progress);
        let (mut page, mut copies, mut bytes) = (0, 0u64, [0; 4096]);
        while page < pages {
            match self.cow.take(page, &mut bytes) {
                Taken::Saved => batch.add(page, &bytes, &mut sums)?,
                Taken::Copied => copies += 1,
                Taken::Unchanged | Taken::Gone => {}
            }
            page += 1;
            if page.is_multiple_of(BATCH_PAGES) {
                self.progress.check()?;
                copies -= self.drain(&mut sums)?;
                self.progress.pages_done.store(page as u64, Ordering::Relaxed);
            }
        }
        batch.flush()?;
        while copies > 0 {
            self.progress.check()?;
            match self.drain(&mut sums)? {
                // Between its note and its word to us, the machine's thread may be off the CPU.
                0 => std::thread::sleep(std::time::Duration::from_micros(100)),
                some => copies -= some,
            }
        }
        for (page, sum) in self.memory.take_written_by_machine()? {
            sums.note(page, sum);
            let written = if sum.is_some() { 4096 } else { 0 };
            self.progress.bytes.fetch_add(written, Ordering::Relaxed);
        }
        self.progress.pages_done.store(pages as u64, Ordering::Relaxed);
        let counts = self.cow.counts();
        self.progress.note(counts);
        let memory_size = pages as u64 * 4096;
        self.memory.end(self.id, memory_size)?;
        let saved = SavedMemory { runs: sums.runs(self.since.is_some()), pages: sums.data_pages() };
        let Saver { id, draft, memory, cow, since, durable, progress } = self;
        // From here the machine copies nothing any more.
        drop(cow);
        if durable {
            memory.file.sync_all().map_err(failed("write", &memory.path))?;
        }
        Ok(SavedSaver { id, draft, saved, since, durable, progress, counts })
    }

    /// Writes copies that wait; how many there were.
    fn drain(&self, sums: &mut PageSums) -> Result<u64, CheckpointError> {
        let mut count = 0;
        while let Some((page, bytes)) = self.cow.try_copy() {
            let sum = (!is_zero(&bytes)).then(|| page_sum(&bytes));
            if sum.is_some() {
                self.memory.write(page, &bytes[..])?;
                self.progress.bytes.fetch_add(4096, Ordering::Relaxed);
            }
            sums.note(page, sum);
            self.cow.recycle(bytes);
            count += 1;
        }
        self.progress.note(self.cow.counts());
        Ok(count)
    }
}

/// Neighbouring pages that are written together.
struct Batch<'a> {
    memory: &'a MemoryFile,
    progress: &'a Progress,
    first: usize,
    bytes: Vec<u8>,
}

impl<'a> Batch<'a> {
    fn new(memory: &'a MemoryFile, progress: &'a Progress) -> Batch<'a> {
        Batch { memory, progress, first: 0, bytes: Vec::with_capacity(BATCH_PAGES * 4096) }
    }

    fn add(
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
        if page != next || self.bytes.len() == BATCH_PAGES * 4096 {
            self.flush()?;
            self.first = page;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        if !self.bytes.is_empty() {
            self.memory.write(self.first, &self.bytes)?;
            self.progress.bytes.fetch_add(self.bytes.len() as u64, Ordering::Relaxed);
            self.bytes.clear();
        }
        Ok(())
    }
}

/// A checkpoint whose memory is saved.
pub struct SavedSaver {
    id: Id,
    draft: Draft,
    saved: SavedMemory,
    since: Option<Since>,
    durable: bool,
    progress: Arc<Progress>,
    counts: CowCounts,
}

impl SavedSaver {
    /// Where a further file of the checkpoint goes.
    pub fn path(&self, name: &str) -> PathBuf {
        self.draft.path(name)
    }

    /// Writes what is left and gives the checkpoint its name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Exists`] or [`CheckpointError::Cancelled`];
    /// nothing is left then.
    pub fn finish(
        self,
        captured: &Captured,
        reads: &[DiskReads],
        disks: Vec<DiskKept>,
        vm: Value,
    ) -> Result<Summary, CheckpointError> {
        self.progress.check()?;
        let (id, memory_size) = (self.id, captured.spec.memory_size);
        let index = Index { id, memory_size, runs: self.saved.runs };
        let index_bytes = index.encode();
        self.draft.write(INDEX, &index_bytes, self.durable)?;
        let section_bytes = sections::encode(id, &captured.sections, reads);
        self.draft.write(SECTIONS, &section_bytes, self.durable)?;
        let manifest = Manifest {
            format: Manifest::format(),
            version: VERSION,
            id,
            parent: self.since.map(|since| since.parent),
            release: env!("CARGO_PKG_VERSION").into(),
            machine: MachineKept::of(&captured.spec),
            point: captured.point.into(),
            virtual_time_ns: captured.virtual_time.0,
            memory: MemoryKept { pages: self.saved.pages, index: FileKept::of(&index_bytes) },
            sections: FileKept::of(&section_bytes),
            content: content(captured, reads, &index.runs),
            disks,
            vm,
        };
        self.draft.write(MANIFEST, &manifest.encode(), self.durable)?;
        self.draft.finish(self.durable)?;
        Ok(Summary { manifest, counts: self.counts })
    }
}

/// Digest of memory and state, without what differs between two checkpoints of the same machine.
fn content(captured: &Captured, reads: &[DiskReads], runs: &[IndexedRun]) -> String {
    let mut hasher = Xxh3::new();
    hasher.update(&sections::encode(Id([0; 16]), &captured.sections, reads));
    for IndexedRun { run, checksum } in runs {
        hasher.update(&(run.first as u64).to_le_bytes());
        hasher.update(&(run.count as u64).to_le_bytes());
        hasher.update(&checksum.to_le_bytes());
    }
    format!("{:032x}", hasher.digest128())
}

/// Captures and saves a machine that stands still: for those who have nothing else to do.
///
/// # Errors
/// As [`Saver::prepare`], [`Saver::save_memory`] and [`SavedSaver::finish`].
pub fn save_now(
    machine: &mut machine::Machine,
    outside: &mut dyn machine::Outside,
    target: &Path,
    disks: Vec<DiskKept>,
) -> Result<Summary, CheckpointError> {
    let pages = machine.ram().pages();
    let progress = Arc::new(Progress::default());
    let (saver, guest) = Saver::prepare(target, &pages, 0, None, false, progress)?;
    let captured = capture::capture(machine, outside, guest);
    saver.save_memory()?.finish(&captured, &[], disks, Value::Null)
}
