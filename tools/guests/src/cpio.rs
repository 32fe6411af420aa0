//! Writes initramfs archives (cpio "newc", Linux Documentation/driver-api/early-userspace).
//!
//! Owners are root and times are zero, so equal contents give equal archives, and device nodes
//! need no privilege on the host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// An archive being written, in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a folder with mode 755. Parents come first.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Adds a file with the permission bits `mode`.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, FILE | mode, (0, 0), data);
    }

    /// Adds a symbolic link that points to `target`.
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device node with the numbers (major, minor).
    pub fn character_device(&mut self, name: &str, numbers: (u32, u32)) {
        self.entry(name, CHARACTER_DEVICE | 0o600, numbers, &[]);
    }

    /// Adds everything under the host folder `dir`, in alphabetical order, as `prefix/...`.
    ///
    /// # Errors
    /// When a file cannot be read or a name is not UTF-8.
    pub fn tree(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            names.push(entry?.file_name().into_string().ok().context("name is not UTF-8")?);
        }
        names.sort();
        for name in names {
            self.tree_entry(&dir.join(&name), &format!("{prefix}{name}"))?;
        }
        Ok(())
    }

    fn tree_entry(&mut self, path: &Path, name: &str) -> Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_symlink() {
            let target = fs::read_link(path)?;
            self.link(name, target.to_str().context("link is not UTF-8")?);
        } else if metadata.is_dir() {
            self.folder(name);
            self.tree(path, &format!("{name}/"))?;
        } else if metadata.is_file() {
            let data = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            self.file(name, metadata.permissions().mode() & 0o7777, &data);
        }
        Ok(())
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        assert!(!name.starts_with('/'), "names in an initramfs are relative: {name}");
        let data_len = u32::try_from(data.len()).expect("a file in an initramfs is under 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("a name is short");
        self.entries += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let inode = self.entries;
        let fields = [inode, mode, 0, 0, links, 0, data_len, 0, 0, device.0, device.1, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finish_one_file_has_the_layout_of_newc() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081A4");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..117], b"hello");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn equal_contents_give_equal_archives() {
        let make = || {
            let mut archive = Archive::default();
            archive.folder("dev");
            archive.character_device("dev/console", (5, 1));
            archive.link("sh", "busybox");
            archive.finish()
        };
        assert_eq!(make(), make());
    }
}
