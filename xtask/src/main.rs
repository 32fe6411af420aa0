//! `cargo xtask`: everything about this workspace that is more than one command of cargo.
//!
//! One file per verb; `guest` asks the recipes in `tools/guests`.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod cosim;
mod demo;
mod fuzz;
mod guest;
mod soak;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use guests::say;

/// Set-up, tests, images and benchmarks of Doppel.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds doppel and a guest, and runs it.
    Demo(demo::Demo),
    /// Runs every check and test.
    Test(test::Test),
    /// Compares the engine with the host CPU, instruction by instruction.
    Cosim(cosim::Cosim),
    /// Measures doppel beside its peers.
    Bench(bench::Bench),
    /// Runs hostile inputs against every door, with coverage guidance.
    Fuzz(fuzz::Fuzz),
    /// Runs real work in guests at length.
    Soak(soak::Soak),
    /// Builds guest images from Debian packages into the cache.
    Guest(guest::Guest),
    /// Checks the absences that this workspace keeps.
    Tidy,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Demo(demo) => demo.run(),
        Verb::Test(test) => test.run(),
        Verb::Cosim(cosim) => cosim.run(),
        Verb::Bench(bench) => bench.run(),
        Verb::Fuzz(fuzz) => fuzz.run(),
        Verb::Soak(soak) => soak.run(),
        Verb::Guest(guest) => guest.run(),
        Verb::Tidy => tidy::run(),
    }
}
