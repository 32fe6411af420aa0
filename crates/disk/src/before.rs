//! What a disk was at an earlier moment: before a block is changed for the first time since, its
//! old contents go to a file. The disk itself stays as it is, with no layer more.
//!
//! The disk at a moment is: of the blocks kept since then the oldest version, of the others what is
//! there now. So moments can be forgotten, the oldest first, by dropping their files.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::overlay::{CLUSTER_SIZE, Parent, empty_overlay};
use crate::scratch::nameless;
use crate::{BlockBackend, DiskError, DiskSpec, Format};

/// Bytes of a block: what an overlay's cluster has.
const BLOCK: u64 = CLUSTER_SIZE;

/// Old contents of a disk's blocks since one moment; clones are the same.
#[derive(Clone, Debug)]
pub struct BeforeImages {
    inner: Arc<Mutex<Inner>>,
    bytes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Inner {
    /// Without a name, each block at its offset.
    file: File,
    blocks: BTreeSet<u64>,
    /// Why a block is missing, if one is.
    failure: Option<String>,
}

impl BeforeImages {
    /// Makes a file without a name in `folder`.
    ///
    /// # Errors
    /// [`DiskError::Create`].
    pub fn new(folder: &Path) -> Result<BeforeImages, DiskError> {
        let failed = |source| DiskError::Create { path: folder.into(), source };
        let inner = Inner {
            file: nameless(folder).map_err(failed)?,
            blocks: BTreeSet::new(),
            failure: None,
        };
        Ok(BeforeImages { inner: Arc::new(Mutex::new(inner)), bytes: Arc::default() })
    }

    /// Bytes that are kept.
    pub fn size(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A block is noted when it is in the file.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what `disk` has in a range that is about to change. If that fails, the moment is
    /// lost, and the disk goes on.
    pub(crate) fn keep(&self, disk: &mut dyn BlockBackend, offset: u64, len: u64) {
        let (size, mut inner) = (disk.size(), self.lock());
        let end = offset.saturating_add(len).min(size);
        if offset >= end || inner.failure.is_some() {
            return;
        }
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            if inner.blocks.contains(&block) {
                continue;
            }
            let at = block * BLOCK;
            let mut bytes = vec![0; BLOCK.min(size - at) as usize];
            let kept = disk.read_at(at, &mut bytes).map_err(|error| error.to_string());
            let kept = kept.and_then(|()| {
                inner.file.write_all_at(&bytes, at).map_err(|error| error.to_string())
            });
            if let Err(why) = kept {
                tracing::warn!("what a disk was before is lost: {why}");
                inner.failure = Some(why);
                return;
            }
            inner.blocks.insert(block);
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Makes an image at `path`, which must not exist: an overlay over `parent` that shows the disk as
/// it was at the first moment of `since`, the others being the later ones in order.
///
/// # Errors
/// [`DiskError`]; the image may be there then.
pub fn image_of_before(
    path: &Path,
    parent: &Parent,
    since: &[BeforeImages],
) -> Result<(), DiskError> {
    let name = std::path::absolute(&parent.path);
    let name = name.map_err(|source| DiskError::Create { path: path.into(), source })?;
    empty_overlay(path, parent, &name)?;
    let spec = DiskSpec { path: path.into(), format: Some(Format::Qcow2), read_only: false };
    let mut image = crate::open(spec)?;
    let mut done = BTreeSet::new();
    for before in since {
        let inner = before.lock();
        if let Some(why) = &inner.failure {
            let source = std::io::Error::other(format!("a block of before was lost: {why}"));
            return Err(DiskError::Create { path: path.into(), source });
        }
        for &block in &inner.blocks {
            if !done.insert(block) {
                continue;
            }
            let at = block * BLOCK;
            let mut bytes = vec![0; BLOCK.min(parent.size - at) as usize];
            let read = inner.file.read_exact_at(&mut bytes, at);
            read.map_err(|source| DiskError::Create { path: path.into(), source })?;
            image.write_at(at, &bytes)?;
        }
    }
    image.flush()
}
