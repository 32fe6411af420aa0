//! Copying a disk that nobody writes into a new image that stands alone.

use std::fs;
use std::path::Path;

use crate::overlay::create;
use crate::{BlockBackend, DiskError, DiskSpec, Format, Retained};

/// Bytes copied at once.
const STEP_SIZE: u64 = 1 << 20;
/// Bytes that are left out of the copy if they are all zero.
const GRAIN: usize = 64 << 10;

/// Copies what `from` holds into a new qcow2 image at `to`, which must not exist. `progress` is
/// told the bytes of the disk that are done, and ends the copy by saying false.
///
/// Fails with [`DiskError`]; nothing is left then.
pub fn copy_disk(
    from: &Retained,
    to: &Path,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), DiskError> {
    let mut source = from.open_reader()?;
    let copied = copy(source.as_mut(), to, progress);
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

fn copy(
    from: &mut dyn BlockBackend,
    to: &Path,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), DiskError> {
    let size = from.size();
    drop(create(to, size, None)?);
    let spec = DiskSpec { path: to.into(), format: Some(Format::Qcow2), read_only: false };
    let mut copy = crate::open::open_as_it_is(&spec)?;
    let (mut offset, mut bytes) = (0, vec![0; STEP_SIZE as usize]);
    while offset < size {
        let len = STEP_SIZE.min(size - offset) as usize;
        from.read_at(offset, &mut bytes[..len])?;
        for (index, grain) in bytes[..len].chunks(GRAIN).enumerate() {
            if grain.iter().any(|byte| *byte != 0) {
                copy.write_at(offset + (index * GRAIN) as u64, grain)?;
            }
        }
        offset += len as u64;
        if !progress(offset) {
            let source = std::io::Error::from(std::io::ErrorKind::Interrupted);
            return Err(DiskError::Create { path: to.into(), source });
        }
    }
    copy.flush()
}
