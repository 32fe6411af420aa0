//! `cargo xtask cosim`: random instructions on the host CPU and in an engine, compared.

use anyhow::Result;
use clap::Args;

use crate::cargo::cargo;

/// Cases when nobody says how many: some minutes.
const CASES_DEFAULT: u64 = 2_000_000;

/// Runs random instructions with random state on the host CPU and in an engine, and stops at the
/// first difference, which joins the corpus. Ends with what of the CPU model was covered.
#[derive(Args, Debug)]
pub struct Cosim {
    /// How many cases.
    #[arg(long, default_value_t = CASES_DEFAULT)]
    cases: u64,
    /// Which cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What is compared with the host: interp, translate, both (three ways) or stubs; or shadowed,
    /// the translator with accesses by the host's page tables, compared with the interpreter.
    #[arg(long, default_value = "interp")]
    engine: String,
    /// List the forms that are not covered, and how often each other was.
    #[arg(long)]
    verbose: bool,
}

impl Cosim {
    /// `cases` cases on an engine.
    pub fn new(engine: &str, cases: u64) -> Cosim {
        Cosim { cases, seed: 1, engine: engine.into(), verbose: false }
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// When something differs.
    pub fn run(&self) -> Result<()> {
        let (cases, seed) = (self.cases.to_string(), self.seed.to_string());
        let threads = threads().to_string();
        let mut arguments = vec!["run", "--release", "--quiet", "--package", "cosim", "--"];
        arguments.extend(["--engine", &self.engine, "--cases", &cases, "--seed", &seed]);
        arguments.extend(["--threads", &threads]);
        if self.verbose {
            arguments.push("--verbose");
        }
        cargo(&arguments)
    }
}

/// One for each CPU of the host.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}
