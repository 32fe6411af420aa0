//! The command `doppel`: one file per verb, each an argument struct with a `run`.
//!
//! Every failure is one line on standard error, `doppel: what: why`, and an exit status of
//! [`vmm::ExitStatus`]'s table.

#![forbid(unsafe_code)]

mod copies;
mod fail;
mod image;
mod key_value;
mod size;
mod usage;
mod values;
mod verbs;

use std::panic::catch_unwind;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use vmm::ExitStatus;

use fail::Fail;

/// A deterministic virtual machine monitor for x86-64 guests.
#[derive(Debug, Parser)]
#[command(name = "doppel", version, after_long_help = usage::exit_statuses())]
struct Doppel {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<verbs::run::Run>),
    List(verbs::list::List),
    Console(verbs::console::Console),
    Pause(verbs::pause::Pause),
    Resume(verbs::resume::Resume),
    Stop(verbs::stop::Stop),
    Checkpoint(verbs::checkpoint::Checkpoint),
    Restore(Box<verbs::restore::Restore>),
    Fork(verbs::fork::Fork),
    Chain(verbs::chain::Chain),
    Inspect(verbs::inspect::Inspect),
    Record(verbs::record::Record),
    SaveRecording(verbs::save_recording::SaveRecording),
    Replay(Box<verbs::replay::Replay>),
    Verify(verbs::verify::Verify),
    Events(verbs::events::Events),
    Debug(verbs::debug::Debug),
    Trace(verbs::trace::Trace),
    Bisect(verbs::bisect::Bisect),
}

impl Verb {
    /// Does it; the exit status.
    fn run(&self) -> Result<u8, Fail> {
        match self {
            Verb::Run(run) => run.run(),
            Verb::List(list) => list.run(),
            Verb::Console(console) => console.run(),
            Verb::Pause(pause) => pause.run(),
            Verb::Resume(resume) => resume.run(),
            Verb::Stop(stop) => stop.run(),
            Verb::Checkpoint(checkpoint) => checkpoint.run(),
            Verb::Restore(restore) => restore.run(),
            Verb::Fork(fork) => fork.run(),
            Verb::Chain(chain) => chain.run(),
            Verb::Inspect(inspect) => inspect.run(),
            Verb::Record(record) => record.run(),
            Verb::SaveRecording(save) => save.run(),
            Verb::Replay(replay) => replay.run(),
            Verb::Verify(verify) => verify.run(),
            Verb::Events(events) => events.run(),
            Verb::Debug(debug) => debug.run(),
            Verb::Trace(trace) => trace.run(),
            Verb::Bisect(bisect) => bisect.run(),
        }
    }
}

fn main() -> ExitCode {
    let matches = match Doppel::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage::report(&error),
    };
    let doppel = match Doppel::from_arg_matches(&matches) {
        Ok(doppel) => doppel,
        Err(error) => return usage::report(&error),
    };
    start_log();
    match catch_unwind(|| doppel.verb.run()) {
        Ok(Ok(status)) => status.into(),
        Ok(Err(fail)) => {
            eprintln!("doppel: {fail}");
            (fail.status() as u8).into()
        }
        Err(_) => {
            eprintln!("doppel: the message above is of a defect; please report it");
            (ExitStatus::Internal as u8).into()
        }
    }
}

/// Warnings and errors of the library go to standard error, a line each.
///
/// Not those of `virtio_queue`, which are about the guest's mistakes, and as many as it likes to
/// make: a guest must not fill its host's logs. They are there for `DOPPEL_LOG=debug`.
fn start_log() {
    let level = match std::env::var("DOPPEL_LOG").as_deref() {
        Ok("debug") => tracing::Level::DEBUG,
        Ok("info") => tracing::Level::INFO,
        _ => tracing::Level::WARN,
    };
    let of_guests = if level < tracing::Level::DEBUG { LevelFilter::OFF } else { level.into() };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time();
    tracing_subscriber::registry()
        .with(lines)
        .with(Targets::new().with_default(level).with_target("virtio_queue", of_guests))
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Doppel::command().debug_assert();
    }
}
