//! qcow2 images through the `imago` library, with its pitfalls fenced off.
//!
//! A panic in the library is caught and turned into [`DiskError::Library`]; from then on the image
//! is not touched again, and its caches are leaked rather than written, because their state is
//! unknown. A guest's flush needs the library's `flush` (metadata caches) *and* `sync`.

use std::any::Any;
use std::fs::File as StdFile;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping, StorageOpenOptions,
};

use crate::backend::{Place, check_range};
use crate::chain::Layer;
use crate::overlay::{Retained, TakenLayer};
use crate::{BlockBackend, DiskError, Format};

/// Bytes looked at and zeroed at once in an image without zero clusters.
const HAND_ZEROED: usize = 64 << 10;

/// A qcow2 image and its backing files, open and locked.
pub struct Qcow2Disk {
    path: PathBuf,
    /// `None` only while dropping.
    access: Option<FormatAccess<File>>,
    size: u64,
    cluster_size: u64,
    read_only: bool,
    flush_lost: bool,
    /// The library panicked.
    broken: bool,
    /// The open file description of the top image, which holds its lock.
    lock_file: StdFile,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("path", &self.path)
            .field("size", &self.size)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// Assembles a checked chain, topmost layer first; only the top is ever written.
    pub(crate) fn new(layers: Vec<Layer>, read_only: bool) -> Result<Qcow2Disk, DiskError> {
        let (path, cluster_size) = (layers[0].path.clone(), layers[0].cluster_size);
        let lock_file = layers[0].file.try_clone().map_err(|source| DiskError::Io {
            path: path.clone(),
            operation: "duplicate",
            offset: 0,
            len: 0,
            source,
        })?;
        let last = layers.len() - 1;
        let mut below: Option<FormatAccess<File>> = None;
        for (index, layer) in layers.into_iter().enumerate().rev() {
            let writable = index == 0 && !read_only;
            debug_assert!(index == last || below.is_some());
            below = Some(open_layer(layer, below.take(), writable)?);
        }
        let size = below.as_ref().map_or(0, FormatAccess::size);
        Ok(Qcow2Disk {
            path,
            access: below,
            size,
            cluster_size,
            read_only,
            flush_lost: false,
            broken: false,
            lock_file,
        })
    }

    /// A writable overlay that is on top of its parent already.
    pub(crate) fn over(
        path: PathBuf,
        access: FormatAccess<File>,
        cluster_size: u64,
        lock_file: StdFile,
    ) -> Qcow2Disk {
        let size = access.size();
        Qcow2Disk {
            path,
            access: Some(access),
            size,
            cluster_size,
            read_only: false,
            flush_lost: false,
            broken: false,
            lock_file,
        }
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: self.path.clone() });
        }
        check_range(offset, len, self.size)
    }

    /// Zeroes whole clusters by `whole` and the rest by writing: given part of a cluster, the
    /// library (0.2.6) subtracts below zero if the disk is smaller than a cluster. Version 2
    /// images have no zero clusters, which the library needs, so there everything is written.
    fn zero(
        &mut self,
        operation: &'static str,
        offset: u64,
        len: u64,
        whole: impl FnOnce(&mut FormatAccess<File>, u64, u64) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        let (size, cluster_size) = (self.size, self.cluster_size);
        let end = offset + len;
        let first = offset.next_multiple_of(cluster_size).min(end);
        let last = if end == size { end } else { end - end % cluster_size }.max(first);
        self.call(operation, offset, len, |access| {
            zero_by_hand(access, offset, first)?;
            if first < last {
                match whole(access, first, last - first) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        zero_by_hand(access, first, last)?;
                    }
                    other => other?,
                }
            }
            zero_by_hand(access, last, end)
        })
    }

    /// Runs a library call; its error names the operation, its panic breaks the disk.
    fn call(
        &mut self,
        operation: &'static str,
        offset: u64,
        len: u64,
        body: impl FnOnce(&mut FormatAccess<File>) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let path = &self.path;
        let Some(access) = self.access.as_mut().filter(|_| !self.broken) else {
            let what = "an earlier request failed inside it".to_owned();
            return Err(DiskError::Library { path: path.clone(), what });
        };
        match catch_unwind(AssertUnwindSafe(|| body(access))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                Err(DiskError::Io { path: path.clone(), operation, offset, len, source })
            }
            Err(panic) => {
                self.broken = true;
                Err(DiskError::Library { path: path.clone(), what: panic_text(panic) })
            }
        }
    }
}

