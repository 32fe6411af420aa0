//! A kernel module with a bug for debuggers to find, built for a guest's kernel from Debian's own
//! headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::command::{run, say};
use crate::kernel::{Kernel, kernel};
use crate::packages::require;
use crate::stamp::{self, manifest};

const SOURCE: &str = include_str!("../programs/culprit.c");
/// With what debuggers need to read it.
const KBUILD: &str = "obj-m := culprit.o\nccflags-y := -g -fno-omit-frame-pointer\n";

/// The module for Debian 12's own kernel, with its symbols, built if it is not current or if
/// `force` is set.
///
/// # Errors
/// When a package cannot be had, or it does not compile.
pub fn culprit(cache: &Cache, force: bool) -> Result<PathBuf> {
    let kernel = kernel(cache, Kernel::V6_1, false)?;
    let module = cache.path("culprit/culprit.ko");
    let stamp_path = cache.path("culprit.json");
    let recipe = stamp::recipe(&[include_bytes!("culprit.rs"), SOURCE.as_bytes()]);
    let wanted = manifest([("recipe", &recipe), ("kernel", &kernel.version)]);
    if !force && stamp::is_current(&stamp_path, &wanted, &[&module]) {
        return Ok(module);
    }
    require(&["gcc", "make", "libelf1"])?;
    let apt = Apt::open(cache)?;
    say(&format!("building a module for {}", kernel.release));
    let headers = cache.fresh_dir("headers")?;
    let abi = kernel.release.trim_end_matches("-cloud-amd64");
    let series: Vec<&str> = kernel.version.split('.').take(2).collect();
    for package in [
        format!("linux-headers-{}", kernel.release),
        format!("linux-headers-{abi}-common"),
        format!("linux-kbuild-{}", series.join(".")),
    ] {
        apt.unpack(&format!("{package}={}", kernel.version), &headers)?;
    }
    let work = cache.fresh_dir("culprit")?;
    fs::write(work.join("culprit.c"), SOURCE)?;
    fs::write(work.join("Kbuild"), KBUILD)?;
    let tree = headers.join("usr/src").join(format!("linux-headers-{}", kernel.release));
    relocate(&headers, &tree)?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&tree).arg(format!("M={}", work.display())).arg("modules");
    run(&mut make)?;
    fs::remove_dir_all(&headers)?;
    stamp::write(&stamp_path, &wanted)?;
    Ok(module)
}

/// The makefiles name what is installed in /usr/src; here it is below `headers`.
fn relocate(headers: &Path, tree: &Path) -> Result<()> {
    let makefile = tree.join("Makefile");
    let text = fs::read_to_string(&makefile).context("reading the headers' makefile")?;
    let here = std::path::absolute(headers)?.join("usr/src");
    fs::write(&makefile, text.replace("/usr/src", &here.display().to_string()))?;
    Ok(())
}
