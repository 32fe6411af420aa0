//! Overlays: a new qcow2 image over a disk that is in use, made while it is used, and put on top
//! of it in an instant (mechanisms C2, C3).
//!
//! ```text
//!   before:  P (read and written)        after:  O (read and written)
//!                                                 '--> P (read only, kept as it is)
//! ```
//!
//! Everything that can fail happens before the instant ([`Overlay::create`]) or leaves the disk as
//! it was; the instant itself only hangs P below O. P's lock then lets readers in.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File as ImagoFile;
use imago::format::builder::{FormatCreateBuilder, FormatDriverBuilder};
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, StorageOpenOptions};

use crate::chain::open_beneath;
use crate::lock::{self, lock};
use crate::marker::sync_folder;
use crate::qcow2::{guarded, open_layer};
use crate::{BlockBackend, DiskError, DiskSpec, Format, Qcow2Disk, RawDisk};

/// Bytes of an overlay's cluster: what a first write copies.
pub(crate) const CLUSTER_SIZE: u64 = 64 << 10;

/// An image that a new overlay is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The image.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Bytes of the disk.
    pub size: u64,
}

/// A new overlay, open and locked, with nothing below it yet.
pub struct Overlay {
    pub(crate) path: PathBuf,
    pub(crate) image: Qcow2<ImagoFile>,
    pub(crate) lock_file: File,
    pub(crate) size: u64,
}

/// The image below an overlay, kept as it was at the switch.
#[derive(Debug)]
pub struct Retained {
    path: PathBuf,
    format: Format,
    size: u64,
    /// The open file description that holds the lock.
    file: File,
}

/// What an image gives when another one is put on top of it.
pub struct TakenLayer {
    pub(crate) access: FormatAccess<ImagoFile>,
    pub(crate) retained: Retained,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("path", &self.path).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TakenLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TakenLayer").field("retained", &self.retained).finish_non_exhaustive()
    }
}

/// Makes an empty overlay file at `path`, which must not exist, over `parent`.
///
/// `name` is what the overlay calls its parent: a path relative to the overlay's folder, or an
/// absolute one. Fails with [`DiskError::Create`].
pub fn empty_overlay(path: &Path, parent: &Parent, name: &Path) -> Result<(), DiskError> {
    create(path, parent.size, Some((name, parent.format))).map(drop)
}

/// Makes an empty qcow2 file at `path`, which must not exist; open for reading and writing.
pub(crate) fn create(
    path: &Path,
    size: u64,
    backing: Option<(&Path, Format)>,
) -> Result<File, DiskError> {
    let failed = |source| DiskError::Create { path: path.into(), source };
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)?;
    let made = guarded(path, || {
        let options = StorageOpenOptions::new().filename(path).write(true);
        let storage = ImagoFile::from_open_file(file.try_clone()?, options)?;
        let mut builder = Qcow2::<ImagoFile>::create_builder(storage).size(size);
        if let Some((name, format)) = backing {
            let name = name.to_str().ok_or_else(|| {
                let what = "the parent's path is not UTF-8, which a qcow2 header cannot say";
                io::Error::new(io::ErrorKind::InvalidInput, what)
            })?;
            builder = builder.backing(name.into(), format.name().into());
        }
        builder.create()
    });
    match made {
        Ok(Ok(())) => Ok(file),
        Ok(Err(source)) => {
            let _ = fs::remove_file(path);
            Err(failed(source))
        }
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Where an overlay is while it is made.
pub(crate) fn draft_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Renames a file to a name that nothing has.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
    Ok(rustix::fs::renameat_with(here, from, here, to, flags)?)
}

impl Overlay {
    /// Makes an overlay at `path`, which must not exist, and opens and locks it. It is made
    /// durable, so that the disk survives whatever happens after the switch.
    ///
    /// Fails with [`DiskError::Create`], and leaves nothing then.
    pub fn create(path: &Path, parent: &Parent) -> Result<Overlay, DiskError> {
        let name = std::path::absolute(&parent.path);
        let name = name.map_err(|source| DiskError::Create { path: path.into(), source })?;
        // Under its name it is whole from the beginning: whoever finds it after a crash commits it.
        let draft = draft_name(path);
        let _ = fs::remove_file(&draft);
        let file = create(&draft, parent.size, Some((&name, parent.format)))?;
        let opened = Overlay::open(path, &file, parent.size).and_then(|overlay| {
            let named = rename_new(&draft, path).and_then(|()| sync_folder(path));
            named.map_err(|source| DiskError::Create { path: path.into(), source })?;
            Ok(overlay)
        });
        if opened.is_err() {
            let _ = fs::remove_file(&draft);
        }
        opened
    }

