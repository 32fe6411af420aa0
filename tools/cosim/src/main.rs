//! `cosim [--engine interp|translate|both|shadowed|stubs|host] [--seed S] [--cases N]
//! [--only MNEMONIC] [--threads T] [--keep-going N] [--verbose]`: runs random cases until the first
//! difference.
//!
//! Engine `both` runs each case three ways: natively, interpreted, translated. Engine `shadowed` is
//! the translator with accesses by the host's page tables, beside the interpreter: on the host the
//! case would be at the same addresses. Engine `host` runs each twice on the host: it shows what
//! the host itself leaves to chance.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use cosim::coverage::Coverage;
use cosim::engine::EngineExecutor;
use cosim::generate::Generator;
use cosim::host::HostExecutor;
use cosim::stub::StubExecutor;
use cosim::{Executor, compare, corpus, report};
use translate::{Shadowing, Translator};

/// What was asked for.
struct Options {
    seed: u64,
    cases: u64,
    only: Option<String>,
    engine: String,
    threads: u64,
    /// Go on until so many differences, one for each code.
    differences_max: usize,
    verbose: bool,
    /// This process does each `threads`th case, beginning with this one.
    worker: Option<u64>,
}

fn options() -> Result<Options> {
    let mut options = Options {
        seed: 1,
        cases: 100_000,
        only: None,
        engine: "interp".into(),
        threads: 1,
        differences_max: 1,
        verbose: false,
        worker: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--verbose" {
            options.verbose = true;
            continue;
        }
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        let number = || value.parse().with_context(|| format!("{flag} {value}: not a number"));
        match flag.as_str() {
            "--seed" => options.seed = number()?,
            "--cases" => options.cases = number()?,
            "--threads" => options.threads = number()?.max(1),
            "--keep-going" => options.differences_max = number()? as usize,
            "--worker" => options.worker = Some(number()?),
            "--engine" => options.engine = value,
            "--only" => options.only = Some(value),
            _ => bail!("unknown option {flag}"),
        }
    }
    Ok(options)
}

fn main() -> Result<ExitCode> {
    let options = options()?;
    if options.worker.is_none() && options.threads > 1 {
        return parent(&options);
    }
    let (coverage, differences) = work(&options)?;
    if options.worker.is_some() {
        print!("{}", coverage.encode());
    } else {
        print!("{}", coverage.report(options.verbose));
    }
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a process for each thread: addresses are fixed, so they cannot share one.
fn parent(options: &Options) -> Result<ExitCode> {
    let program = std::env::current_exe()?;
    let mut children = Vec::new();
    for worker in 0..options.threads {
        let child = Command::new(&program)
            .args(std::env::args().skip(1))
            .args(["--worker", &worker.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        children.push(child);
    }
    let mut coverage = Coverage::default();
    let mut failed = false;
    for child in children {
        let output = child.wait_with_output()?;
        failed |= !output.status.success();
        if output.status.code().is_none() {
            eprintln!("cosim: a worker was killed: {}", output.status);
        }
        coverage.add(&String::from_utf8_lossy(&output.stdout));
    }
    print!("{}", coverage.report(options.verbose));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn work(options: &Options) -> Result<(Coverage, usize)> {
    let generator = Generator::new(options.seed, options.only.as_deref());
    if generator.targets().is_empty() {
        bail!("no such mnemonic in the model");
    }
    let mut host: Box<dyn Executor> = match options.engine.as_str() {
        "shadowed" => interpreter()?,
        _ => Box::new(HostExecutor::new()?),
    };
    let mut tested = tested(&options.engine)?;
    let mut coverage = Coverage::default();
    let mut differing = Vec::new();
    let first = options.worker.unwrap_or(0);
    for index in (first..options.cases).step_by(options.threads as usize) {
        let Some((target, case)) = generator.case(index) else { continue };
        let count = coverage.count(target);
        let others = match tested.as_mut_slice() {
            [] => vec![("host", host.execute(&case))],
            tested => tested.iter_mut().map(|one| (one.name(), one.execute(&case))).collect(),
        };
        if others.iter().any(|(_, other)| other.is_none()) {
            count.declined += 1;
            continue;
        }
        let truth = host.execute(&case).context("the host runs everything")?;
        count.compared += 1;
        count.faulted += u64::from(truth.fault.is_some());
        let others = others.into_iter().filter_map(|(name, other)| Some((name, other?)));
        let compared = others.map(|(name, other)| (name, compare::compare(&case, &truth, &other)));
        let compared: Vec<_> = compared.collect();
        count.undefined += u64::from(compared.iter().any(|(_, with)| with.undefined_flags != 0));
        let Some((name, difference)) = compared.iter().find(|(_, with)| !with.lines.is_empty())
        else {
            continue;
        };
        if differing.contains(&target) {
            continue;
        }
        eprintln!("case {index} of seed {}:", options.seed);
        eprintln!("{}", report::describe(&case, &truth, difference, name));
        keep(&corpus::encode(&case))?;
        differing.push(target);
        if differing.len() >= options.differences_max {
            break;
        }
    }
    Ok((coverage, differing.len()))
}

/// The executors under test, made after the host executor so that its signal handler comes first;
/// none is the host itself.
fn tested(engine: &str) -> Result<Vec<Box<dyn Executor>>> {
    Ok(match engine {
        "interp" => vec![interpreter()?],
        "translate" => vec![translator(Shadowing::Never)?],
        "both" => vec![interpreter()?, translator(Shadowing::Never)?],
        "shadowed" => vec![translator(Shadowing::Always)?],
        "stubs" => vec![Box::new(StubExecutor::new()?)],
        "host" => Vec::new(),
        _ => bail!("unknown engine {engine}: interp, translate, both, shadowed, stubs or host"),
    })
}

fn interpreter() -> Result<Box<dyn Executor>> {
    Ok(Box::new(EngineExecutor::new(Box::new(interp::Interp::new()?))?))
}

fn translator(shadow: Shadowing) -> Result<Box<dyn Executor>> {
    let options = translate::Options {
        block_insns_max: 1,
        links: false,
        shadow,
        margin: 0,
        ..translate::Options::default()
    };
    let engine = Translator::new(Box::new(interp::Interp::new()?), options)?;
    Ok(Box::new(EngineExecutor::new(Box::new(engine))?))
}

/// Adds a case to the corpus that the tests replay.
fn keep(text: &str) -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/found.txt");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes()).context("cannot write to the corpus")
}
