//! Which VMs of this user run: a lock file and a folder per VM in the runtime folder.
//!
//! `NAME.lock` is locked as long as the VM's process lives, and holds its process id; `NAME/`
//! has its sockets. A lock that can be had belongs to a process that is gone: whoever finds it
//! cleans up. A lock file is removed only by who holds its lock, so nobody ever locks a file that
//! is no longer the one at its path without noticing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use host::runtime_dir::{make_private, runtime_dir};

use crate::VmError;

/// Socket of the API in a VM's folder.
const API: &str = "api.sock";
/// Socket of the console in a VM's folder.
const CONSOLE: &str = "console.sock";
const LOCK_SUFFIX: &str = ".lock";
/// How often and how long to try again when somebody holds a lock just to look.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// A claim on a name; dropping it removes everything of that name.
#[derive(Debug)]
pub(crate) struct Entry {
    lock_path: PathBuf,
    dir: PathBuf,
    _lock: File,
}

/// A VM that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its process id, if it has told it yet.
    pub pid: Option<u32>,
    dir: PathBuf,
}

impl Entry {
    /// Claims `name` for this process.
    ///
    /// Fails with [`VmError::NameInUse`] if a VM of this name runs.
    pub fn claim(name: &str) -> Result<Entry, VmError> {
        Entry::claim_in(&runtime_dir()?, name)
    }

    fn claim_in(root: &Path, name: &str) -> Result<Entry, VmError> {
        let lock_path = root.join(format!("{name}{LOCK_SUFFIX}"));
        let mut tries = 0;
        let mut lock = loop {
            if let Some(lock) = try_lock(&lock_path)? {
                break lock;
            }
            tries += 1;
            if tries == TRIES {
                let pid = read_pid(&lock_path).map_or("?".into(), |pid| pid.to_string());
                return Err(VmError::NameInUse { name: name.into(), pid });
            }
            sleep(PAUSE);
        };
        let failed =
            |source| VmError::Registry { action: "write", path: lock_path.clone(), source };
        lock.set_len(0).map_err(failed)?;
        lock.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(failed)?;
        let dir = root.join(name);
        remove_dir(&dir)?;
        make_private(&dir)?;
        Ok(Entry { lock_path, dir, _lock: lock })
    }

    /// Where the API's socket is to be.
    pub fn api(&self) -> PathBuf {
        self.dir.join(API)
    }

    /// Where the console's socket is to be.
    pub fn console(&self) -> PathBuf {
        self.dir.join(CONSOLE)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What cannot be removed now is removed by whoever finds it.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.lock_path);
    }
}

impl Running {
    /// Socket of its API.
    pub fn api(&self) -> PathBuf {
        self.dir.join(API)
    }

    /// Socket of its console.
    pub fn console(&self) -> PathBuf {
        self.dir.join(CONSOLE)
    }
}

/// All VMs that run, by name. Leftovers of processes that are gone are removed.
///
/// # Errors
/// When the runtime folder cannot be made or read.
pub fn list() -> Result<Vec<Running>, VmError> {
    list_in(&runtime_dir()?)
}

/// The running VM of this name.
///
/// # Errors
/// When the runtime folder cannot be made or read.
pub fn find(name: &str) -> Result<Option<Running>, VmError> {
    Ok(list()?.into_iter().find(|vm| vm.name == name))
}

/// The VM of this name if it runs; costs no look at the others.
///
/// # Errors
/// When the runtime folder cannot be made.
pub fn running(name: &str) -> Result<Option<Running>, VmError> {
    let root = runtime_dir()?;
    let (lock_path, dir) = (root.join(format!("{name}{LOCK_SUFFIX}")), root.join(name));
    let pid = read_pid(&lock_path);
    Ok(pid.map(|pid| Running { name: name.into(), pid: Some(pid), dir }))
}

fn list_in(root: &Path) -> Result<Vec<Running>, VmError> {
    let failed = |source| VmError::Registry { action: "read", path: root.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let file_name = entry.map_err(failed)?.file_name();
        let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(LOCK_SUFFIX)) else {
            continue;
        };
        let lock_path = root.join(&file_name);
        let dir = root.join(name);
        match try_lock(&lock_path)? {
            Some(lock) => drop(Entry { lock_path, dir, _lock: lock }),
            None => {
                found.push(Running { name: name.into(), pid: read_pid(&lock_path), dir });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Locks the file at `path`, made if need be; `None` if another process has it locked.
fn try_lock(path: &Path) -> Result<Option<File>, VmError> {
    let failed =
        |action| move |source: io::Error| VmError::Registry { action, path: path.into(), source };
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        let ours = file.metadata().map_err(failed("examine"))?;
        // Between opening and locking, its holder may have removed it.
        if fs::metadata(path).is_ok_and(|is| (is.dev(), is.ino()) == (ours.dev(), ours.ino())) {
            return Ok(Some(file));
        }
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn remove_dir(dir: &Path) -> Result<(), VmError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmError::Registry { action: "remove", path: dir.into(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("doppel-reg-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        make_private(&path).unwrap();
        path
    }

    #[test]
    fn names_are_claimed_once_and_free_again() {
        let root = scratch("claim");
        let entry = Entry::claim_in(&root, "a").unwrap();
        let refused = Entry::claim_in(&root, "a").unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        let _other = Entry::claim_in(&root, "b").unwrap();
        let names: Vec<_> = list_in(&root).unwrap().into_iter().map(|vm| vm.name).collect();
        assert_eq!(names, ["a", "b"]);
        drop(entry);
        assert!(!root.join("a").exists() && !root.join("a.lock").exists());
        drop(Entry::claim_in(&root, "a").unwrap());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn leftovers_of_dead_processes_are_removed() {
        let root = scratch("stale");
        for name in ["dead", "gone"] {
            fs::write(root.join(format!("{name}.lock")), "999999\n").unwrap();
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join(API), "").unwrap();
        }
        drop(Entry::claim_in(&root, "dead").unwrap());
        assert!(!root.join("dead").exists());
        assert_eq!(list_in(&root).unwrap(), []);
        assert!(!root.join("gone").exists() && !root.join("gone.lock").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
