//! A folder of a test's own, and what tests ask of files in it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that is removed with everything in it when the test is over.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    /// An empty folder that nobody else may enter.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short, because sockets are made in it.
        let root = std::env::temp_dir().join(format!("doppel-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::DirBuilder::new().mode(0o700).create(&root).expect("a folder for the test");
        Scratch { root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file in it.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file for the test");
        path
    }

    /// A sparse file of `size` bytes.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).expect("a file for the test");
        file.set_len(size).expect("a size for the file");
        path
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Runs a program of the host and gives what it printed.
///
/// # Panics
/// When it cannot be started, or fails; the message has what it printed.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot start {program}: {error}; `cargo xtask test` installs what tests need")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert!(status.success(), "{program} {arguments:?}: {status}\n{text}{complaint}");
    text
}

/// The path as text.
///
/// # Panics
/// When it is not UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> String {
    tool("sha256sum", &[text(path)]).split(' ').next().unwrap_or_default().into()
}
