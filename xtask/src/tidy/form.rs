//! The form of a file: how long, how wide, how it opens, and that some module names it.

use super::Finding;
use super::source::{SourceFile, Tree};

const LINES_MAX: usize = 600;
const WIDTH_MAX: usize = 100;

/// Finds files that are too long, too wide, without a purpose, or orphaned.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        if !file.text.starts_with("//!") {
            findings.push(Finding::new(&file.path, 1, "open with //! and the file's purpose"));
        }
        if file.production_len > LINES_MAX {
            let message = format!("{} lines, at most {LINES_MAX}", file.production_len);
            findings.push(Finding::new(&file.path, 0, message));
        }
        findings.extend(wide_lines(file));
        if is_orphan(file, tree) {
            findings.push(Finding::new(&file.path, 0, "no module names this file"));
        }
    }
    findings
}

fn wide_lines(file: &SourceFile) -> impl Iterator<Item = Finding> {
    let lines = file.text.lines().enumerate();
    let wide = lines.filter(|(_, line)| line.chars().count() > WIDTH_MAX);
    let message = format!("line longer than {WIDTH_MAX} characters");
    wide.map(move |(index, _)| Finding::new(&file.path, index + 1, message.clone()))
}

/// Whether the file is below `src`, is no root, and its parent module does not declare it.
fn is_orphan(file: &SourceFile, tree: &Tree) -> bool {
    let Some((source, inside)) = file.path.split_once("/src/") else {
        return false;
    };
    if ["lib.rs", "main.rs"].contains(&inside) || inside.starts_with("bin/") {
        return false;
    }
    let module = inside.trim_end_matches(".rs").trim_end_matches("/mod");
    let (parent, name) = module.rsplit_once('/').unwrap_or(("", module));
    let parents = match parent {
        "" => ["lib.rs".to_owned(), "main.rs".to_owned()],
        _ => [format!("{parent}.rs"), format!("{parent}/mod.rs")],
    };
    let declaration = format!("mod {name};");
    let file_name = file.path.rsplit('/').next().unwrap_or_default();
    let by_path = format!("#[path = \"{file_name}\"]");
    let folder = file.path.trim_end_matches(file_name);
    let is_beside = |other: &&SourceFile| {
        other.path.strip_prefix(folder).is_some_and(|rest| !rest.contains('/'))
    };
    let mut beside = tree.rust().filter(is_beside);
    !beside.any(|other| other.text.contains(&by_path))
        && !parents.iter().any(|parent| {
            let parent = tree.file(&format!("{source}/src/{parent}"));
            parent.is_some_and(|file| file.code.iter().any(|line| line.contains(&declaration)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_finds_length_width_and_missing_purpose() {
        let long = format!("//! x\n{}", "\n".repeat(LINES_MAX));
        let wide = format!("//! x\n{}\n", "y".repeat(WIDTH_MAX + 1));
        for text in [long, wide, "fn f() {}\n".to_owned()] {
            assert_eq!(check(&Tree::of([("crates/a/src/lib.rs", text)])).len(), 1);
        }
    }

    #[test]
    fn check_unit_tests_do_not_count_as_lines() {
        let tests = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(LINES_MAX));
        assert!(check(&Tree::of([("crates/a/src/lib.rs", tests)])).is_empty());
    }

    #[test]
    fn check_finds_the_file_that_no_module_names() {
        let file = |path, text: &str| (path, format!("//! x\n{text}\n"));
        let tree = Tree::of([
            file("crates/a/src/lib.rs", "mod b; // mod e;"),
            file("crates/a/src/b/mod.rs", "pub mod c;\n#[path = \"g_tests.rs\"]\nmod tests;"),
            file("crates/a/src/b/c.rs", ""),
            file("crates/a/src/b/d.rs", ""),
            file("crates/a/src/e.rs", ""),
            file("crates/a/tests/f.rs", ""),
            file("crates/a/src/b/g_tests.rs", ""),
        ]);
        let paths: Vec<String> = check(&tree).into_iter().map(|f| f.path).collect();
        assert_eq!(paths, ["crates/a/src/b/d.rs", "crates/a/src/e.rs"]);
    }
}
