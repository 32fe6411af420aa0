//! Making an overlay: an empty qcow2 image that shows another image until it is written to.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use imago::file::File;
use imago::qcow2::Qcow2CreateBuilder;
use imago::{FormatAccess, FormatCreateBuilder, StorageOpenOptions};

use crate::{DiskError, DiskSpec, Format, backing_chain, open};

/// Makes an overlay at `path`, where nothing may be, over the image of `base`, which it names by
/// its absolute path. The base is not written to, here or later.
///
/// # Errors
/// As [`open`] for the base; [`DiskError::Io`] when the overlay cannot be made.
pub fn create_overlay(path: &Path, base: &DiskSpec) -> Result<(), DiskError> {
    let base = DiskSpec { read_only: true, ..base.clone() };
    let format = match backing_chain(&base)?[0].1 {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    let size = open(base.clone())?.size();
    let failed = |source: io::Error| DiskError::Io {
        path: path.into(),
        operation: "create",
        offset: 0,
        len: 0,
        source,
    };
    let place = base.path.canonicalize().map_err(failed)?;
    let name = place.to_str().ok_or_else(|| DiskError::Unsupported {
        path: base.path.clone(),
        feature: "a backing file whose path is not UTF-8".into(),
        advice: "rename it, or the folder it is in",
    })?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let options = StorageOpenOptions::new().filename(path).write(true);
    File::from_open_file(file.map_err(failed)?, options)
        .and_then(|storage| {
            Qcow2CreateBuilder::<File, FormatAccess<File>>::new(storage)
                .size(size)
                .backing(name.into(), format.into())
                .create()
        })
        .map_err(failed)
}
