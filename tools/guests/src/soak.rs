//! What the long tests bring into the Debian guest: Python's own tests, and a program in source.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::command::say;
use crate::stamp::{self, manifest};

/// Python's regression tests, of the same version as the guest's python3.
const TESTSUITE: &str = "libpython3.11-testsuite";
/// 117,000 lines of C with a just-in-time compiler in it and tests that need no network.
const SOURCE: &str = "pcre2";

/// Files in the cache's folder `soak`.
#[derive(Clone, Debug)]
pub struct SoakFiles {
    /// The package with Python's tests.
    pub python_tests: PathBuf,
    /// The program's source as its authors released it.
    pub source: PathBuf,
}

/// The files, fetched if they are not there or if `force` is set.
///
/// # Errors
/// When something cannot be fetched.
pub fn soak_files(cache: &Cache, force: bool) -> Result<SoakFiles> {
    let folder = cache.path("soak");
    let files = SoakFiles {
        python_tests: folder.join("python-tests.deb"),
        source: folder.join("source.tar.gz"),
    };
    let stamp_path = cache.path("soak.json");
    let wanted = manifest([("packages", &format!("{TESTSUITE} {SOURCE}")), ("recipe", "1")]);
    if !force && stamp::is_current(&stamp_path, &wanted, &[&files.python_tests, &files.source]) {
        return Ok(files);
    }
    let apt = Apt::open(cache)?;
    say("fetching what the long tests use");
    let folder = cache.fresh_dir("soak")?;
    let package = apt.download(TESTSUITE, &folder)?;
    fs::rename(package, &files.python_tests)?;
    let parts = apt.source(SOURCE, &folder)?;
    let original = parts.iter().find(|part| part.to_string_lossy().ends_with(".orig.tar.gz"));
    fs::rename(original.context("the source package has no .orig.tar.gz")?, &files.source)?;
    stamp::write(&stamp_path, &wanted)?;
    Ok(files)
}
