//! `cargo xtask tidy`: the absences this workspace keeps, checked by reading its files.
//!
//! | rule | where |
//! |---|---|
//! | a crate depends only on crates above it; `machine` knows no engine and no host | `direction` |
//! | no host time, threads, environment, files, sockets or unordered maps in the core | `banned` |
//! | unsafe only in the crates that may, each block with its reason | `unsafety` |
//! | files short, lines short, each opening with its purpose, none orphaned | `form` |
//! | no absolute path of a developer's machine, no unfinished code | `words` |
//!
//! A finding names file, line and rule. Nothing is changed.

mod banned;
mod direction;
mod form;
mod source;
mod unsafety;
mod words;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use guests::workspace_root;

use source::Tree;

/// One breach of one rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, relative to the workspace.
    pub path: String,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Every breach of every rule in the workspace at `root`, in the order of the files.
///
/// # Errors
/// When the files cannot be listed or read.
pub fn check(root: &Path) -> Result<Vec<Finding>> {
    let tree = Tree::read(root)?;
    let mut findings = direction::check(&tree);
    for rule in [banned::check, unsafety::check, form::check, words::check] {
        findings.extend(rule(&tree));
    }
    findings.sort();
    Ok(findings)
}

/// Runs the verb.
///
/// # Errors
/// When there is a finding, or the files cannot be read.
pub fn run() -> Result<()> {
    let findings = check(&workspace_root())?;
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_is_tidy() {
        let findings = check(&workspace_root()).unwrap();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }
}
