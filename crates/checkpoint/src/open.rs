//! Opening and restoring: everything but RAM is checked at once, RAM is mapped (lazily) or read and
//! checked (eagerly).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use journal::{DiskCompletion, DiskFailed, DiskRequest};
use machine::{Machine, MachineError, MachineSpec};
use memory::{Page, PageRun, Ram, RamLayer, RestoredRam};
use saved::Sections;

use crate::CheckpointError;
use crate::index::{Index, IndexedRun, Place, RUN_PAGES_MAX, page_sum, run_sum};
use crate::manifest::{FileKept, Id, Manifest};
use crate::memory_file;
use crate::sections::{self, DiskReads};
use crate::store::{self, INDEX, SECTIONS, failed, memory_name};

/// Most checkpoints below one.
pub const DEPTH_MAX: usize = 256;
/// Largest file of sections, bytes.
const SECTIONS_LEN_MAX: u64 = 1 << 30;

/// One checkpoint of a chain, its index checked, its memory file open.
#[derive(Debug)]
pub(crate) struct Level {
    pub folder: PathBuf,
    pub manifest: Manifest,
    pub index: Index,
    pub memory: File,
}

/// A checkpoint that was found whole, but for the contents of RAM.
#[derive(Debug)]
pub struct Checkpoint {
    /// Topmost first; never empty.
    pub(crate) levels: Vec<Level>,
    sections: Sections,
    reads: BTreeMap<u32, DiskReads>,
    spec: MachineSpec,
}

