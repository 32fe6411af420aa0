//! What can go wrong with a disk image, in words for the person who named the image.

use std::io;
use std::path::PathBuf;

/// Why an image could not be opened, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file could not be opened.
    #[error("cannot open disk image {path:?}: {source}{hint}")]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
        /// What to do, with its own punctuation, or empty.
        hint: &'static str,
    },
    /// The path names something that cannot be a disk.
    #[error(
        "{path:?} is {kind}, not a disk image; name a regular file or a block device with path="
    )]
    NotADisk {
        /// The path given.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// Another process uses the image in a way that excludes this use.
    #[error(
        "disk image {path:?} is in use by another process; stop that one first, or add readonly \
         to both (readers share an image, a writer needs it alone)"
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The file system gave no answer about locks.
    #[error("cannot lock disk image {path:?}: {source}; move it to a file system with locks")]
    Lock {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The first bytes say qcow2, the name does not, and nobody said which is right.
    #[error(
        "{path:?} begins like a qcow2 image but is not named .qcow2; a guest can write such bytes \
         into a raw disk, so say which it is: format=raw or format=qcow2"
    )]
    FormatUnclear {
        /// The image.
        path: PathBuf,
    },
    /// A qcow2 image was asked for, or named so, and the file is none.
    #[error(
        "{path:?} does not begin like a qcow2 image; use format=raw if it is a raw one, or make a \
         new image with `qemu-img create -f qcow2`"
    )]
    NotQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// The image is intact but uses something this program does not have.
    #[error("disk image {path:?} uses {feature}, which is not supported; {advice}")]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// The feature, by its name in the qcow2 specification where it has one.
        feature: String,
        /// What to do.
        advice: &'static str,
    },
    /// A new image could not be made.
    #[error("cannot make disk image {path:?}: {source}")]
    Create {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk cannot have an overlay put on top of it now.
    #[error("no overlay can be put on this disk: {why}")]
    NoOverlay {
        /// Why.
        why: &'static str,
    },
    /// An overlay of another size than its parent.
    #[error("overlay {path:?} has {found} bytes, its parent {expected}")]
    OverlaySize {
        /// The overlay.
        path: PathBuf,
        /// Its size, bytes.
        found: u64,
        /// The parent's, bytes.
        expected: u64,
    },
    /// The image is part of checkpoints and must stay as it is.
    #[error(
        "{path:?} is kept as it is for a checkpoint; the VM that used it goes on with {overlay:?}, \
         so name that one, or add readonly. If neither the checkpoint nor that overlay is needed \
         any more, remove {marker:?}"
    )]
    Kept {
        /// The image.
        path: PathBuf,
        /// The overlay that holds what came after.
        overlay: PathBuf,
        /// The file that says so.
        marker: PathBuf,
    },
    /// The file beside an image that tells its part in a checkpoint makes no sense.
    #[error(
        "{marker:?}: {what}; it tells where the newest data of the image beside it is, so find \
         that out before you remove it"
    )]
    Marker {
        /// The file.
        marker: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The image contradicts itself or its length.
    #[error(
        "qcow2 image {path:?} is damaged: {what}; look at it with `qemu-img check`, repair a copy \
         with `qemu-img check -r all`"
    )]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// What is wrong and where.
        what: String,
    },
    /// The size cannot be that of a disk.
    #[error("disk image {path:?} has {size} bytes, {problem}")]
    Size {
        /// The image.
        path: PathBuf,
        /// Size of the disk in bytes.
        size: u64,
        /// What is wrong with it and what to do.
        problem: &'static str,
    },
    /// An image is its own backing file, directly or through others.
    #[error(
        "backing files go in a circle: {path:?} is reached again from {from:?}; give {from:?} \
         another backing file with `qemu-img rebase -u`"
    )]
    BackingLoop {
        /// The image met twice.
        path: PathBuf,
        /// The image that names it the second time.
        from: PathBuf,
    },
    /// Too many images in one chain.
    #[error(
        "disk image {path:?} has more than {max} backing files below it; merge some with \
         `qemu-img commit` or `qemu-img rebase`"
    )]
    BackingTooDeep {
        /// The image on top.
        path: PathBuf,
        /// Largest number of images in a chain.
        max: usize,
    },
    /// A backing file could not be used.
    #[error("backing file of {image:?}: {source}")]
    Backing {
        /// The image that names the backing file.
        image: PathBuf,
        /// What is wrong with the backing file.
        source: Box<DiskError>,
    },
    /// A request reaches past the end of the disk, or wraps around.
    #[error("request for {len} bytes at offset {offset} does not fit a disk of {size} bytes")]
    OutOfRange {
        /// Byte offset asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// A change was asked of a disk opened for reading.
    #[error("disk image {path:?} is open for reading only; leave out readonly to write to it")]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// The host failed to do an operation.
    #[error("cannot {operation} {len} bytes at offset {offset} of disk image {path:?}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried: read, write, ...
        operation: &'static str,
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// Written data may not be on stable storage, and no later flush can prove it is.
    #[error(
        "disk image {path:?}: an earlier flush failed, so what was written may be lost; check the \
         host's storage, then the image"
    )]
    FlushLost {
        /// The image.
        path: PathBuf,
    },
    /// The qcow2 library panicked; the image is not touched any more.
    #[error(
        "the qcow2 library failed on {path:?} ({what}); the image is left alone from here on, \
         examine it with `qemu-img check`"
    )]
    Library {
        /// The image.
        path: PathBuf,
        /// The panic's message.
        what: String,
    },
}
