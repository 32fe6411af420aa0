//! Which kernel modules a guest needs, and in which order they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The modules of `wanted` and all they depend on, as paths below `dir`, in loading order.
///
/// Names are matched with `-` and `_` taken as equal; modules built into the kernel are left out.
///
/// # Errors
/// When the indexes cannot be read, or a module is neither there nor built in.
pub fn loading_order(dir: &Path, wanted: &[&str]) -> Result<Vec<String>> {
    let read =
        |name: &str| fs::read_to_string(dir.join(name)).with_context(|| format!("reading {name}"));
    order(&read("modules.dep")?, &read("modules.builtin")?, wanted)
}

fn order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let lines = dep.lines().filter_map(|line| line.split_once(':'));
    let depends: BTreeMap<&str, &str> = lines.collect();
    let mut ordered: Vec<String> = Vec::new();
    for name in wanted {
        let is_it = |path: &&str| module_name(path) == name.replace('-', "_");
        match depends.keys().copied().find(is_it) {
            Some(path) => push(path, &depends, &mut ordered),
            None if builtin.lines().any(|path| is_it(&path)) => {}
            None => bail!("the kernel has no module {name}"),
        }
    }
    Ok(ordered)
}

/// Adds `path` after everything it depends on. `modules.dep` has no cycles: depmod refuses them.
fn push(path: &str, depends: &BTreeMap<&str, &str>, ordered: &mut Vec<String>) {
    if ordered.iter().any(|done| done == path) {
        return;
    }
    for dependency in depends.get(path).copied().unwrap_or("").split_whitespace() {
        push(dependency, depends, ordered);
    }
    ordered.push(path.to_owned());
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "k/virtio-rng.ko: k/virtio.ko k/virtio_ring.ko\n\
                       k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko:\n";

    #[test]
    fn order_puts_dependencies_first_and_once() {
        let ordered = order(DEP, "", &["virtio_rng", "virtio"]).unwrap();
        assert_eq!(ordered, ["k/virtio_ring.ko", "k/virtio.ko", "k/virtio-rng.ko"]);
    }

    #[test]
    fn order_leaves_out_built_in_and_refuses_unknown() {
        assert!(order(DEP, "kernel/fs/ext4/ext4.ko\n", &["ext4"]).unwrap().is_empty());
        assert!(order(DEP, "", &["ext4"]).is_err());
    }
}
