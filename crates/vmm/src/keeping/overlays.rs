//! Overlays for a checkpoint: named, announced and made before the stop; undone if it never comes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use disk::{DiskError, Marker, Overlay, Parent};

use super::keeper::LiveDisk;

/// Most numbers that are tried for an overlay's name.
const NUMBERS_MAX: u32 = 100_000;

/// An overlay that waits for the stop. Dropping it undoes it.
pub(crate) struct Waiting {
    pub index: usize,
    pub parent: Parent,
    pub path: PathBuf,
    overlay: Option<Overlay>,
    switched: bool,
}

impl Waiting {
    /// Makes overlays for all disks that can be written. Until all is done a crash leaves a marker
    /// that has the overlay committed back, whatever the policy.
    pub fn all(disks: &[LiveDisk], keep: bool) -> Result<Vec<Waiting>, DiskError> {
        let writable = disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
        writable.map(|(index, disk)| Waiting::one(index, disk, keep)).collect()
    }

    fn one(index: usize, disk: &LiveDisk, keep: bool) -> Result<Waiting, DiskError> {
        let parent = Parent { path: disk.path.clone(), format: disk.format, size: disk.size };
        let path = if keep { next_name(&disk.path) } else { live_name(&disk.path) };
        let mut waiting = Waiting { index, parent, path, overlay: None, switched: false };
        let marker = Marker { overlay: waiting.path.clone(), keep: false };
        marker.write(&waiting.parent.path)?;
        waiting.overlay = Some(Overlay::create(&waiting.path, &waiting.parent)?);
        Ok(waiting)
    }

    /// Gives the overlay away, to be put on top of its disk.
    pub fn take(&mut self) -> Option<(usize, Overlay)> {
        self.overlay.take().map(|overlay| (self.index, overlay))
    }

    /// The overlay is on top: its fate is the disk's now.
    pub fn has_switched(&mut self) {
        self.switched = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.switched {
            return;
        }
        if self.overlay.take().is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
        if let Err(error) = Marker::remove(&self.parent.path) {
            tracing::warn!("{error}");
        }
    }
}

/// The name of an overlay that is soon committed back.
fn live_name(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".live.qcow2");
    name.into()
}

/// The first name of the row `disk.1.qcow2`, `disk.2.qcow2`, ... that is free.
fn next_name(image: &Path) -> PathBuf {
    let stem = image.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let stem = stem.unwrap_or_default();
    let (base, number) = match stem.rsplit_once('.') {
        Some((base, number)) => match number.parse::<u32>() {
            Ok(number) => (base.to_owned(), number),
            Err(_) => (stem.clone(), 0),
        },
        None => (stem.clone(), 0),
    };
    let named =
        |number: u32| image.with_file_name(OsString::from(format!("{base}.{number}.qcow2")));
    let mut candidates = (number.saturating_add(1)..NUMBERS_MAX).map(named);
    let free = candidates.find(|path| !path.exists() && !Marker::path_for(path).exists());
    free.unwrap_or_else(|| live_name(image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_on_from_the_image_s_own() {
        for (image, name) in [
            ("/nowhere/debian.qcow2", "debian.1.qcow2"),
            ("/nowhere/debian.1.qcow2", "debian.2.qcow2"),
            ("/nowhere/disk.raw", "disk.1.qcow2"),
            ("/nowhere/a.b", "a.1.qcow2"),
            ("/nowhere/x.y.7.qcow2", "x.y.8.qcow2"),
        ] {
            assert_eq!(next_name(Path::new(image)), Path::new("/nowhere").join(name));
        }
    }
}
