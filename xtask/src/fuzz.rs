//! `cargo xtask fuzz`: builds the fuzz targets with coverage counters and runs them.
//!
//! Stable Rust: the counters come from plain compiler flags, libFuzzer from the crate
//! `libfuzzer-sys`. Targets are the folders of `fuzz/corpus`, whose inputs are the seeds; what a
//! run adds, and inputs that crash, go below `target/fuzz`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use guests::{say, workspace_root};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// SanitizerCoverage as libFuzzer wants it.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1";

/// Limits of one case: a slower or larger one is a defect.
const LIMITS: [&str; 3] = ["-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=256"];

/// Builds and runs fuzz targets.
#[derive(Args, Debug)]
pub struct Fuzz {
    /// The target; all of them if it is left out.
    target: Option<String>,
    /// How long to run each.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Run this input once instead: a crash to reproduce.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
}

impl Fuzz {
    /// Runs the verb.
    ///
    /// # Errors
    /// When something does not compile, or a target crashes; the message says how to reproduce it.
    pub fn run(&self) -> Result<()> {
        let targets = self.targets()?;
        guests::require(&["g++"])?;
        build(&targets)?;
        if let Some(input) = &self.input {
            let mut program = Command::new(program(&targets[0]));
            return succeed(program.args(LIMITS).arg(input));
        }
        let mut crashed = Vec::new();
        for target in &targets {
            if let Err(error) = fuzz(target, self.seconds) {
                say(&format!("{error:#}"));
                crashed.push(target.as_str());
            }
        }
        if !crashed.is_empty() {
            bail!("crashed: {}", crashed.join(", "));
        }
        Ok(())
    }

    fn targets(&self) -> Result<Vec<String>> {
        let mut all = names(&seeds(""))?;
        all.sort();
        match &self.target {
            None => Ok(all),
            Some(target) if all.contains(target) => Ok(vec![target.clone()]),
            Some(target) => bail!("no target {target:?}; there are {}", all.join(", ")),
        }
    }
}

/// Runs one target for `seconds` and says what came of it.
fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let (corpus, crashes) = (output("corpus", target), output("crashes", target));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&crashes)?;
    let (before, known) = (names(&corpus)?, names(&crashes)?);
    let log = output("logs", "").join(format!("{target}.log"));
    std::fs::create_dir_all(output("logs", ""))?;
    let status = Command::new(program(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args(["-print_final_stats=1", "-max_len=8192", "-entropic_scale_per_exec_time=1"])
        .args(LIMITS)
        .args([&corpus, &seeds(target)])
        .stderr(File::create(&log)?)
        .status()
        .with_context(|| format!("cannot start {}", program(target).display()))?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let found = names(&crashes)?;
    let new = found.iter().find(|name| !known.contains(name));
    if status.success() {
        let growth = names(&corpus)?.len() - before.len();
        let (cases, rate) = (stat(&text, "number_of_executed_units"), stat(&text, "average_exec"));
        let peak = stat(&text, "peak_rss_mb");
        say(&format!(
            "{target}: {cases} cases, {rate}/s, corpus +{growth} ({} in all), {peak} MiB at most",
            before.len() + growth
        ));
        return Ok(());
    }
    let input = new.map(|name| crashes.join(name));
    let Some(input) = input.or_else(|| found.last().map(|name| crashes.join(name))) else {
        bail!("{target}: failed without an input, see {}", log.display());
    };
    let why: Vec<&str> = text.lines().filter(|line| is_cause(line)).take(4).collect();
    bail!(
        "{target}: {}\n  reproduce: cargo xtask fuzz {target} --input {}",
        why.join("\n  "),
        input.display()
    );
}

fn is_cause(line: &str) -> bool {
    ["panicked at", "==ERROR", "SUMMARY", "assertion"].iter().any(|mark| line.contains(mark))
}

/// The value of libFuzzer's statistic whose name starts with `name`.
fn stat<'a>(log: &'a str, name: &str) -> &'a str {
    let mark = format!("stat::{name}");
    let line = log.lines().rev().find(|line| line.starts_with(&mark));
    line.and_then(|line| line.split_whitespace().last()).unwrap_or("?")
}

fn build(targets: &[String]) -> Result<()> {
    say(&format!("building {} with coverage counters", targets.join(", ")));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace_root())
        .args(["build", "--release", "--package", "fuzz", "--features", "libfuzzer"])
        .args(["--target", TRIPLE])
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    for target in targets {
        cargo.args(["--bin", &format!("fuzz-{target}")]);
    }
    succeed(&mut cargo)
}

/// Runs a command with its output shown.
fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed, {status}");
    }
    Ok(())
}

fn program(target: &str) -> PathBuf {
    target_dir().join(TRIPLE).join("release").join(format!("fuzz-{target}"))
}

fn target_dir() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace_root().join(named.unwrap_or_else(|| PathBuf::from("target")))
}

fn output(kind: &str, target: &str) -> PathBuf {
    target_dir().join("fuzz").join(kind).join(target)
}

fn seeds(target: &str) -> PathBuf {
    workspace_root().join("fuzz/corpus").join(target)
}

/// Names in a folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}
