//! Dependencies point one way: up the list of crates in the workspace's Cargo.toml.

use super::Finding;
use super::source::Tree;

/// Who may never know whom, whatever the order of the list.
const STRANGERS: &[(&str, &[&str])] = &[
    ("machine", &["native", "interp", "translate", "disk", "host"]),
    ("devices", &["native", "interp", "translate", "disk", "host"]),
    ("boot", &["native", "interp", "translate", "disk", "host"]),
    ("translate", &["interp"]),
    ("interp", &["translate"]),
];

/// Finds dependencies that point down the list, or at a stranger, or at a tool.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let order = tree.file("Cargo.toml").map(|file| order(&file.text)).unwrap_or_default();
    let mut findings = Vec::new();
    for file in &tree.files {
        let is_crate = file.path.starts_with("crates/") && file.path.ends_with("/Cargo.toml");
        if !is_crate {
            continue;
        }
        let name = file.crate_name();
        let Some(rank) = order.iter().position(|other| other == name) else {
            findings.push(Finding::new(&file.path, 0, "not in the list of the root Cargo.toml"));
            continue;
        };
        for (line, dependency) in dependencies(&file.text) {
            if let Some(message) = breach(name, rank, dependency, &order, tree) {
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

fn breach(
    name: &str,
    rank: usize,
    dependency: &str,
    order: &[String],
    tree: &Tree,
) -> Option<String> {
    let strangers = STRANGERS.iter().find(|(who, _)| *who == name).map_or(&[][..], |(_, s)| s);
    if strangers.contains(&dependency) {
        return Some(format!("{name} must not know {dependency}"));
    }
    if tree.file(&format!("tools/{dependency}/Cargo.toml")).is_some() {
        return Some(format!("{dependency} is a tool, never a dependency of a crate"));
    }
    let other = order.iter().position(|other| other == dependency)?;
    (other >= rank).then(|| format!("{dependency} comes after {name} in the list of crates"))
}

/// The crates in the order of the root Cargo.toml.
fn order(manifest: &str) -> Vec<String> {
    let name = |line: &str| {
        let (name, rest) = line.split_once('=')?;
        rest.contains("path = \"crates/").then(|| name.trim().to_owned())
    };
    // The command is last, and not a library anybody could name.
    manifest.lines().filter_map(name).chain(["cli".to_owned()]).collect()
}

/// Line numbers and names of the dependencies, those for tests alone left out.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (index, line) in manifest.lines().enumerate() {
        if let Some(section) = line.trim().strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies") && !section.contains("dev-dependencies");
        } else if let (true, Some((name, _))) = (inside, line.split_once('=')) {
            let name = name.trim().split('.').next().unwrap_or("");
            found.push((index + 1, name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str, dependency: &str) -> Tree {
        let list: Vec<String> = ["a", "interp", "machine"]
            .map(|name| format!("{name} = {{ path = \"crates/{name}\" }}"))
            .to_vec();
        let list = list.join("\n");
        let tests = "[dev-dependencies]\ncli.workspace = true\n";
        let manifest = format!("[dependencies]\n{dependency}.workspace = true\n{tests}");
        let path = format!("crates/{name}/Cargo.toml");
        let tool = ("tools/guests/Cargo.toml", String::new());
        Tree::of([("Cargo.toml", list), (path.as_str(), manifest), tool])
    }

    #[test]
    fn check_upward_dependency_is_fine() {
        assert!(check(&tree("machine", "a")).is_empty());
        assert!(check(&tree("cli", "machine")).is_empty());
        assert!(check(&tree("a", "serde")).is_empty());
    }

    #[test]
    fn check_finds_downward_stranger_tool_and_unlisted() {
        for (name, dependency) in
            [("a", "machine"), ("machine", "interp"), ("machine", "guests"), ("new", "a")]
        {
            let findings = check(&tree(name, dependency));
            assert_eq!(findings.len(), 1, "{name} {dependency}: {findings:?}");
        }
    }
}
