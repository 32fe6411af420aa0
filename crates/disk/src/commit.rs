//! Committing an overlay back into its parent while the disk is used (mechanism C9).
//!
//! A cursor goes over the overlay. What is behind it is in both images, so writes there go to
//! both; what is ahead is in the overlay alone. Until the end the overlay has everything, and the
//! parent takes over only when it has everything too, durably, and the overlay's file is gone.
//!
//! ```text
//!   copying --cursor at the end--> caught up --somebody synced the parent--> done
//!      '---- the parent fails: the disk goes on with the overlay ---- failed
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::chain::open_chain;
use crate::marker::{Marker, sync_folder};
use crate::open::open_as_it_is;
use crate::overlay::TakenLayer;
use crate::{BlockBackend, DiskError, DiskSpec, Format, Place};

/// Bytes copied at once, between requests of the guest.
const STEP_SIZE: u64 = 256 << 10;
/// Bytes looked at once where there is nothing to copy.
const LOOK_SIZE: u64 = 64 << 20;

/// Where a commit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommitState {
    /// Data goes over.
    Copying,
    /// All data is over; it is to be made durable before the parent takes over.
    CaughtUp,
    /// The parent has taken over; the overlay is gone.
    Done,
    /// It was given up; the overlay goes on.
    Failed,
}

/// A commit in progress, as others see it.
#[derive(Clone, Debug, Default)]
pub struct CommitWatch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    state: AtomicU8,
    copied: AtomicU64,
    may_finish: AtomicBool,
    failure: Mutex<Option<DiskError>>,
}

impl CommitWatch {
    /// Where it stands.
    pub fn state(&self) -> CommitState {
        match self.0.state.load(Ordering::Acquire) {
            0 => CommitState::Copying,
            1 => CommitState::CaughtUp,
            2 => CommitState::Done,
            _ => CommitState::Failed,
        }
    }

    /// Bytes that went over.
    pub fn copied(&self) -> u64 {
        self.0.copied.load(Ordering::Relaxed)
    }

    /// Lets the parent take over: whoever calls it has synced the parent since the commit caught
    /// up, so that little is left to be waited for.
    pub fn may_finish(&self) {
        self.0.may_finish.store(true, Ordering::Release);
    }

    /// Why it failed, the first time this is asked.
    pub fn take_failure(&self) -> Option<DiskError> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn enter(&self, state: CommitState) {
        self.0.state.store(state as u8, Ordering::Release);
    }

    fn fail(&self, error: DiskError) {
        tracing::warn!("a commit was given up, the disk goes on with its overlay: {error}");
        *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.enter(CommitState::Failed);
    }

    fn may_be_finished(&self) -> bool {
        self.0.may_finish.load(Ordering::Acquire)
    }
}

/// A disk whose overlay is being committed; after that, a name for the parent.
pub(crate) struct Committing {
    /// `None` when the parent has taken over.
    overlay: Option<Box<dyn BlockBackend>>,
    overlay_path: PathBuf,
    /// `None` when the commit was given up.
    parent: Option<Box<dyn BlockBackend>>,
    parent_path: PathBuf,
    /// First byte that is not in the parent yet.
    cursor: u64,
    size: u64,
    watch: CommitWatch,
}

impl Committing {
    pub fn new(
        overlay: Box<dyn BlockBackend>,
        overlay_path: PathBuf,
        parent: Box<dyn BlockBackend>,
        parent_path: PathBuf,
        watch: CommitWatch,
    ) -> Committing {
        let size = overlay.size();
        let (overlay, parent) = (Some(overlay), Some(parent));
        Committing { overlay, overlay_path, parent, parent_path, cursor: 0, size, watch }
    }

    /// The image that has everything.
    fn top(&mut self) -> &mut dyn BlockBackend {
        match (&mut self.overlay, &mut self.parent) {
            (Some(overlay), _) => overlay.as_mut(),
            (None, Some(parent)) => parent.as_mut(),
            (None, None) => unreachable!("a disk always has one of them"),
        }
    }

    /// Does a change of `len` bytes at `offset` to the disk, and to the parent as far as it is
    /// behind the cursor.
    fn change(
        &mut self,
        offset: u64,
        len: u64,
        change: impl Fn(&mut dyn BlockBackend, u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        change(self.top(), offset, len)?;
        let behind = self.cursor.saturating_sub(offset).min(len);
        if self.overlay.is_some()
            && behind > 0
            && let Some(parent) = &mut self.parent
        {
            let changed = change(parent.as_mut(), offset, behind);
            self.note(changed);
        }
        Ok(())
    }

    /// Gives the commit up if the parent failed.
    fn note(&mut self, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.parent = None;
            self.watch.fail(error);
        }
    }