/// A machine as it was, and what it waits for.
pub struct RestoredMachine {
    /// The machine; nothing of it has run.
    pub machine: Machine,
    /// Disk requests to be done again.
    pub requests: Vec<(u32, DiskRequest)>,
    /// Results of disk reads that were in flight, which are not to be done again.
    pub reads: Vec<(u32, DiskCompletion)>,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`, and those below it.
    ///
    /// # Errors
    /// [`CheckpointError`] saying which file is wrong, and how.
    pub fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
        let mut levels = vec![Level::open(folder)?];
        while let Some(parent) = &levels[levels.len() - 1].manifest.parent {
            let (child, parent) = (&levels[levels.len() - 1].folder, parent.clone());
            if levels.len() > DEPTH_MAX {
                return Err(CheckpointError::TooDeep { path: folder.into(), max: DEPTH_MAX });
            }
            let place = store::parent(child).join(&parent.path);
            let level = below(child, &place, parent.id, levels[0].index.memory_size)?;
            levels.push(level);
        }
        let (sections, reads) = read_sections(&levels[0])?;
        let spec = levels[0].manifest.machine.spec();
        let spec = spec.map_err(|what| damaged(&folder.join(store::MANIFEST), what))?;
        Ok(Checkpoint { levels, sections, reads, spec })
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.levels[0].manifest
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.levels[0].folder
    }

    /// The folders of the checkpoints it stands on, its own first.
    pub fn chain(&self) -> impl Iterator<Item = (&Path, &Manifest)> {
        self.levels.iter().map(|level| (level.folder.as_path(), &level.manifest))
    }

    /// The machine it is of.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// The machine's sections.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The machine, its RAM mapped: pages are read when it touches them, and shared with other
    /// restores until it writes them. Packed memory is read now.
    ///
    /// # Errors
    /// [`CheckpointError::State`], [`CheckpointError::Machine`] or [`CheckpointError::Ram`]; of
    /// packed memory [`CheckpointError::Damaged`] too.
    pub fn restore(&self) -> Result<RestoredMachine, CheckpointError> {
        let files = self.levels.iter().filter(|level| !level.index.packed).count();
        let ram = RestoredRam::new(self.spec.memory_size, files);
        let mut ram = ram.map_err(self.ram_failed())?;
        for level in self.levels.iter().rev() {
            if level.index.packed {
                level.read_through(&mut |page, bytes| {
                    ram.put(page, bytes);
                    Ok(())
                })?;
            } else {
                ram.map(&level.layer()?).map_err(self.ram_failed())?;
            }
        }
        self.finish(ram.finish())
    }

    /// The machine, its RAM read and checked.
    ///
    /// # Errors
    /// As [`Checkpoint::restore`], and [`CheckpointError::Damaged`].
    pub fn restore_eagerly(&self) -> Result<RestoredMachine, CheckpointError> {
        let mut ram = Ram::new(self.spec.memory_size).map_err(self.ram_failed())?;
        for level in self.levels.iter().rev() {
            level.read_through(&mut |page, bytes| {
                ram.restore_page(page, bytes);
                Ok(())
            })?;
        }
        self.finish(ram)
    }

    /// Reads all of it, and of those below it, against the checksums.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] naming the first page that is wrong.
    pub fn verify(&self, on_page: &mut dyn FnMut()) -> Result<(), CheckpointError> {
        let mut on_page = |_: usize, _: &Page| {
            on_page();
            Ok(())
        };
        self.levels.iter().try_for_each(|level| level.read_through(&mut on_page))?;
        self.restore().map(drop)
    }

    fn ram_failed(&self) -> impl Fn(memory::RamError) -> CheckpointError + '_ {
        |source| CheckpointError::Ram { path: self.folder().into(), source }
    }

    fn finish(&self, ram: Ram) -> Result<RestoredMachine, CheckpointError> {
        let path = || self.folder().to_owned();
        let failed = |source: MachineError| CheckpointError::Machine { path: path(), source };
        let mut machine = Machine::with_ram(self.spec.clone(), ram).map_err(failed)?;
        machine
            .restore(self.sections.clone())
            .map_err(|source| CheckpointError::State { path: path(), source })?;
        let (mut requests, mut reads) = (Vec::new(), Vec::new());
        for (disk, request) in machine.outstanding() {
            match self.read_result(disk, request.id) {
                Some(completion) => reads.push((disk, completion)),
                None => requests.push((disk, request)),
            }
        }
        Ok(RestoredMachine { machine, requests, reads })
    }

    fn read_result(&self, disk: u32, id: u64) -> Option<DiskCompletion> {
        let reads = &self.reads.get(&disk)?.reads;
        let (_, data) = reads.iter().find(|(read, _)| *read == id)?;
        let result = data.as_ref().map(|data| data.to_vec()).ok_or(DiskFailed);
        Some(DiskCompletion { id, result })
    }
}

fn damaged(path: &Path, what: String) -> CheckpointError {
    CheckpointError::Damaged { path: path.into(), what }
}

/// The checkpoint below `child`.
fn below(child: &Path, place: &Path, id: Id, memory_size: u64) -> Result<Level, CheckpointError> {
    let level = Level::open(place).map_err(|source| CheckpointError::Parent {
        path: child.into(),
        parent: place.into(),
        source: Box::new(source),
    })?;
    if level.manifest.id != id {
        return Err(CheckpointError::OtherParent {
            path: child.into(),
            parent: place.into(),
            expected: id.to_string(),
            found: level.manifest.id.to_string(),
        });
    }
    if level.index.memory_size != memory_size {
        return Err(damaged(place, "its memory has another size than the one on top".into()));
    }
    Ok(level)
}

/// Reads a file that the manifest has length and checksum of.
fn read_checked(path: &Path, kept: &FileKept, len_max: u64) -> Result<Vec<u8>, CheckpointError> {
    let bytes = store::read(path, len_max)?;
    if FileKept::of(&bytes) != *kept {
        let what = format!("it is not the file of {} bytes that the manifest names", kept.size);
        return Err(damaged(path, what));
    }
    Ok(bytes)
}

fn read_sections(level: &Level) -> Result<(Sections, BTreeMap<u32, DiskReads>), CheckpointError> {
    let path = level.folder.join(SECTIONS);
    let bytes = read_checked(&path, &level.manifest.sections, SECTIONS_LEN_MAX)?;
    let (id, sections, reads) = sections::decode(&bytes).map_err(|what| damaged(&path, what))?;
    if id != level.manifest.id {
        return Err(damaged(&path, "it belongs to another checkpoint".into()));
    }
    Ok((sections, reads.into_iter().collect()))
}

impl Level {
    fn open(folder: &Path) -> Result<Level, CheckpointError> {
        let manifest = Manifest::read(folder)?;
        let (path, memory_size) = (folder.join(INDEX), manifest.machine.memory_bytes);
        if memory_size > Ram::SIZE_MAX || !memory_size.is_multiple_of(4096) {
            let what = format!("no machine has {memory_size} bytes of memory");
            return Err(damaged(&folder.join(store::MANIFEST), what));
        }
        let bytes = read_checked(&path, &manifest.memory.index, Index::len_max(memory_size))?;
        let index = Index::decode(&bytes).map_err(|what| damaged(&path, what))?;
        if index.id != manifest.id || index.memory_size != memory_size {
            return Err(damaged(&path, "it belongs to another checkpoint".into()));
        }
        let contents = manifest.memory.packed.as_ref().map(|packed| packed.size);
        let ends = index.runs.iter().map(|run| run.place.end(run.run.count));
        if index.packed != contents.is_some() || ends.max().unwrap_or(0) > contents.unwrap_or(0) {
            return Err(damaged(&path, "the manifest contradicts it about packed memory".into()));
        }
        let path = folder.join(memory_name(index.packed));
        let (memory, len) = store::open(&path)?;
        let contents = contents.unwrap_or(memory_size);
        memory_file::check(&memory, len, contents, manifest.id, memory_size)
            .map_err(|what| damaged(&path, what))?;
        Ok(Level { folder: folder.into(), manifest, index, memory })
    }

    fn memory_path(&self) -> PathBuf {
        self.folder.join(memory_name(self.index.packed))
    }

    fn layer(&self) -> Result<RamLayer, CheckpointError> {
        let path = self.memory_path();
        let file = self.memory.try_clone().map_err(failed("open", &path))?;
        Ok(RamLayer { file, runs: neighbours(&self.index.runs) })
    }

    /// Reads every page, checked. Ends at the first failure, also of `each`.
    pub fn read_through(
        &self,
        each: &mut dyn FnMut(usize, &Page) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut reader = RunReader::new(&self.memory, self.memory_path());
        for IndexedRun { run, checksum, place } in &self.index.runs {
            reader.read(*run, *place)?;
            let (pages, _) = reader.pages.as_chunks::<4096>();
            if !run.zero {
                let sums: Vec<u64> = pages.iter().map(page_sum).collect();
                if run_sum(&sums) != *checksum {
                    return Err(reader.damaged(*run, "are not what was saved"));
                }
            }
            for (page, bytes) in (run.first..).zip(pages) {
                each(page, bytes)?;
            }
        }
        Ok(())
    }
}

/// Reads runs; takes no more memory than two of the longest there can be.
struct RunReader<'a> {
    memory: &'a File,
    path: PathBuf,
    frame: Vec<u8>,
    pages: Vec<u8>,
}

impl<'a> RunReader<'a> {
    fn new(memory: &'a File, path: PathBuf) -> RunReader<'a> {
        RunReader { memory, path, frame: Vec::new(), pages: Vec::new() }
    }

    /// Puts the bytes of a run into `pages`.
    fn read(&mut self, run: PageRun, place: Place) -> Result<(), CheckpointError> {
        assert!(run.count <= RUN_PAGES_MAX, "checked when the index was decoded");
        self.pages.clear();
        self.pages.resize(run.count * 4096, 0);
        if run.zero {
            return Ok(());
        }
        let (into, offset) = match place {
            Place::Own => (&mut self.pages, run.first as u64 * 4096),
            Place::Raw { offset } => (&mut self.pages, offset),
            Place::Zstd { offset, size } => {
                self.frame.clear();
                self.frame.resize(size as usize, 0);
                (&mut self.frame, offset)
            }
        };
        self.memory.read_exact_at(into, offset).map_err(failed("read", &self.path))?;
        if matches!(place, Place::Zstd { .. }) {
            // Into a buffer of the right size: what claims to be longer fails.
            let size = zstd::bulk::decompress_to_buffer(&self.frame, &mut self.pages[..]);
            if size.ok() != Some(run.count * 4096) {
                return Err(self.damaged(run, "cannot be decompressed"));
            }
        }
        Ok(())
    }

    fn damaged(&self, run: PageRun, what: &str) -> CheckpointError {
        let (first, last) = (run.first, run.first + run.count - 1);
        damaged(&self.path, format!("pages {first} to {last} {what}"))
    }
}

/// Runs that touch and are of one kind made one: limits of the index do not matter to a mapping.
fn neighbours(runs: &[IndexedRun]) -> Vec<PageRun> {
    let mut joined: Vec<PageRun> = Vec::new();
    for IndexedRun { run, .. } in runs {
        match joined.last_mut() {
            Some(last) if last.first + last.count == run.first && last.zero == run.zero => {
                last.count += run.count;
            }
            _ => joined.push(*run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_that_is_not_as_long_as_its_run_is_refused() {
        let path = std::env::temp_dir().join(format!("doppel-frames-{}", std::process::id()));
        let run = PageRun { first: 7, count: 2, zero: false };
        let frame_of = |len: usize| {
            let frame = zstd::bulk::compress(&vec![5; len], 1).unwrap();
            std::fs::write(&path, &frame).unwrap();
            let file = File::open(&path).unwrap();
            let mut reader = RunReader::new(&file, path.clone());
            let place = Place::Zstd { offset: 0, size: frame.len() as u32 };
            let read = reader.read(run, place);
            assert!(reader.pages.capacity() < 4 * 8192, "{} bytes", reader.pages.capacity());
            assert!(read.is_err() || reader.pages == [5; 8192]);
            read
        };
        frame_of(8192).unwrap();
        for len in [0, 1, 4096, 8191, 8193, 12288, 256 << 20] {
            let error = frame_of(len).unwrap_err();
            assert!(matches!(error, CheckpointError::Damaged { .. }), "{len}: {error}");
        }
        let file = File::open(&path).unwrap();
        let mut reader = RunReader::new(&file, path.clone());
        // Not a frame; and one that is cut short.
        assert!(reader.read(run, Place::Zstd { offset: 1, size: 100 }).is_err());
        assert!(reader.read(run, Place::Zstd { offset: 0, size: 100 }).is_err());
        assert!(reader.read(run, Place::Raw { offset: 1 << 40 }).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