/// Runs library code; a panic of its becomes an error.
pub(crate) fn guarded<T>(
    path: &Path,
    body: impl FnOnce() -> io::Result<T>,
) -> Result<io::Result<T>, DiskError> {
    catch_unwind(AssertUnwindSafe(body))
        .map_err(|panic| DiskError::Library { path: path.into(), what: panic_text(panic) })
}

pub(crate) fn open_layer(
    layer: Layer,
    below: Option<FormatAccess<File>>,
    writable: bool,
) -> Result<FormatAccess<File>, DiskError> {
    let path = layer.path;
    let opened = catch_unwind(AssertUnwindSafe(|| -> io::Result<FormatAccess<File>> {
        let options = StorageOpenOptions::new().filename(&path).write(writable);
        let storage = File::from_open_file(layer.file, options)?;
        match layer.format {
            Format::Raw => Raw::builder(storage)
                .write(writable)
                .open(DenyImplicitOpenGate::default())
                .map(FormatAccess::new),
            Format::Qcow2 => Qcow2::<File>::builder(storage)
                .write(writable)
                .backing(below)
                .data_file(None)
                .open(DenyImplicitOpenGate::default())
                .map(FormatAccess::new),
        }
    }));
    match opened {
        Ok(Ok(access)) => Ok(access),
        Ok(Err(error)) => Err(library_refusal(&path, &error)),
        Err(panic) => Err(DiskError::Library { path, what: panic_text(panic) }),
    }
}

/// Writes zeroes over whatever is not zero yet, and allocates nothing else.
fn zero_by_hand(access: &FormatAccess<File>, mut offset: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; HAND_ZEROED];
    while offset < end {
        let len = (HAND_ZEROED as u64).min(end - offset) as usize;
        access.read(&mut buffer[..len], offset)?;
        if buffer[..len].iter().any(|byte| *byte != 0) {
            buffer[..len].fill(0);
            access.write(&buffer[..len], offset)?;
        }
        offset += len as u64;
    }
    Ok(())
}

fn library_refusal(path: &Path, error: &io::Error) -> DiskError {
    DiskError::Corrupt { path: path.into(), what: error.to_string() }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panic without a message".into())
}

impl BlockBackend for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let len = buffer.len() as u64;
        check_range(offset, len, self.size)?;
        self.call("read", offset, len, |access| access.read(buffer, offset))
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let len = data.len() as u64;
        self.check_change(offset, len)?;
        self.call("write", offset, len, |access| access.write(data, offset))
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        if self.flush_lost {
            return Err(DiskError::FlushLost { path: self.path.clone() });
        }
        if self.read_only {
            return Ok(());
        }
        let size = self.size;
        let flushed = self.call("flush", 0, size, |access| {
            access.flush()?;
            access.sync()
        });
        self.flush_lost = flushed.is_err();
        flushed
    }

    fn place(&mut self, offset: u64, len: u64) -> Result<(Place, u64), DiskError> {
        check_range(offset, len, self.size)?;
        let mut found = (Place::Here, len);
        self.call("look up", offset, len, |access| {
            let (mapping, len) = access.get_shallow_mapping(offset, len)?;
            let place = match mapping {
                ShallowMapping::Indirect { .. } | ShallowMapping::Zero { explicit: false, .. } => {
                    Place::Below
                }
                ShallowMapping::Zero { explicit: true, .. } => Place::Zero,
                _ => Place::Here,
            };
            found = (place, len);
            Ok(())
        })?;
        Ok(found)
    }

    fn take_layer(&mut self) -> Result<TakenLayer, DiskError> {
        self.check_change(0, 0)?;
        let size = self.size;
        let file = self.lock_file.try_clone();
        let file = file.map_err(|source| DiskError::Io {
            path: self.path.clone(),
            operation: "duplicate",
            offset: 0,
            len: size,
            source,
        })?;
        self.call("flush", 0, size, |access| access.flush())?;
        let Some(access) = self.access.take() else {
            let what = "it was taken before".to_owned();
            return Err(DiskError::Library { path: self.path.clone(), what });
        };
        let retained = Retained::new(&self.path, Format::Qcow2, size, file);
        Ok(TakenLayer { access, retained })
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero("discard", offset, len, |access, offset, len| access.discard_to_zero(offset, len))
    }

    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero("zero", offset, len, |access, offset, len| access.write_zeroes(offset, len))
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        let Some(access) = self.access.take() else { return };
        if self.broken {
            // Dropping would write back caches of unknown state; see the module's header.
            std::mem::forget(access);
        } else if catch_unwind(AssertUnwindSafe(|| drop(access))).is_err() {
            tracing::error!(path = ?self.path, "the qcow2 library failed while closing an image");
        }
    }
}
