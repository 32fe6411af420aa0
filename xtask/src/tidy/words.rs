//! What no file of the repository holds: paths of one developer's machine, unfinished code.

use super::Finding;
use super::source::{SourceFile, Tree};

/// Folders where people keep their work. Written in two parts: this file is checked too.
const HOMES: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

/// Macros that mark code as not finished.
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!(", "dbg!("];

/// Finds absolute paths in any file, and marks of unfinished work in Rust code.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        findings.extend(absolute_paths(file));
        for (line, code) in file.production() {
            for mark in UNFINISHED.iter().filter(|mark| code.contains(**mark)) {
                findings.push(Finding::new(&file.path, line, format!("unfinished: {mark}...)")));
            }
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
    fn check_finds_unfinished_code() {
        assert_eq!(check(&Tree::of([("a/src/b.rs", "fn f() { todo!() }".to_owned())])).len(), 1);
        assert!(check(&Tree::of([("a/src/b.rs", "// todo!()".to_owned())])).is_empty());
    }
}
