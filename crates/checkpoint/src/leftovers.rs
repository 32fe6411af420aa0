//! What processes that were killed left of checkpoints: found by name, owner and contents, and
//! removed by whoever makes a checkpoint beside it.
//!
//! A draft is the folder `NAME.part-PID`, locked as long as it is filled. It is a leftover if
//! there is no such process, nobody has it locked, it is ours, and nothing but files of a
//! checkpoint is in it. A folder that only looks like one is left alone.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, geteuid, test_kill_process};

use crate::lineage::PRUNING;
use crate::store::{INDEX, MANIFEST, MEMORY, PACKED, SECTIONS};

/// Between a checkpoint's name and the process that is making it.
pub(crate) const PART: &str = ".part-";
/// Files of a checkpoint, but for its disks.
const NAMES: [&str; 6] = [INDEX, MANIFEST, MEMORY, PACKED, PRUNING, SECTIONS];

/// Removes what is left in `folder`, as far as that can be done.
pub(crate) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.rsplit_once(PART)).map(|(_, id)| id);
        let Some(process) = process.and_then(|id| id.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let path = entry.path();
        if is_gone(process) && is_ours(&path) && is_draft(&path) && !is_locked(&path) {
            // Whoever comes next tries again.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn is_gone(process: Pid) -> bool {
    test_kill_process(process) == Err(Errno::SRCH)
}

fn is_ours(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path);
    metadata.is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == geteuid().as_raw())
}

fn is_draft(path: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(path) else { return false };
    entries.all(|entry| {
        let Ok(entry) = entry else { return false };
        let (name, kind) = (entry.file_name(), entry.file_type());
        let is_disk = |name: &str| name.starts_with("disk") && name.ends_with(".qcow2");
        kind.is_ok_and(|kind| kind.is_file())
            && name.to_str().is_some_and(|name| NAMES.contains(&name) || is_disk(name))
    })
}

/// A process elsewhere (another container) may have it, whose number says nothing here.
fn is_locked(path: &Path) -> bool {
    let Ok(folder) = File::open(path) else { return true };
    matches!(folder.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("doppel-left-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    /// The number of a process that has ended.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn leftovers_of_dead_processes_go_and_all_else_stays() {
        let root = scratch("sweep");
        let (gone, here) = (dead(), std::process::id());
        let make = |name: String, files: &[&str]| {
            let folder = root.join(name);
            fs::create_dir(&folder).unwrap();
            files.iter().for_each(|file| fs::write(folder.join(file), "x").unwrap());
            folder
        };
        let empty = make(format!("a.part-{gone}"), &[]);
        let half = make(format!("b.part-{gone}"), &[MEMORY, "disk0.qcow2"]);
        let stay = [
            make(format!("c.part-{here}"), &[MEMORY]),
            make(format!("d.part-{gone}"), &[MEMORY, "letters.txt"]),
            make("e.part-x".into(), &[]),
            make(format!("f{gone}"), &[]),
        ];
        let locked = make(format!("g.part-{gone}"), &[MEMORY]);
        let lock = File::open(&locked).unwrap();
        lock.try_lock().unwrap();
        std::os::unix::fs::symlink(&stay[3], root.join(format!("h.part-{gone}"))).unwrap();
        sweep(&root);
        assert!(!empty.exists() && !half.exists());
        assert!(stay.iter().all(|path| path.exists()), "{stay:?}");
        assert!(locked.exists());
        drop(lock);
        sweep(&root);
        assert!(!locked.exists());
        fs::remove_dir_all(root).unwrap();
    }
}
