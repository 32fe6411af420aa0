//! Manifests: what an image was made from, so that it is rebuilt exactly when that changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What an image was made from: names and values, in alphabetical order.
pub type Manifest = BTreeMap<String, String>;

/// A manifest of the given pairs.
pub fn manifest<const N: usize>(pairs: [(&str, &str); N]) -> Manifest {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The manifest in the JSON file `path`, or `None` when there is none that can be read.
pub fn read(path: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes `manifest` to the JSON file `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, manifest: &Manifest) -> Result<()> {
    let mut text = serde_json::to_string_pretty(manifest)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Whether every one of `files` exists and was made from what `wanted` says.
pub fn is_current(path: &Path, wanted: &Manifest, files: &[&Path]) -> bool {
    let made = read(path).unwrap_or_default();
    let matches = wanted.iter().all(|(key, value)| made.get(key) == Some(value));
    matches && files.iter().all(|file| file.exists())
}

/// A short name for the text of a recipe (64-bit FNV-1a, in hexadecimal).
pub fn recipe(parts: &[&[u8]]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0xff])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipe_depends_on_text_and_on_its_division() {
        assert_eq!(recipe(&[b"ab"]), recipe(&[b"ab"]));
        assert_ne!(recipe(&[b"ab"]), recipe(&[b"ac"]));
        assert_ne!(recipe(&[b"ab", b"c"]), recipe(&[b"a", b"bc"]));
    }

    #[test]
    fn is_current_follows_manifest_and_files() {
        let dir = std::env::temp_dir().join(format!("doppel-stamp-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("m.json");
        let made = manifest([("a", "1"), ("b", "2")]);
        write(&path, &made).unwrap();
        assert!(is_current(&path, &manifest([("a", "1")]), &[&path]));
        assert!(!is_current(&path, &manifest([("a", "2")]), &[&path]));
        assert!(!is_current(&path, &made, &[&dir.join("absent")]));
        fs::remove_dir_all(&dir).unwrap();
    }
}
