//! Opening a disk: which format it has, and the backend for it.
//!
//! # How the format is decided
//! A guest owns every byte of a raw disk: it can write a qcow2 header into it that names any host
//! file as backing file. So content alone never makes an image qcow2:
//!
//! | `format=` | first bytes | name | result |
//! |---|---|---|---|
//! | raw | any | any | raw |
//! | qcow2 | qcow2 | any | qcow2 |
//! | qcow2 | other | any | refused ([`DiskError::NotQcow2`]) |
//! | none | qcow2 | `.qcow2` or `.qcow` | qcow2 |
//! | none | qcow2 | other | refused ([`DiskError::FormatUnclear`]) |
//! | none | other | `.qcow2` or `.qcow` | refused ([`DiskError::NotQcow2`]) |
//! | none | other | `.vmdk`, `.vdi`, `.vhd`, `.vhdx`, `.vpc` | refused: convert it |
//! | none | other | other | raw |
//!
//! The same table decides a backing file whose format its overlay does not state. What remains:
//! whoever names a raw image `.qcow2` and opens it once with `format=raw` must go on saying so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::chain::{Layer, open_chain};
use crate::header::MAGIC;
use crate::marker;
use crate::{BlockBackend, DiskError, Qcow2Disk, RawDisk};

/// How the bytes of an image file make a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// They are the disk.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// As `qemu-img` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    pub fn named(name: &str) -> Option<Format> {
        [Format::Raw, Format::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

/// An image to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// A regular file or block device.
    pub path: PathBuf,
    /// The format if the user named it; see the module's table otherwise.
    pub format: Option<Format>,
    /// Open for reading only, which shares the image with other readers.
    pub read_only: bool,
}

/// Opens, checks and locks an image and all its backing files.
///
/// Fails with the variant of [`DiskError`] that says what is wrong with the file; the image is
/// then as it was.
pub fn open(spec: DiskSpec) -> Result<Box<dyn BlockBackend>, DiskError> {
    open_as_it_is(&marker::settle(spec)?)
}

/// As [`open`], whatever a marker says.
pub(crate) fn open_as_it_is(spec: &DiskSpec) -> Result<Box<dyn BlockBackend>, DiskError> {
    let mut layers = open_chain(spec)?;
    if layers[0].format == Format::Raw {
        let Layer { path, file, len, .. } = layers.swap_remove(0);
        return Ok(Box::new(RawDisk::new(&path, file, len, spec.read_only)?));
    }
    Ok(Box::new(Qcow2Disk::new(layers, spec.read_only)?))
}

/// The files that opening `spec` would use, the image itself first, with their formats; for
/// showing them, and for giving a jailed process access to them.
///
/// Fails as [`open`] does.
pub fn backing_chain(spec: &DiskSpec) -> Result<Vec<(PathBuf, Format)>, DiskError> {
    let layers = open_chain(&marker::settle(spec.clone())?)?;
    Ok(layers.into_iter().map(|layer| (layer.path, layer.format)).collect())
}

/// Applies the module's table.
pub(crate) fn decide_format(
    path: &Path,
    file: &File,
    named: Option<Format>,
) -> Result<Format, DiskError> {
    let mut first = [0; MAGIC.len()];
    let looks_qcow2 = file.read_exact_at(&mut first, 0).is_ok() && first == MAGIC;
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let extension = extension.as_deref().unwrap_or("");
    let named_qcow2 = matches!(extension, "qcow2" | "qcow");
    match (named, looks_qcow2) {
        (Some(Format::Raw), _) => Ok(Format::Raw),
        (Some(Format::Qcow2), true) => Ok(Format::Qcow2),
        (Some(Format::Qcow2), false) => Err(DiskError::NotQcow2 { path: path.into() }),
        (None, true) if named_qcow2 => Ok(Format::Qcow2),
        (None, true) => Err(DiskError::FormatUnclear { path: path.into() }),
        (None, false) if named_qcow2 => Err(DiskError::NotQcow2 { path: path.into() }),
        (None, false) if matches!(extension, "vmdk" | "vdi" | "vhd" | "vhdx" | "vpc") => {
            Err(DiskError::Unsupported {
                path: path.into(),
                feature: format!("the image format .{extension}"),
                advice: "convert it with `qemu-img convert -O qcow2`, or add format=raw if it is \
                         raw in spite of its name",
            })
        }
        (None, false) => Ok(Format::Raw),
    }
}
