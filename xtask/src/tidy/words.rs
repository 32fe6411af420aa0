//! What no file of the repository holds: paths of one developer's machine, unfinished code, and
//! words that have another name in this house.

use super::Finding;
use super::source::{SourceFile, Tree};

/// Folders where people keep their work. Written in two parts: this file is checked too.
const HOMES: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

/// Macros that mark code as not finished.
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!(", "dbg!("];

/// Words with the one to use instead, in the crates.
const SYNONYMS: &[(&str, &str)] = &[("snapshot", "checkpoint"), ("Snapshot", "Checkpoint")];

/// Disk images made elsewhere do have what the first of those words means.
const MAY_NAME_SNAPSHOTS: &[&str] = &["crates/disk"];

/// Finds absolute paths in any file, and marks of unfinished work in Rust code.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        findings.extend(absolute_paths(file));
        findings.extend(synonyms(file));
        for (line, code) in file.production() {
            for mark in UNFINISHED.iter().filter(|mark| code.contains(**mark)) {
                findings.push(Finding::new(&file.path, line, format!("unfinished: {mark}...)")));
            }
        }
    }
    findings
}

fn synonyms(file: &SourceFile) -> Vec<Finding> {
    let dir = file.crate_dir();
    if !dir.starts_with("crates/") || MAY_NAME_SNAPSHOTS.contains(&dir) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (word, instead) in SYNONYMS.iter().filter(|(word, _)| line.contains(word)) {
            let message = format!("not {word} but {instead}: one meaning, one word");
            findings.push(Finding::new(&file.path, index + 1, message));
        }
    }
    findings
}

fn absolute_paths(file: &SourceFile) -> Vec<Finding> {
    let lines = file.text.lines().enumerate();
    let has_home = |line: &str| HOMES.iter().any(|home| names_path(line, home));
    let bad = lines.filter(|(_, line)| has_home(line));
    let message = "an absolute path of one machine";
    bad.map(|(index, _)| Finding::new(&file.path, index + 1, message)).collect()
}

/// Whether `line` has a path that starts with `home`, not one that only has it inside.
fn names_path(line: &str, home: &str) -> bool {
    line.match_indices(home).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-~/$}*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_finds_absolute_paths_in_any_file() {
        let path = concat!("see /wo", "rk/x");
        assert_eq!(check(&Tree::of([("README.md", path.to_owned())])).len(), 1);
        let inside = concat!("see bench/wo", "rk/x");
        assert!(check(&Tree::of([("README.md", inside.to_owned())])).is_empty());
    }

    #[test]
    fn check_finds_the_other_word_except_for_disk_images() {
        let findings = |path| check(&Tree::of([(path, "//! a snapshot\n".to_owned())])).len();
        assert_eq!(findings("crates/machine/src/a.rs"), 1);
        assert_eq!(findings("crates/disk/src/a.rs"), 0);
        assert_eq!(findings("xtask/src/a.rs"), 0);
    }

    #[test]
    fn check_finds_unfinished_code() {
        assert_eq!(check(&Tree::of([("a/src/b.rs", "fn f() { todo!() }".to_owned())])).len(), 1);
        assert!(check(&Tree::of([("a/src/b.rs", "// todo!()".to_owned())])).is_empty());
    }
}
