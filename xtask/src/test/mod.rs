//! `cargo xtask test`: everything that must hold before a change is merged, cheapest first.
//!
//! | step | what runs |
//! |---|---|
//! | form | `cargo fmt --check`, tidy, clippy without warnings |
//! | unit tests | all packages but `whole`, with nextest where it is installed |
//! | guests | images that the rest needs, from the cache or built |
//! | cosim | random instructions against the host CPU; the corpus is among the unit tests |
//! | machines | package `whole` in release, with guests and the real `doppel` |
//!
//! Files `tests/tests/slow_*.rs`, `soak_*.rs` (in short) and tests that need QEMU run with `--slow`
//! alone. Every step runs even if an earlier one failed; the last line sums up.

pub mod tally;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use guests::{Cache, Kernel, capture, workspace_root};

use crate::cargo::{cargo, command, doppel, has, require_component};
use crate::cosim::Cosim;
use crate::tidy;
use tally::Tally;

/// What the tests call on the host.
pub const PACKAGES: &[&str] = &[
    "gcc",
    "libc6-dev",
    "binutils",
    "qemu-utils",
    "e2fsprogs",
    "iproute2",
    "util-linux",
    "passt",
    "openssl",
    "curl",
    "gdb",
];
/// What the slow tests call besides.
const SLOW_PACKAGES: &[&str] = &["gcc-multilib", "qemu-system-x86"];

/// Random cases compared in a run, about half a minute's worth, and in a slow one.
const COSIM_CASES: u64 = 500_000;
const COSIM_CASES_SLOW: u64 = 20_000_000;

/// How files of slow tests begin.
const SLOW: &str = "slow_";
/// How files of real work at length begin; `cargo xtask soak` runs them too.
const SOAK: &str = "soak_";
/// The file whose ignored tests need QEMU.
const QEMU: &str = "arch";

/// Checks form, lints, tidiness, unit tests, cosim and whole machines.
///
/// Tests with a tap device need root or user name spaces; where there are none they fail, unless
/// DOPPEL_UNPRIVILEGED=1 is set: then each says in a line that it was left out.
#[derive(Args, Debug)]
pub struct Test {
    /// Leave out cosim and the whole-machine tests.
    #[arg(long, conflicts_with = "slow")]
    quick: bool,
    /// The tests that take minutes each too: an hour or two in all.
    #[arg(long)]
    slow: bool,
}

impl Test {
    /// Runs the verb.
    ///
    /// # Errors
    /// When something that is needed cannot be had, or anything failed.
    pub fn run(&self) -> Result<()> {
        let mut tally = Tally::new();
        guests::require(PACKAGES)?;
        if self.slow {
            guests::require(SLOW_PACKAGES)?;
        }
        require_component("rustfmt", "fmt")?;
        require_component("clippy", "clippy")?;
        tally.check("format", || cargo(&["fmt", "--all", "--check"]));
        tally.check("tidy", tidy::run);
        tally.check("lints", || {
            cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])
        });
        if let Some(reason) = tap_refusal() {
            tally.leave_out("the tests with a tap device", &reason);
        }
        unit_tests(&mut tally)?;
        if !self.quick && tally.check("guests", || build_guests(self.slow)) {
            let cases = if self.slow { COSIM_CASES_SLOW } else { COSIM_CASES };
            tally.check("cosim", || Cosim::new("interp", cases).run());
            tally.check("cosim by the host's page tables", || Cosim::new("shadowed", cases).run());
            self.whole_machines(&mut tally)?;
        }
        if !tally.finish() {
            bail!("some tests failed");
        }
        Ok(())
    }

    fn whole_machines(&self, tally: &mut Tally) -> Result<()> {
        let mut built = None;
        tally.check("doppel", || {
            built = Some(doppel()?);
            Ok(())
        });
        let Some(doppel) = built else { return Ok(()) };
        let mut free = command();
        free.args(["test", "--release", "--package", "whole", "--no-fail-fast"]);
        tally.tests("machines", &mut free)?;
        let mut subjects = subjects()?;
        let is_slow = |name: &str| name.starts_with(SLOW) || name.starts_with(SOAK) || name == QEMU;
        subjects.retain(|name| self.slow || !is_slow(name));
        let mut whole = command();
        whole.env("DOPPEL", doppel);
        whole.args(["test", "--release", "--package", "whole", "--no-fail-fast"]);
        whole.args(subjects.iter().flat_map(|name| ["--test", name]));
        // One at a time: they measure times, and one guest keeps one CPU busy.
        whole.args(["--", "--ignored", "--test-threads=1", "--show-output"]);
        tally.tests("whole machines", &mut whole)
    }
}

fn unit_tests(tally: &mut Tally) -> Result<()> {
    let packages = ["--workspace", "--exclude", "whole", "--no-fail-fast"];
    if has("nextest") {
        tally.tests("unit tests", command().args(["nextest", "run"]).args(packages))?;
        return tally
            .tests("examples in documentation", command().args(["test", "--doc"]).args(packages));
    }
    tally.tests("unit tests", command().arg("test").args(packages))
}

/// Why there can be no tap devices here, if that is so.
fn tap_refusal() -> Option<String> {
    let flags = if guests::is_root() { "-nm" } else { "-rnm" };
    let probe = [flags, "ip", "tuntap", "add", "mode", "tap"];
    capture(Command::new("unshare").args(probe)).err().map(|error| {
        let text = format!("{error:#}");
        format!("no root, no user name spaces: {}", text.lines().last().unwrap_or_default())
    })
}

/// The files of whole-machine tests, by name.
///
/// # Errors
/// When the folder cannot be read.
pub fn subjects() -> Result<Vec<String>> {
    let folder = workspace_root().join("tests/tests");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(".rs").map(str::to_owned)
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn build_guests(is_slow: bool) -> Result<()> {
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    for which in Kernel::ALL {
        guests::mini(&cache, which, false)?;
    }
    guests::mini_full(&cache, Kernel::V6_1, false)?;
    if is_slow {
        guests::mini_full(&cache, Kernel::Backports, false)?;
    }
    guests::debian(&cache, false)?;
    if is_slow {
        guests::soak_files(&cache, false)?;
        guests::culprit(&cache, false)?;
    }
    Ok(())
}
