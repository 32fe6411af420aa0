//! Chains of checkpoints: made into one that stands alone, and rid of those nobody needs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::CheckpointError;
use crate::index::{Index, PageSums, is_zero, page_sum};
use crate::manifest::{FileKept, Manifest, MemoryKept};
use crate::memory_file::MemoryFile;
use crate::open::{Checkpoint, Level};
use crate::store::{self, Draft, INDEX, MANIFEST, MEMORY, SECTIONS, failed};

/// Makes the checkpoint in `folder` stand alone: it keeps its id, so that those on top of it stay
/// right, and takes the place of what was there in one step. Returns the checkpoints it stood on.
///
/// # Errors
/// [`CheckpointError`]; the checkpoint is then as it was.
pub fn merge(folder: &Path, on_page: &mut dyn FnMut()) -> Result<Vec<PathBuf>, CheckpointError> {
    let checkpoint = Checkpoint::open(folder)?;
    let below: Vec<PathBuf> = checkpoint.chain().skip(1).map(|(path, _)| path.into()).collect();
    if below.is_empty() {
        return Ok(below);
    }
    let draft = Draft::beside(folder)?;
    let top = &checkpoint.levels[0];
    let memory = MemoryFile::new(draft.create(MEMORY)?, draft.path(MEMORY));
    let sums = gather(&checkpoint.levels, &memory, on_page)?;
    let memory_size = top.index.memory_size;
    memory.end(top.manifest.id, memory_size)?;
    memory.file.sync_all().map_err(failed("write", &memory.path))?;
    let index = Index { id: top.manifest.id, memory_size, runs: sums.runs(false) };
    let index = index.encode();
    draft.write(INDEX, &index, true)?;
    let manifest = Manifest {
        parent: None,
        memory: MemoryKept { pages: sums.data_pages(), index: FileKept::of(&index) },
        ..top.manifest.clone()
    };
    draft.write(MANIFEST, &manifest.encode(), true)?;
    link_the_rest(folder, &draft)?;
    draft.replace()?;
    Ok(below)
}

/// Writes the pages that the topmost level sees.
fn gather(
    levels: &[Level],
    memory: &MemoryFile,
    on_page: &mut dyn FnMut(),
) -> Result<PageSums, CheckpointError> {
    let pages = (levels[0].index.memory_size / 4096) as usize;
    let mut sums = PageSums::new(pages);
    let mut failure = None;
    for level in levels {
        level.read_through(&mut |page, bytes| {
            if sums.is_noted(page) || failure.is_some() {
                return;
            }
            let zero = is_zero(bytes);
            sums.note(page, (!zero).then(|| page_sum(bytes)));
            if !zero {
                failure = memory.write(page, bytes).err();
            }
            on_page();
        })?;
        if let Some(error) = failure.take() {
            return Err(error);
        }
    }
    Ok(sums)
}

/// Sections and disks are the same files under a second name.
fn link_the_rest(folder: &Path, draft: &Draft) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let entry = entry.map_err(failed("read", folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if ![INDEX, MANIFEST, MEMORY].contains(&name) {
            let path = entry.path();
            fs::hard_link(&path, draft.path(name)).map_err(failed("link", &path))?;
        }
    }
    debug_assert!(draft.path(SECTIONS).exists());
    Ok(())
}

/// Merges the checkpoint in `folder`, then removes those it stood on that no other checkpoint
/// beside them needs. Returns those that were removed.
///
/// # Errors
/// As [`merge`].
pub fn prune(folder: &Path, on_page: &mut dyn FnMut()) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut below = merge(folder, on_page)?;
    let mut removed = Vec::new();
    // The one on top goes first: only then is the one below it needed by nobody.
    while !below.is_empty() {
        let path = below.remove(0);
        if child_of(&path, folder)?.is_some() {
            break;
        }
        remove(&path)?;
        removed.push(path);
    }
    Ok(removed)
}

/// Removes a checkpoint so that a crash on the way leaves none, not half of one.
fn remove(path: &Path) -> Result<(), CheckpointError> {
    let manifest = path.join(MANIFEST);
    fs::remove_file(&manifest).map_err(failed("remove", &manifest))?;
    fs::remove_dir_all(path).map_err(failed("remove", path))
}

/// A checkpoint beside `path`, or beside `folder`, that stands on `path`.
fn child_of(path: &Path, folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let id = Manifest::read(path)?.id;
    let mut places = vec![store::parent(path).to_owned(), store::parent(folder).to_owned()];
    places.dedup();
    for place in places {
        for entry in fs::read_dir(&place).map_err(failed("read", &place))? {
            let candidate = entry.map_err(failed("read", &place))?.path();
            let Ok(manifest) = Manifest::read(&candidate) else { continue };
            if manifest.parent.is_some_and(|parent| parent.id == id) {
                return Ok(Some(candidate));
            }
        }
    }
    Ok(None)
}