    fn open(path: &Path, file: &File, size: u64) -> Result<Overlay, DiskError> {
        lock(file, path, true)?;
        let failed = |source| DiskError::Create { path: path.into(), source };
        file.sync_all().map_err(failed)?;
        let opened = guarded(path, || {
            let options = StorageOpenOptions::new().filename(path).write(true);
            let storage = ImagoFile::from_open_file(file.try_clone()?, options)?;
            Qcow2::<ImagoFile>::builder(storage)
                .write(true)
                .backing(None)
                .data_file(None)
                .open(DenyImplicitOpenGate::default())
        })?;
        let image = opened.map_err(failed)?;
        let lock_file = file.try_clone().map_err(failed)?;
        Ok(Overlay { path: path.into(), image, lock_file, size })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the overlay on top of what `below` gives up. If that fails, `below` goes on as it was.
    pub(crate) fn cover(
        mut self,
        below: &mut dyn BlockBackend,
    ) -> Result<(Box<dyn BlockBackend>, Retained), DiskError> {
        if below.size() != self.size {
            let (found, expected) = (self.size, below.size());
            return Err(DiskError::OverlaySize { path: self.path, found, expected });
        }
        let TakenLayer { access, retained } = below.take_layer()?;
        self.image.set_backing(Some(access));
        let access = FormatAccess::new(self.image);
        let disk = Qcow2Disk::over(self.path, access, CLUSTER_SIZE, self.lock_file);
        Ok((Box::new(disk), retained))
    }
}

impl Retained {
    pub(crate) fn new(path: &Path, format: Format, size: u64, file: File) -> Retained {
        Retained { path: path.into(), format, size, file }
    }

    /// What it is.
    pub fn parent(&self) -> Parent {
        Parent { path: self.path.clone(), format: self.format, size: self.size }
    }

    /// Makes what was written durable, and lets other processes read the image.
    ///
    /// Fails with [`DiskError::Io`] or [`DiskError::Lock`].
    pub fn share(&self) -> Result<(), DiskError> {
        self.sync()?;
        lock::downgrade(&self.file, &self.path)
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_all().map_err(|source| DiskError::Io {
            path: self.path.clone(),
            operation: "flush",
            offset: 0,
            len: self.size,
            source,
        })
    }

    /// Opens it for reading, with what is below it.
    ///
    /// Fails as [`crate::open`] does.
    pub fn open_reader(&self) -> Result<Box<dyn BlockBackend>, DiskError> {
        let (path, format) = (self.path.clone(), Some(self.format));
        crate::open::open_as_it_is(&DiskSpec { path, format, read_only: true })
    }

    /// Takes it back for writing: nobody else may read it any more.
    ///
    /// Fails with [`DiskError::InUse`] while others do, and as [`crate::open`] does.
    pub fn reclaim(&self) -> Result<Box<dyn BlockBackend>, DiskError> {
        lock::upgrade(&self.file, &self.path)?;
        let file = self.file.try_clone();
        let file = file.map_err(|source| DiskError::Create { path: self.path.clone(), source })?;
        let len = file.metadata().map_or(self.size, |metadata| metadata.len().max(self.size));
        match self.format {
            Format::Raw => Ok(Box::new(RawDisk::new(&self.path, file, self.size, false)?)),
            Format::Qcow2 => {
                let layers = open_beneath(&self.path, file, len, Format::Qcow2)?;
                Ok(Box::new(Qcow2Disk::new(layers, false)?))
            }
        }
    }
}

/// A layer's library access, for hanging it below an overlay.
pub(crate) fn raw_access(path: &Path, file: File) -> Result<FormatAccess<ImagoFile>, DiskError> {
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let (format, cluster_size) = (Format::Raw, crate::SECTOR_SIZE);
    let layer = crate::chain::Layer { path: path.into(), file, len, format, cluster_size };
    open_layer(layer, None, true)
}
