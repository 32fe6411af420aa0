//! What the deterministic core must not name: host time, threads, environment, files, sockets,
//! and maps whose order depends on a random seed.

use super::Finding;
use super::source::{Tree, has_word};

/// The crates of the core.
const CORE: &[&str] = &[
    "types",
    "saved",
    "journal",
    "memory",
    "cpu",
    "native",
    "interp",
    "translate",
    "devices",
    "boot",
    "machine",
];

/// Modules of the standard library.
const MODULES: &[&str] = &["thread", "env", "fs", "net", "process"];

/// Types, wherever they come from.
const TYPES: &[&str] = &["Instant", "SystemTime", "HashMap", "HashSet", "RandomState"];

/// The files that map guest RAM need the type of a file.
const MAY_NAME_FILES: &[&str] = &["crates/memory/src/mapping.rs", "crates/memory/src/restored.rs"];

/// Finds banned names in the production code of the core.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust().filter(|file| CORE.contains(&file.crate_name())) {
        let may_name_files = MAY_NAME_FILES.contains(&file.path.as_str());
        for (line, code) in file.production() {
            let mut names = std_modules(code);
            names.extend(TYPES.iter().filter(|name| has_word(code, name)));
            names.retain(|name| !(may_name_files && *name == "fs"));
            let message = |name| format!("the core must not know {name}");
            findings.extend(names.iter().map(|n| Finding::new(&file.path, line, message(n))));
        }
    }
    findings
}

/// The banned modules that a line names, as `std::fs` or inside `std::{...}`.
fn std_modules(code: &str) -> Vec<&'static str> {
    let Some((_, rest)) = code.split_once("std::") else {
        return Vec::new();
    };
    let is_named = |module: &&&str| match rest.strip_prefix('{') {
        Some(group) => group.split([',', '}']).any(|part| is_path_start(part.trim(), module)),
        None => is_path_start(rest, module),
    };
    MODULES.iter().filter(is_named).copied().collect()
}

fn is_path_start(path: &str, module: &str) -> bool {
    let first: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    first == module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&Tree::of([(path, text.to_owned())])).len()
    }

    #[test]
    fn check_finds_time_threads_files_and_hash_maps() {
        for text in [
            "use std::thread;",
            "use std::{fmt, fs};",
            "let x = std::env::var(y);",
            "use std::time::{Duration, Instant};",
            "let m: HashMap<u8, u8>;",
        ] {
            assert_eq!(findings("crates/machine/src/a.rs", text), 1, "{text}");
        }
    }

    #[test]
    fn check_allows_tests_comments_other_crates_and_the_mapping() {
        let path = "crates/cpu/src/a.rs";
        assert_eq!(findings(path, "use std::fmt; // std::fs"), 0);
        assert_eq!(findings(path, "#[cfg(test)]\nmod tests {\nuse std::fs;\n}\n"), 0);
        assert_eq!(findings("crates/cpu/tests/a.rs", "use std::fs;"), 0);
        assert_eq!(findings("crates/host/src/a.rs", "use std::fs;"), 0);
        assert_eq!(findings("crates/memory/src/mapping.rs", "use std::fs::File;"), 0);
    }
}
