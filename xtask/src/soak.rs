//! `cargo xtask soak`: real work at length in whole guests, most of it run twice and compared.
//!
//! The tests are the files `tests/tests/soak_*.rs`; docs/soak.md says what each shows. Their short
//! form is part of `cargo xtask test`.

use anyhow::{Result, bail};
use clap::Args;
use guests::Cache;

use crate::cargo::{command, doppel};
use crate::test::tally::Tally;
use crate::test::{PACKAGES, subjects};

/// How the files of these tests begin.
const SOAK: &str = "soak_";

/// The tests, as far as their names tell them apart.
const NAMES: &[&str] =
    &["boots_live", "boots_twice", "python", "stress", "databases", "gcc", "nginx", "churn"];

/// Runs real work in Debian guests for minutes, or with --full for hours.
///
/// Tests: boots_live, boots_twice, python, stress, databases, gcc, nginx, churn.
#[derive(Args, Debug)]
pub struct Soak {
    /// Only tests with one of these in their names.
    names: Vec<String>,
    /// At full length.
    #[arg(long)]
    full: bool,
    /// Another length of one thing: boots, boots-live, modules, stress-seconds, rows, requests,
    /// bytes or code-mib.
    #[arg(long, value_name = "WHAT=NUMBER")]
    set: Vec<String>,
}

impl Soak {
    /// Runs the verb.
    ///
    /// # Errors
    /// When something that is needed cannot be had, or a test fails.
    pub fn run(&self) -> Result<()> {
        for name in &self.names {
            if !NAMES.iter().any(|known| known.contains(name.as_str())) {
                bail!("there is no test {name}; there are {}", NAMES.join(", "));
            }
        }
        guests::require(PACKAGES)?;
        {
            let cache = Cache::open()?;
            let _lock = cache.lock()?;
            guests::debian(&cache, false)?;
            guests::soak_files(&cache, false)?;
        }
        let mut whole = command();
        whole.env("DOPPEL", doppel()?);
        if self.full {
            whole.env("DOPPEL_SOAK", "full");
        }
        for pair in &self.set {
            let Some((name, number)) = pair.split_once('=') else {
                bail!("--set {pair}: write WHAT=NUMBER, for example boots=10");
            };
            if number.parse::<u64>().is_err() {
                bail!("--set {pair}: {number:?} is no number");
            }
            let name = name.to_ascii_uppercase().replace('-', "_");
            whole.env(format!("DOPPEL_SOAK_{name}"), number);
        }
        let files: Vec<String> =
            subjects()?.into_iter().filter(|name| name.starts_with(SOAK)).collect();
        whole.args(["test", "--release", "--package", "whole", "--no-fail-fast"]);
        whole.args(files.iter().flat_map(|name| ["--test", name]));
        whole.args(["--", "--ignored", "--test-threads=1", "--show-output"]).args(&self.names);
        let mut tally = Tally::new();
        tally.tests("soak", &mut whole)?;
        if !tally.finish() {
            bail!("some tests failed");
        }
        Ok(())
    }
}
