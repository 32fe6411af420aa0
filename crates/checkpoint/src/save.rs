//! Saving in the background: originals go to the memory file while the machine runs (mechanism
//! C6), then index, sections and manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memory::{CowCounts, CowGuest, CowSaver, Epoch, Pages, Taken};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::capture::Captured;
use crate::index::{Index, IndexedRun, PageSums};
use crate::manifest::{
    DiskKept, FileKept, Id, MachineKept, Manifest, MemoryKept, PackedKept, Parent,
};
use crate::memory_file::{Batch, MemoryFile, Sink};
use crate::sections::{self, DiskReads};
use crate::store::{Draft, INDEX, MANIFEST, SECTIONS, failed, memory_name};
use crate::{CheckpointError, capture};

/// Pages between looks at what the machine copied.
const LOOK_PAGES: usize = 64;
/// Copies that are written in the order of their pages, not as they came.
const SORTED_COPIES: usize = 256;
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

/// How a checkpoint is saved.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// Originals that may wait in memory; the machine writes those beyond itself.
    pub copies_max: usize,
    /// Save only what changed since.
    pub since: Option<Since>,
    /// If not, a power cut may leave a folder that is refused when it is opened.
    pub durable: bool,
    /// Compress memory, which then cannot be mapped: restores read all of it.
    pub packed: bool,
}

/// How far a save is; shared with whoever watches it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Pages of RAM to look at.
    pub pages: AtomicU64,
    /// Pages looked at.
    pub pages_done: AtomicU64,
    /// Bytes of memory saved.
    pub bytes: AtomicU64,
    /// Bytes that they take in the file.
    pub stored: AtomicU64,
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
    options: SaveOptions,
    progress: Arc<Progress>,
}

/// Memory that was saved.
struct SavedMemory {
    /// In runs that do not depend on how it was saved.
    runs: Vec<IndexedRun>,
    /// Runs of a packed file, and its length.
    packed: Option<(Vec<IndexedRun>, u64)>,
    /// Pages in the file.
    pages: u64,
}

