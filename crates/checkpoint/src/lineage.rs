//! Chains of checkpoints: made into one that stands alone, and rid of those nobody needs.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::CheckpointError;
use crate::index::{Index, PageSums};
use crate::leftovers;
use crate::manifest::{DiskKept, FileKept, Manifest, MemoryKept, PackedKept, Parent};
use crate::memory_file::{Batch, MemoryFile};
use crate::open::{Checkpoint, Level};
use crate::store::{self, Draft, INDEX, MANIFEST, MEMORY, PACKED, SECTIONS, failed, memory_name};

/// In a merged checkpoint: those it stood on, which are being removed.
pub(crate) const PRUNING: &str = "pruning.json";
/// Most bytes of it.
const PRUNING_LEN_MAX: u64 = 1 << 20;

/// Makes the checkpoint in `folder` stand alone: it keeps its id, so that those on top of it stay
/// right, and takes the place of what was there in one step. Returns the checkpoints it stood on.
///
/// # Errors
/// [`CheckpointError`]; the checkpoint is then as it was.
pub fn merge(folder: &Path, on_page: &mut dyn FnMut()) -> Result<Vec<PathBuf>, CheckpointError> {
    let below = merge_noting(folder, false, on_page)?;
    Ok(below.into_iter().map(|below| below.path).collect())
}

/// As [`merge`]; if `note`, the merged checkpoint names those below until they are gone.
fn merge_noting(
    folder: &Path,
    note: bool,
    on_page: &mut dyn FnMut(),
) -> Result<Vec<Parent>, CheckpointError> {
    let checkpoint = Checkpoint::open(folder)?;
    let below = checkpoint.chain().skip(1);
    let below = below.map(|(path, manifest)| Parent { id: manifest.id, path: path.into() });
    let below: Vec<Parent> = below.collect();
    if below.is_empty() {
        return Ok(below);
    }
    let draft = Draft::beside(folder)?;
    let top = &checkpoint.levels[0];
    let (id, memory_size, packed) = (top.index.id, top.index.memory_size, top.index.packed);
    let name = memory_name(packed);
    let memory = MemoryFile::new(draft.create(name)?, draft.path(name), packed);
    let sums = gather(&checkpoint.levels, &memory, on_page)?;
    memory.end(id, memory_size)?;
    memory.file.sync_all().map_err(failed("write", &memory.path))?;
    let (runs, packed) = match memory.take_places() {
        None => (sums.runs(false), None),
        Some((places, size)) => (sums.packed_runs(&places, false), Some(PackedKept::zstd(size))),
    };
    let index = Index { id, memory_size, packed: packed.is_some(), runs }.encode();
    draft.write(INDEX, &index, true)?;
    let memory = MemoryKept { pages: sums.data_pages(), index: FileKept::of(&index), packed };
    let manifest = Manifest { parent: None, memory, ..top.manifest.clone() };
    draft.write(MANIFEST, &manifest.encode(), true)?;
    link_the_rest(folder, &draft)?;
    if note {
        draft.write(PRUNING, &encode_pruning(&below)?, true)?;
    }
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
    let mut batch = Batch::new(memory)?;
    for level in levels {
        level.read_through(&mut |page, bytes| {
            if !sums.is_noted(page) {
                batch.add(page, bytes, &mut sums)?;
                on_page();
            }
            Ok(())
        })?;
    }
    batch.flush()?;
    Ok(sums)
}

/// Sections and disks are the same files under a second name.
fn link_the_rest(folder: &Path, draft: &Draft) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let entry = entry.map_err(failed("read", folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if ![INDEX, MANIFEST, MEMORY, PACKED, PRUNING].contains(&name) {
            let path = entry.path();
            fs::hard_link(&path, draft.path(name)).map_err(failed("link", &path))?;
        }
    }
    debug_assert!(draft.path(SECTIONS).exists());
    Ok(())
}

/// Makes the checkpoint at `to`, which must not exist, of the one in `from`, which stands alone:
/// the same machine, with `disks` in the place of its own. Files are shared where they can be.
///
/// # Errors
/// [`CheckpointError`]; nothing is left then.
pub fn adopt(from: &Path, to: &Path, disks: Vec<DiskKept>) -> Result<(), CheckpointError> {
    let manifest = Manifest { disks, ..Manifest::read(from)? };
    if manifest.parent.is_some() {
        let what = "it stands on another one".to_owned();
        return Err(CheckpointError::Damaged { path: from.into(), what });
    }
    let draft = Draft::new(to)?;
    let memory = memory_name(manifest.memory.packed.is_some());
    for name in [SECTIONS, INDEX, memory] {
        let path = from.join(name);
        if fs::hard_link(&path, draft.path(name)).is_err() {
            fs::copy(&path, draft.path(name)).map_err(failed("copy", &path))?;
        }
        let file = fs::File::open(draft.path(name)).map_err(failed("open", &path))?;
        file.sync_all().map_err(failed("write", &path))?;
    }
    draft.write(MANIFEST, &manifest.encode(), true)?;
    draft.finish(true)
}

/// Merges the checkpoint in `folder`, then removes those it stood on that no other checkpoint
/// beside them needs. Returns those that were removed. One that was killed on the way is gone on
/// with by the next.
///
/// # Errors
/// As [`merge`].
pub fn prune(folder: &Path, on_page: &mut dyn FnMut()) -> Result<Vec<PathBuf>, CheckpointError> {
    leftovers::sweep(store::parent(folder));
    let mut below = merge_noting(folder, true, on_page)?;
    if below.is_empty() {
        below = left_to_prune(folder)?;
    }
    let mut removed = Vec::new();
    // The one on top goes first: only then is the one below it needed by nobody.
    for Parent { id, path } in below {
        leftovers::sweep(store::parent(&path));
        match Manifest::read(&path) {
            Ok(manifest) if manifest.id == id => {}
            // Another one's, or gone.
            _ => continue,
        }
        if child_of(&path, folder)?.is_some() {
            break;
        }
        store::remove(&path)?;
        removed.push(path);
    }
    let noted = folder.join(PRUNING);
    match fs::remove_file(&noted) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &noted)(error)),
        _ => Ok(removed),
    }
}

fn encode_pruning(below: &[Parent]) -> Result<Vec<u8>, CheckpointError> {
    let mut noted = Vec::new();
    for Parent { id, path } in below {
        let path = std::path::absolute(path).map_err(failed("find", path))?;
        noted.push(Parent { id: *id, path });
    }
    Ok(serde_json::to_vec(&noted).unwrap_or_default())
}

/// What a prune that was killed had not come to.
fn left_to_prune(folder: &Path) -> Result<Vec<Parent>, CheckpointError> {
    let path = folder.join(PRUNING);
    let bytes = match store::read(&path, PRUNING_LEN_MAX) {
        Err(error) if store::is_missing(&error) => return Ok(Vec::new()),
        bytes => bytes?,
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::Damaged { path, what: error.to_string() })
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
