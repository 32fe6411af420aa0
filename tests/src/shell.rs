//! A mini guest at its shell, typed to, and the verbs of `doppel` around it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::doppel::{Doppel, Ended, Running};
use crate::scratch::Scratch;

/// How long a guest may take to boot, or a checkpoint to be taken, on a busy host.
const LONG: Duration = Duration::from_secs(120);

/// A mini guest with a disk, at its shell.
///
/// # Panics
/// When it does not come up.
pub fn shell(scratch: &Scratch, name: &str, disk: &Path, more: &str) -> Running {
    shell_in(scratch, name, disk, &format!("--memory 128M {more}"))
}

/// As [`shell`], with the memory that `more` says.
///
/// # Panics
/// When it does not come up.
pub fn shell_in(scratch: &Scratch, name: &str, disk: &Path, more: &str) -> Running {
    let mut vm = Doppel::new(scratch, "run")
        .guest("mini", "backports", "quiet")
        .args("--name")
        .arg(name)
        .disk(disk, "")
        .args(more)
        .typed()
        .start();
    vm.wait_for("# ", LONG);
    vm.wait_ready(scratch, name);
    vm
}

/// Runs `doppel` with these words, in the scratch folder.
pub fn verb(scratch: &Scratch, words: &str) -> Ended {
    verb_within(scratch, words, LONG)
}

/// As [`verb`], for what may take longer.
pub fn verb_within(scratch: &Scratch, words: &str, time_max: Duration) -> Ended {
    let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
    let mut doppel = Doppel::new(scratch, verb).args(rest);
    doppel.command().env("XDG_STATE_HOME", scratch.path("state")).current_dir(scratch.root());
    doppel.run(time_max)
}

/// Runs `doppel` with these words and `--json`; what it says.
///
/// # Panics
/// When it fails.
pub fn json(scratch: &Scratch, words: &str) -> Value {
    let ended = verb(scratch, &format!("{words} --json"));
    ended.expect(0);
    serde_json::from_str(&ended.console).expect("JSON")
}

/// `doppel restore` with these words, to be typed to.
pub fn restore(scratch: &Scratch, words: &str) -> Running {
    let mut doppel = Doppel::new(scratch, "restore").args(words).typed();
    doppel.command().env("XDG_STATE_HOME", scratch.path("state")).current_dir(scratch.root());
    doppel.start()
}

/// Types a command; what it prints, without what was typed.
///
/// # Panics
/// When it does not end.
pub fn ask(vm: &mut Running, command: &str, mark: &str) -> String {
    let from = vm.console().len();
    vm.type_text(&format!("{command}; echo {mark}-$((6*7))\n"));
    let end = vm.wait_from(from, &format!("{mark}-42"), LONG);
    let console = vm.console();
    console.get(from..end).unwrap_or(&console).replace('\r', "")
}
