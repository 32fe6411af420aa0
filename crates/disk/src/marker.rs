//! A small file beside an image that is below a live overlay, so that nobody who names the image
//! gets yesterday's data, or spoils a checkpoint, without knowing.
//!
//! `IMAGE.doppel` has three lines: `doppel-parent 1`, `commit` or `keep`, and the overlay's path.
//!
//! - `commit`: the overlay is to be committed back (C9). Until that is done the overlay has the
//!   newest data; opening the image does it first. The overlay's file is removed when everything
//!   in it is in the image and durable, and before anything newer is, so at each moment one of
//!   the two is complete.
//! - `keep`: the image belongs to a checkpoint. Opening it for writing is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::commit::commit_now;
use crate::overlay::draft_name;
use crate::{DiskError, DiskSpec, Format};

const FIRST_LINE: &str = "doppel-parent 1";
const SUFFIX: &str = "doppel";
/// Longest file that can be one.
const LEN_MAX: u64 = 8192;

/// What is said about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The overlay that has the newest data.
    pub overlay: PathBuf,
    /// Whether the image stays as it is; else the overlay is to be committed into it.
    pub keep: bool,
}

impl Marker {
    /// The marker's file for an image.
    pub fn path_for(image: &Path) -> PathBuf {
        let mut name = image.as_os_str().to_owned();
        name.push(".");
        name.push(SUFFIX);
        name.into()
    }

    /// What is said about `image`, if anything.
    ///
    /// Fails with [`DiskError::Marker`].
    pub fn read(image: &Path) -> Result<Option<Marker>, DiskError> {
        let path = Marker::path_for(image);
        let bad = |what: String| DiskError::Marker { marker: path.clone(), what };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(error.to_string())),
        };
        let mut text = String::new();
        file.take(LEN_MAX).read_to_string(&mut text).map_err(|error| bad(error.to_string()))?;
        match text.split('\n').collect::<Vec<_>>()[..] {
            [FIRST_LINE, what @ ("commit" | "keep"), overlay, ""] if !overlay.is_empty() => {
                Ok(Some(Marker { overlay: overlay.into(), keep: what == "keep" }))
            }
            [first, ..] if first.starts_with("doppel-parent ") && first != FIRST_LINE => {
                Err(bad("it was written by a newer release of doppel".into()))
            }
            _ => Err(bad("it is damaged".into())),
        }
    }

    /// Says it about `image`, durably.
    ///
    /// Fails with [`DiskError::Marker`].
    pub fn write(&self, image: &Path) -> Result<(), DiskError> {
        let path = Marker::path_for(image);
        let bad = |error: io::Error| {
            let what = format!("cannot be written: {error}");
            DiskError::Marker { marker: path.clone(), what }
        };
        let overlay = self.overlay.to_str().filter(|path| !path.contains('\n'));
        let overlay = overlay.ok_or_else(|| bad(io::Error::from(ErrorKind::InvalidFilename)))?;
        let what = if self.keep { "keep" } else { "commit" };
        // One name, so that kills leave no more than one: only who has the image writes it.
        let temporary = draft_name(&path);
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).open(&temporary)?;
            file.write_all(format!("{FIRST_LINE}\n{what}\n{overlay}\n").as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_folder(&path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            bad(error)
        })
    }

    /// Says nothing any more about `image`.
    ///
    /// Fails with [`DiskError::Marker`].
    pub fn remove(image: &Path) -> Result<(), DiskError> {
        let path = Marker::path_for(image);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let what = format!("cannot be removed: {error}");
                Err(DiskError::Marker { marker: path, what })
            }
            _ => Ok(()),
        }
    }
}

/// Makes entries of the folder that `path` is in durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// What to open for `spec`: after a commit that was cut short, finishes it; or, for reading, gives
/// the overlay.
pub(crate) fn settle(spec: DiskSpec) -> Result<DiskSpec, DiskError> {
    let Some(Marker { overlay, keep }) = Marker::read(&spec.path)? else { return Ok(spec) };
    match (keep, spec.read_only) {
        (true, true) => Ok(spec),
        (true, false) => {
            let marker = Marker::path_for(&spec.path);
            Err(DiskError::Kept { path: spec.path, overlay, marker })
        }
        (false, true) if overlay.exists() => {
            Ok(DiskSpec { path: overlay, format: Some(Format::Qcow2), read_only: true })
        }
        (false, true) => Ok(spec),
        (false, false) => {
            if overlay.exists() {
                commit_now(&overlay, &spec)?;
            }
            // What was begun to be one has nothing in it.
            let _ = fs::remove_file(draft_name(&overlay));
            Marker::remove(&spec.path)?;
            Ok(spec)
        }
    }
}
