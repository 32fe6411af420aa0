//! What a file was: enough to notice that it is another one now.
//!
//! A file of the same size and time of change is taken for the same; one of another time, as a
//! copy on another host has it, is read and its hash compared.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::RecordingError;

/// Bytes hashed at once.
const CHUNK: usize = 1 << 20;

/// What a file was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Where it was, absolute.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When it was last changed, nanoseconds since 1970.
    pub modified_ns: i64,
    /// xxh3-128 of its contents, hexadecimal; a large file of a short recording has none.
    pub hash: Option<String>,
}

impl Identity {
    /// The file at `path`, its hash left out.
    pub fn of(path: &Path) -> Result<Identity, RecordingError> {
        let failed = || RecordingError::file("examine", path);
        let path = path.canonicalize().map_err(failed())?;
        let is = path.metadata().map_err(failed())?;
        Ok(Identity { size: is.len(), modified_ns: modified_ns(&is), hash: None, path })
    }

    /// Reads the file and fills in the hash; leaves it out when `stop` is set meanwhile.
    pub fn fill_hash(&mut self, stop: &AtomicBool) -> Result<(), RecordingError> {
        let hash = hash(&self.path, stop).map_err(RecordingError::file("read", &self.path))?;
        self.hash = hash;
        Ok(())
    }

    /// Refuses if the file is not what it was.
    pub fn check(&self) -> Result<(), RecordingError> {
        let path = &self.path;
        let is = path.metadata().map_err(RecordingError::file("find", path))?;
        let changed = |problem| Err(RecordingError::Changed { path: path.clone(), problem });
        if is.len() != self.size {
            return changed(format!("it had {} bytes and has {}", self.size, is.len()));
        }
        if modified_ns(&is) == self.modified_ns {
            return Ok(());
        }
        let Some(was) = &self.hash else {
            return changed("it was written to since, and is not known by its contents".into());
        };
        let now = hash(path, &AtomicBool::new(false));
        if now.map_err(RecordingError::file("read", path))?.as_ref() == Some(was) {
            return Ok(());
        }
        changed("its contents changed".into())
    }
}

fn modified_ns(is: &std::fs::Metadata) -> i64 {
    is.mtime().saturating_mul(1_000_000_000).saturating_add(is.mtime_nsec())
}

fn hash(path: &Path, stop: &AtomicBool) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match file.read(&mut chunk)? {
            0 => return Ok(Some(format!("{:032x}", hasher.digest128()))),
            count => hasher.update(&chunk[..count]),
        }
    }
}
