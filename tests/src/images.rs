//! Disk images for tests, made and checked by other people's tools.

use std::path::{Path, PathBuf};

use crate::scratch::{Scratch, text, tool};

/// Makes an empty image of `size` (`64M`).
pub fn create(scratch: &Scratch, name: &str, format: &str, size: &str) -> PathBuf {
    let path = scratch.path(name);
    tool("qemu-img", &["create", "-q", "-f", format, text(&path), size]);
    path
}

/// Makes a qcow2 image over `backing`.
pub fn overlay(scratch: &Scratch, name: &str, backing: &Path, backing_format: &str) -> PathBuf {
    let path = scratch.path(name);
    let backing = std::path::absolute(backing).expect("an absolute path");
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", text(&backing), "-F", backing_format, text(&path)],
    );
    path
}

/// Makes an ext4 image of `size` with the given files in its root.
///
/// # Panics
/// When a file cannot be written.
pub fn ext4(scratch: &Scratch, name: &str, size: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let path = scratch.path(name);
    let folder = scratch.path(&format!("{name}.files"));
    std::fs::create_dir(&folder).expect("a folder for the image");
    for (file, bytes) in files {
        std::fs::write(folder.join(file), bytes).expect("a file for the image");
    }
    tool("mke2fs", &["-q", "-t", "ext4", "-d", text(&folder), text(&path), size]);
    path
}

/// Checks the structure of a qcow2 image.
///
/// # Panics
/// When `qemu-img check` finds anything, leaked clusters included.
pub fn check_qcow2(path: &Path) {
    tool("qemu-img", &["check", "-q", "-f", "qcow2", text(path)]);
}

/// Checks the structure of a qcow2 image whose writer may have been killed: leaked clusters, which
/// cost room alone, are no error.
///
/// # Panics
/// When `qemu-img check` finds anything else.
pub fn check_killed_qcow2(path: &Path) {
    let check = std::process::Command::new("qemu-img").args(["check", "-q"]).arg(path).output();
    let check = check.expect("qemu-img");
    assert!(matches!(check.status.code(), Some(0 | 3)), "{path:?}: {check:?}");
}

/// Checks the ext4 file system that fills an image, without changing it.
///
/// # Panics
/// When `e2fsck` finds anything, or the file system was not unmounted.
pub fn check_ext4(scratch: &Scratch, path: &Path, format: &str) {
    let raw = match format {
        "raw" => path.to_owned(),
        _ => {
            let raw = scratch.path("to-check.raw");
            tool("qemu-img", &["convert", "-f", format, "-O", "raw", text(path), text(&raw)]);
            raw
        }
    };
    let header = tool("dumpe2fs", &["-h", text(&raw)]);
    let state = header.lines().find(|line| line.starts_with("Filesystem state:"));
    assert!(state.is_some_and(|line| line.ends_with(" clean")), "{state:?}");
    assert!(!header.contains("needs_recovery"), "the journal was left to be replayed:\n{header}");
    tool("e2fsck", &["-f", "-n", text(&raw)]);
    if raw != path {
        let _ = std::fs::remove_file(raw);
    }
}
