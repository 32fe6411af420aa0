//! Where built images live: one folder, git-ignored, safe to delete at any time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder that holds every built image and what it was made from.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// Held while an image is being built; other builders wait.
#[derive(Debug)]
pub struct CacheLock {
    _file: File,
}

impl Cache {
    /// The cache of this workspace: `$DOPPEL_CACHE/guests`, or `.cache/guests` in the workspace.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn open() -> Result<Cache> {
        let base = match std::env::var_os("DOPPEL_CACHE") {
            Some(dir) => std::path::absolute(PathBuf::from(dir))?,
            None => workspace_root().join(".cache"),
        };
        Cache::at(base.join("guests"))
    }

    /// A cache in the given folder.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn at(root: PathBuf) -> Result<Cache> {
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        Ok(Cache { root })
    }

    /// The path of `name` in the cache, whether it exists or not.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// An empty folder `name` in the cache; what was there is deleted.
    ///
    /// # Errors
    /// When the old folder cannot be deleted or the new one not created.
    pub fn fresh_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("deleting {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits until no other process builds in this cache, and keeps others out.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub fn lock(&self) -> Result<CacheLock> {
        let path = self.path("lock");
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(CacheLock { _file: file })
    }
}

/// The root folder of this workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
