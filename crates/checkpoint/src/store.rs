//! Files of a checkpoint: written under a temporary name, made durable, renamed when whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::CheckpointError;
use crate::leftovers::{self, PART};

/// Name of the manifest, which makes a folder a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Name of the sections.
pub(crate) const SECTIONS: &str = "sections.bin";
/// Name of the index of pages.
pub(crate) const INDEX: &str = "pages.idx";
/// Name of guest memory, each page at its offset.
pub(crate) const MEMORY: &str = "memory.img";
/// Name of guest memory that is packed.
pub(crate) const PACKED: &str = "memory.pack";

/// Name of guest memory.
pub(crate) const fn memory_name(packed: bool) -> &'static str {
    if packed { PACKED } else { MEMORY }
}

/// Says what was tried with which file.
pub(crate) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io { action, path: path.into(), source }
}

/// A folder that is being filled. Dropping it removes it, unless it was finished.
#[derive(Debug)]
pub(crate) struct Draft {
    folder: PathBuf,
    target: PathBuf,
    finished: bool,
    /// Has the folder locked.
    _lock: Option<File>,
}

impl Draft {
    /// Starts a draft of what is to be `target`, which must not exist.
    pub fn new(target: &Path) -> Result<Draft, CheckpointError> {
        if fs::symlink_metadata(target).is_ok() {
            return Err(CheckpointError::Exists { path: target.into() });
        }
        Draft::beside(target)
    }

    /// Starts a draft of what is to take the place of `target`, or to be there.
    pub fn beside(target: &Path) -> Result<Draft, CheckpointError> {
        leftovers::sweep(parent(target));
        let folder = draft_name(target);
        if fs::symlink_metadata(&folder).is_ok() {
            // Of this process, or of one before it that had its number: nobody else's.
            fs::remove_dir_all(&folder).map_err(failed("remove", &folder))?;
        }
        fs::create_dir(&folder).map_err(failed("make the folder", &folder))?;
        // Not all file systems have locks for folders; the process's number says enough then.
        let _lock = File::open(&folder).ok().filter(|folder| folder.try_lock().is_ok());
        Ok(Draft { folder, target: target.into(), finished: false, _lock })
    }

    /// Where a file of it is now.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a new file in it.
    pub fn create(&self, name: &str) -> Result<File, CheckpointError> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).map_err(failed("make", &path))
    }

    /// Writes a whole file.
    pub fn write(&self, name: &str, bytes: &[u8], durable: bool) -> Result<(), CheckpointError> {
        let mut file = self.create(name)?;
        let path = self.path(name);
        io::Write::write_all(&mut file, bytes).map_err(failed("write", &path))?;
        if durable {
            file.sync_all().map_err(failed("write", &path))?;
        }
        Ok(())
    }

    /// Gives it its name. Everything in it must be durable already, if it is to be.
    pub fn finish(mut self, durable: bool) -> Result<(), CheckpointError> {
        let name = failed("name", &self.target);
        if durable {
            sync_folder(&self.folder).map_err(&name)?;
        }
        // Unlike a plain rename, this never replaces an empty folder.
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        let here = rustix::fs::CWD;
        match rustix::fs::renameat_with(here, &self.folder, here, &self.target, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                return Err(CheckpointError::Exists { path: self.target.clone() });
            }
            Err(errno) => return Err(name(errno.into())),
        }
        self.finished = true;
        if durable {
            sync_folder(parent(&self.target)).map_err(&name)?;
        }
        Ok(())
    }

    /// Puts it in the place of the checkpoint that has its name, which goes.
    pub fn replace(mut self) -> Result<(), CheckpointError> {
        let name = failed("replace", &self.target);
        sync_folder(&self.folder).map_err(&name)?;
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &self.folder, here, &self.target, flags)
            .map_err(|errno| name(errno.into()))?;
        sync_folder(parent(&self.target)).map_err(&name)?;
        // What has the draft's name now is the old checkpoint.
        self.finished = true;
        fs::remove_dir_all(&self.folder).map_err(failed("remove", &self.folder))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed is in the way of nothing but its own name.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Removes the checkpoint `target`, so that a crash on the way leaves a leftover at most.
pub(crate) fn remove(target: &Path) -> Result<(), CheckpointError> {
    let gone = draft_name(target);
    fs::rename(target, &gone).map_err(failed("remove", target))?;
    fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
}

/// What a checkpoint is called while it comes or goes.
fn draft_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!("{PART}{}", std::process::id()));
    name.into()
}

/// The folder that `path` is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Opens a regular file of a checkpoint for reading; its length.
pub(crate) fn open(path: &Path) -> Result<(File, u64), CheckpointError> {
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits();
    let mut options = OpenOptions::new();
    let file =
        options.read(true).custom_flags(flags as i32).open(path).map_err(failed("open", path))?;
    let metadata = file.metadata().map_err(failed("open", path))?;
    if !metadata.is_file() {
        let what = "it is not a regular file".to_owned();
        return Err(CheckpointError::Damaged { path: path.into(), what });
    }
    Ok((file, metadata.len()))
}

/// Reads a whole file of a checkpoint, `len_max` bytes at most.
pub(crate) fn read(path: &Path, len_max: u64) -> Result<Vec<u8>, CheckpointError> {
    let (file, len) = open(path)?;
    if len > len_max {
        let what = format!("it has {len} bytes, more than the {len_max} there can be");
        return Err(CheckpointError::Damaged { path: path.into(), what });
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(len_max).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(bytes)
}

/// Whether there is no such file.
pub(crate) fn is_missing(error: &CheckpointError) -> bool {
    matches!(error, CheckpointError::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}
