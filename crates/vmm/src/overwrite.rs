//! No file that a run writes its output to is one that it boots or reads: that would be emptied.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use host::console::ConsoleSpec;

use crate::prepare::perf_map_path;
use crate::{VmError, VmSpec};

/// Refuses a console file or hash log that is the kernel, the initrd, a disk, or another such.
///
/// # Errors
/// [`VmError::Flags`] with the two flags, or [`VmError::Disk`] of a chain that cannot be followed.
pub(crate) fn check(spec: &VmSpec) -> Result<(), VmError> {
    let mut taken: Vec<(&str, PathBuf)> = vec![("--kernel", spec.kernel.clone())];
    taken.extend(spec.initrd.iter().map(|path| ("--initrd", path.clone())));
    for disk in &spec.disks {
        let chain = disk::backing_chain(disk).map_err(VmError::Disk)?;
        taken.extend(chain.into_iter().map(|(path, _)| ("--disk", path)));
    }
    for (flag, path) in outputs(spec) {
        let same = |other: &&(&str, PathBuf)| is_same(&other.1, &path);
        if let Some((other, _)) = taken.iter().find(same) {
            let message =
                format!("{flag} {path:?} is what {other} uses; it would be lost: give another");
            return Err(VmError::Flags(message));
        }
        taken.push((flag, path));
    }
    Ok(())
}

fn outputs(spec: &VmSpec) -> Vec<(&'static str, PathBuf)> {
    let consoles = [
        ("--console", Some(&spec.console)),
        ("--serial2", Some(&spec.serial2)),
        ("--hvc", spec.hvc.as_ref()),
    ];
    let files = consoles.into_iter().filter_map(|(flag, to)| match to? {
        ConsoleSpec::File(path) => Some((flag, path.clone())),
        _ => None,
    });
    let hash_log = spec.checks.hash_log.iter().map(|path| ("--hash-log", path.clone()));
    let perf_map = spec.perf_map.iter().map(|path| ("--perf-map", perf_map_path(path)));
    files.chain(hash_log).chain(perf_map).collect()
}

/// Whether two names are of one file, by links of either kind too.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).ok().map(|is| (is.dev(), is.ino()));
    id(one).is_some() && id(one) == id(other) || one == other
}
