//! An image and its backing files: found, opened, locked and checked before any of them is used.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::check::verify;
use crate::header::{Backing, Header};
use crate::lock::lock;
use crate::open::decide_format;
use crate::raw::check_size;
use crate::{DiskError, DiskSpec, Format, SECTOR_SIZE};

/// Most images in one chain, the one on top included. Each costs a file descriptor and caches.
pub const BACKING_DEPTH_MAX: usize = 256;

/// One image of a chain, open and locked, its tables checked.
pub(crate) struct Layer {
    pub path: PathBuf,
    pub file: File,
    /// Bytes of the file or device.
    pub len: u64,
    pub format: Format,
    /// Bytes of a cluster; of a sector for a raw image.
    pub cluster_size: u64,
}

/// Opens `spec`'s image and everything below it, topmost first; never empty.
pub(crate) fn open_chain(spec: &DiskSpec) -> Result<Vec<Layer>, DiskError> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen: Vec<(u64, u64)> = Vec::new();
    let mut next = Some((spec.path.clone(), spec.format));
    while let Some((path, format)) = next {
        let above = layers.last().map(|layer| layer.path.clone());
        if layers.len() == BACKING_DEPTH_MAX {
            return Err(DiskError::BackingTooDeep {
                path: spec.path.clone(),
                max: BACKING_DEPTH_MAX - 1,
            });
        }
        let writable = above.is_none() && !spec.read_only;
        let opened = open_layer(&path, format, writable, &mut seen, above.as_deref());
        let (layer, backing) = opened.map_err(|source| below(above, source))?;
        next = match backing {
            None => None,
            Some(backing) => Some(backing_of(&layer.path, backing)?),
        };
        layers.push(layer);
    }
    Ok(layers)
}

/// The chain of `file`, open and locked already, with everything below it opened for reading.
pub(crate) fn open_beneath(
    path: &Path,
    file: File,
    len: u64,
    format: Format,
) -> Result<Vec<Layer>, DiskError> {
    let header = Header::read(path, &file, len)?;
    let cluster_size = header.cluster_size;
    let mut layers = vec![Layer { path: path.into(), file, len, format, cluster_size }];
    if let Some(backing) = header.backing {
        let (path, format) = backing_of(path, backing)?;
        layers.extend(open_chain(&DiskSpec { path, format, read_only: true })?);
    }
    Ok(layers)
}

/// Says whose backing file an error is about, unless the error does or the image is on top.
fn below(above: Option<PathBuf>, source: DiskError) -> DiskError {
    match (above, source) {
        (None, source) | (_, source @ DiskError::BackingLoop { .. }) => source,
        (Some(image), source) => DiskError::Backing { image, source: Box::new(source) },
    }
}

fn open_layer(
    path: &Path,
    named: Option<Format>,
    writable: bool,
    seen: &mut Vec<(u64, u64)>,
    above: Option<&Path>,
) -> Result<(Layer, Option<Backing>), DiskError> {
    let (file, len, identity) = open_file(path, writable)?;
    if seen.contains(&identity) {
        let from = above.unwrap_or(path).into();
        return Err(DiskError::BackingLoop { path: path.into(), from });
    }
    seen.push(identity);
    lock(&file, path, writable)?;
    let format = decide_format(path, &file, named)?;
    let (backing, cluster_size) = match format {
        Format::Raw => {
            check_size(path, len, !writable)?;
            (None, SECTOR_SIZE)
        }
        Format::Qcow2 => {
            let header = Header::read(path, &file, len)?;
            verify(path, &file, len, &header, writable)?;
            (header.backing, header.cluster_size)
        }
    };
    Ok((Layer { path: path.into(), file, len, format, cluster_size }, backing))
}

/// Opens a regular file or block device; gives its length in bytes and (device, inode).
fn open_file(path: &Path, writable: bool) -> Result<(File, u64, (u64, u64)), DiskError> {
    let failed = |source: io::Error| DiskError::Open {
        path: path.into(),
        hint: hint(&source, writable),
        source,
    };
    // Look before opening: opening a tape, a FIFO or a modem has effects.
    check_kind(path, &std::fs::metadata(path).map_err(failed)?)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    check_kind(path, &metadata)?;
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, len, (metadata.dev(), metadata.ino())))
}

fn check_kind(path: &Path, metadata: &std::fs::Metadata) -> Result<(), DiskError> {
    let kind = metadata.file_type();
    let kind = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "something else"
    };
    Err(DiskError::NotADisk { path: path.into(), kind })
}

fn hint(error: &io::Error, writable: bool) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "; check the path, or make it with `qemu-img create`",
        ErrorKind::PermissionDenied if writable => {
            "; allow this user to write it, or add readonly if reading is enough"
        }
        ErrorKind::PermissionDenied => "; allow this user to read it",
        ErrorKind::ReadOnlyFilesystem => "; add readonly, or copy it elsewhere",
        _ => "",
    }
}

/// Where the backing file of `image` is and which format it has, if `image` says.
fn backing_of(image: &Path, backing: Backing) -> Result<(PathBuf, Option<Format>), DiskError> {
    let unsupported =
        |feature: String, advice| DiskError::Unsupported { path: image.into(), feature, advice };
    let format = match backing.format.as_deref() {
        None => None,
        Some("raw") => Some(Format::Raw),
        Some("qcow2") => Some(Format::Qcow2),
        Some(other) => {
            return Err(unsupported(
                format!("a backing file of format {other:?}"),
                "convert that file to raw or qcow2 and name it with `qemu-img rebase -u`",
            ));
        }
    };
    let name = backing.name.strip_prefix("file:").unwrap_or(&backing.name);
    let protocol = name.split('/').next().unwrap_or("");
    if protocol.contains(':') {
        return Err(unsupported(
            format!("the backing file {name:?} over a protocol"),
            "name a file with `qemu-img rebase -u -b FILE -F FORMAT`",
        ));
    }
    let folder = image.parent().unwrap_or(Path::new(""));
    Ok((folder.join(name), format))
}
