//! `cargo xtask test`: everything that must hold before a change is merged, cheapest first.
//!
//! Whole-machine tests are ignored tests of the packages in [`WHOLE_MACHINE`]: they need guest
//! images and a release build, both of which this verb makes first.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use guests::{Cache, Kernel, say};

use crate::cargo::{cargo, has, require_component};
use crate::tidy;

/// What the tests call on the host.
const PACKAGES: &[&str] = &["gcc", "libc6-dev", "qemu-utils", "e2fsprogs", "iproute2", "passt"];

/// The packages with whole-machine tests.
const WHOLE_MACHINE: &[&str] = &["machine", "vmm", "cli"];

/// Checks form, lints, tidiness, unit tests and whole machines.
#[derive(Args, Debug)]
pub struct Test {
    /// Leave out the whole-machine tests.
    #[arg(long)]
    quick: bool,
}

impl Test {
    /// Runs the verb.
    ///
    /// # Errors
    /// At the first step that fails.
    pub fn run(&self) -> Result<()> {
        let start = Instant::now();
        guests::require(PACKAGES)?;
        require_component("rustfmt", "fmt")?;
        require_component("clippy", "clippy")?;
        cargo(&["fmt", "--all", "--check"])?;
        tidy::run()?;
        cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
        unit_tests()?;
        if !self.quick {
            whole_machine_tests()?;
        }
        say(&format!("all passed in {:.0} s", start.elapsed().as_secs_f64()));
        Ok(())
    }
}

fn unit_tests() -> Result<()> {
    if has("nextest") {
        cargo(&["nextest", "run", "--workspace"])?;
        return cargo(&["test", "--workspace", "--doc"]);
    }
    cargo(&["test", "--workspace"])
}

fn whole_machine_tests() -> Result<()> {
    let cache = Cache::open()?;
    {
        let _lock = cache.lock()?;
        for which in Kernel::ALL {
            guests::mini(&cache, which, false)?;
            guests::mini_full(&cache, which, false)?;
        }
        guests::debian(&cache, false)?;
    }
    let mut arguments = vec!["test", "--release"];
    arguments.extend(WHOLE_MACHINE.iter().flat_map(|name| ["--package", name]));
    arguments.extend(["--", "--ignored", "--test-threads=1"]);
    cargo(&arguments)
}