impl Saver {
    /// Prepares a checkpoint in the new folder `target` of the machine that `pages` are of, while
    /// it runs.
    ///
    /// # Errors
    /// [`CheckpointError::Exists`] or [`CheckpointError::Io`].
    pub fn prepare(
        target: &Path,
        pages: &Pages,
        options: SaveOptions,
        progress: Arc<Progress>,
    ) -> Result<(Saver, CowGuest), CheckpointError> {
        let id = Id::random()?;
        let draft = Draft::new(target)?;
        let name = memory_name(options.packed);
        let memory = MemoryFile::new(draft.create(name)?, draft.path(name), options.packed);
        let sink = Box::new(Sink(Arc::downgrade(&memory)));
        let epoch = options.since.as_ref().map(|since| since.epoch);
        let (guest, cow) = pages.prepare(epoch, options.copies_max, READY_COPIES, sink);
        progress.pages.store(pages.count() as u64, Ordering::Relaxed);
        Ok((Saver { id, draft, memory, cow, options, progress }, guest))
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
        let mut batch = Batch::new(&self.memory)?;
        let (mut page, mut copies, mut bytes) = (0, 0u64, [0; 4096]);
        while page < pages {
            match self.cow.take(page, &mut bytes) {
                Taken::Saved => batch.add(page, &bytes, &mut sums)?,
                Taken::Copied => copies += 1,
                Taken::Unchanged | Taken::Gone => {}
            }
            page += 1;
            if page.is_multiple_of(LOOK_PAGES) {
                self.progress.check()?;
                copies -= self.drain(&mut batch, &mut sums)?;
                self.progress.pages_done.store(page as u64, Ordering::Relaxed);
            }
        }
        while copies > 0 {
            self.progress.check()?;
            match self.drain(&mut batch, &mut sums)? {
                // Between its note and its word to us, the machine's thread may be off the CPU.
                0 => std::thread::sleep(std::time::Duration::from_micros(100)),
                some => copies -= some,
            }
        }
        batch.flush()?;
        // Likewise those that it writes itself.
        while !self.cow.sink_is_done() {
            self.progress.check()?;
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        for (page, sum) in self.memory.take_written_by_machine()? {
            sums.note(page, sum);
        }
        self.progress.pages_done.store(pages as u64, Ordering::Relaxed);
        self.finish_memory(&sums)
    }

    fn finish_memory(self, sums: &PageSums) -> Result<SavedSaver, CheckpointError> {
        let (counts, memory_size) = (self.cow.counts(), self.cow.page_count() as u64 * 4096);
        self.progress.note(counts);
        self.memory.end(self.id, memory_size)?;
        let zeroes = self.options.since.is_some();
        let pages = sums.data_pages();
        let packed = self.memory.take_places();
        let packed = packed.map(|(places, size)| (sums.packed_runs(&places, zeroes), size));
        let stored = packed.as_ref().map_or(pages * 4096, |(_, size)| *size);
        self.progress.bytes.store(pages * 4096, Ordering::Relaxed);
        self.progress.stored.store(stored, Ordering::Relaxed);
        let saved = SavedMemory { runs: sums.runs(zeroes), packed, pages };
        let Saver { id, draft, memory, cow, options, progress } = self;
        // From here the machine copies nothing any more.
        drop(cow);
        if options.durable {
            memory.file.sync_all().map_err(failed("write", &memory.path))?;
        }
        Ok(SavedSaver { id, draft, saved, options, progress, counts })
    }

    /// Writes copies that wait, in the order of their pages; how many there were.
    fn drain(&self, batch: &mut Batch<'_>, sums: &mut PageSums) -> Result<u64, CheckpointError> {
        let mut count = 0;
        loop {
            let some = std::iter::from_fn(|| self.cow.try_copy()).take(SORTED_COPIES);
            let mut some: Vec<_> = some.collect();
            if some.is_empty() {
                break;
            }
            count += some.len() as u64;
            some.sort_unstable_by_key(|(page, _)| *page);
            for (page, bytes) in some {
                batch.add(page, &bytes, sums)?;
                self.cow.recycle(bytes);
            }
        }
        self.progress.bytes.store(batch.written, Ordering::Relaxed);
        self.progress.note(self.cow.counts());
        Ok(count)
    }
}

/// A checkpoint whose memory is saved.
pub struct SavedSaver {
    id: Id,
    draft: Draft,
    saved: SavedMemory,
    options: SaveOptions,
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
        let (id, memory_size, durable) = (self.id, captured.spec.memory_size, self.options.durable);
        let content = content(captured, reads, &self.saved.runs);
        let packed = self.saved.packed.as_ref().map(|(_, size)| PackedKept::zstd(*size));
        let runs = self.saved.packed.map_or(self.saved.runs, |(runs, _)| runs);
        let index = Index { id, memory_size, packed: packed.is_some(), runs }.encode();
        self.draft.write(INDEX, &index, durable)?;
        let section_bytes = sections::encode(id, &captured.sections, reads);
        self.draft.write(SECTIONS, &section_bytes, durable)?;
        let memory = MemoryKept { pages: self.saved.pages, index: FileKept::of(&index), packed };
        let manifest = Manifest {
            format: Manifest::format(),
            version: memory.version(),
            id,
            parent: self.options.since.map(|since| since.parent),
            release: env!("CARGO_PKG_VERSION").into(),
            machine: MachineKept::of(&captured.spec),
            point: captured.point.into(),
            virtual_time_ns: captured.virtual_time.0,
            memory,
            sections: FileKept::of(&section_bytes),
            content,
            disks,
            vm,
        };
        self.draft.write(MANIFEST, &manifest.encode(), durable)?;
        self.draft.finish(durable)?;
        Ok(Summary { manifest, counts: self.counts })
    }
}

/// Digest of memory and state, without what differs between two checkpoints of the same machine.
fn content(captured: &Captured, reads: &[DiskReads], runs: &[IndexedRun]) -> String {
    let mut hasher = Xxh3::new();
    hasher.update(&sections::encode(Id([0; 16]), &captured.sections, reads));
    for IndexedRun { run, checksum, .. } in runs {
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
    let (saver, guest) = Saver::prepare(target, &pages, SaveOptions::default(), progress)?;
    let captured = capture::capture(machine, outside, guest);
    saver.save_memory()?.finish(&captured, &[], disks, Value::Null)
}