    fn step(&mut self) -> Result<(), DiskError> {
        let (Some(overlay), Some(parent)) = (&mut self.overlay, &mut self.parent) else {
            return Ok(());
        };
        let left = self.size - self.cursor;
        let (place, len) = overlay.place(self.cursor, left.min(LOOK_SIZE))?;
        if len == 0 {
            let what = "its table of clusters has no end".to_owned();
            return Err(DiskError::Corrupt { path: self.overlay_path.clone(), what });
        }
        let len = match place {
            Place::Below => len,
            Place::Zero => {
                parent.write_zeroes(self.cursor, len)?;
                len
            }
            Place::Here => {
                let len = len.min(STEP_SIZE);
                let mut bytes = vec![0; len as usize];
                overlay.read_at(self.cursor, &mut bytes)?;
                parent.write_at(self.cursor, &bytes)?;
                self.watch.0.copied.fetch_add(len, Ordering::Relaxed);
                len
            }
        };
        self.cursor += len;
        Ok(())
    }

    /// The parent has everything: it takes over. The overlay's file goes before anything newer can
    /// be in the parent alone.
    fn finish(&mut self) -> Result<(), DiskError> {
        let Some(parent) = &mut self.parent else { return Ok(()) };
        parent.flush()?;
        let removed =
            fs::remove_file(&self.overlay_path).and_then(|()| sync_folder(&self.overlay_path));
        removed.map_err(|source| DiskError::Create { path: self.overlay_path.clone(), source })?;
        self.overlay = None;
        if let Err(error) = Marker::remove(&self.parent_path) {
            // It names an overlay that is not there, which means the same.
            tracing::warn!("{error}");
        }
        self.watch.enter(CommitState::Done);
        Ok(())
    }
}

impl BlockBackend for Committing {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.top().read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.change(offset, data.len() as u64, |disk, offset, len| {
            disk.write_at(offset, &data[..len as usize])
        })
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.top().flush()
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.change(offset, len, |disk, offset, len| disk.discard(offset, len))
    }

    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.change(offset, len, |disk, offset, len| disk.write_zeroes(offset, len))
    }

    fn place(&mut self, offset: u64, len: u64) -> Result<(Place, u64), DiskError> {
        self.top().place(offset, len)
    }

    fn take_layer(&mut self) -> Result<TakenLayer, DiskError> {
        if self.overlay.is_some() && self.parent.is_some() {
            return Err(DiskError::NoOverlay { why: "its last one is still being committed" });
        }
        self.top().take_layer()
    }

    fn has_work(&self) -> bool {
        let copying = self.cursor < self.size;
        let may_finish = !copying && self.watch.may_be_finished();
        self.overlay.is_some() && self.parent.is_some() && (copying || may_finish)
    }

    fn work(&mut self) {
        let result = if self.cursor < self.size { self.step() } else { self.finish() };
        self.note(result);
        if self.parent.is_some() && self.overlay.is_some() && self.cursor == self.size {
            self.watch.enter(CommitState::CaughtUp);
        }
    }
}

/// Commits the overlay at `overlay` into `parent`, and removes its file: what a commit that was
/// cut short has left to do.
///
/// Fails as [`crate::open`] does, and with [`DiskError::Io`]; the overlay is there then.
pub fn commit_now(overlay: &Path, parent: &DiskSpec) -> Result<(), DiskError> {
    let spec = DiskSpec { path: overlay.into(), format: Some(Format::Qcow2), read_only: true };
    // The parent is written through a description of its own, which the overlay's chain would
    // exclude: so the overlay is opened alone, and locked against everybody.
    let mut layers = open_chain(&spec)?;
    layers.truncate(1);
    let alone: Box<dyn BlockBackend> = Box::new(crate::Qcow2Disk::new(layers, true)?);
    let base = open_as_it_is(&DiskSpec { read_only: false, ..parent.clone() })?;
    let watch = CommitWatch::default();
    watch.may_finish();
    let (path, parent_path) = (overlay.to_owned(), parent.path.clone());
    let mut committing = Committing::new(alone, path, base, parent_path, watch.clone());
    while committing.has_work() {
        committing.work();
    }
    match watch.take_failure() {
        None => committing.flush(),
        Some(error) => Err(error),
    }
}
