//! A user at a terminal with a real guest: types, quits, and has the terminal as it was.

#![forbid(unsafe_code)]

use std::time::Duration;

use rustix::process::Signal;
use whole::doppel::{Doppel, Running, SHORT};
use whole::scratch::Scratch;
use whole::terminal::Terminal;

const RUN_TIME_MAX: Duration = Duration::from_secs(180);
const PROMPT: &str = "/ # ";

/// Starts mini in the foreground of a terminal, lets `act` end it, checks status and terminal.
fn ends(
    what: &str,
    cmdline: &str,
    status: i32,
    act: impl FnOnce(&mut Terminal, &Running, &Scratch),
) {
    let scratch = Scratch::new();
    let mut terminal = Terminal::open();
    let before = terminal.settings();
    let doppel = Doppel::new(&scratch, "run")
        .guest("mini", "6.1", &format!("quiet {cmdline}"))
        .args("--name t --grace 1s");
    let vm = terminal.start(doppel);
    terminal.wait_for("DOPPEL-INIT", RUN_TIME_MAX);
    assert!(terminal.is_raw(), "{what}: keys are not passed on");
    act(&mut terminal, &vm, &scratch);
    let ended = vm.end(RUN_TIME_MAX);
    assert_eq!(ended.code(), Some(status), "{what}: {}", terminal.shown());
    assert_eq!(terminal.settings(), before, "{what}: the terminal is not as it was");
    assert!(!scratch.path("doppel/t.lock").exists(), "{what}: still registered");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn a_shell_is_used_and_left() {
    ends("poweroff typed", "", 0, |terminal, _, _| {
        terminal.wait_for(PROMPT, RUN_TIME_MAX);
        terminal.type_text("echo $((6 * 7))-answer\r");
        terminal.wait_for("42-answer", RUN_TIME_MAX);
        terminal.type_text("\x01h");
        terminal.wait_for("Ctrl-A X", RUN_TIME_MAX);
        terminal.type_text("poweroff -f\r");
    });
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn ctrl_a_x_quits() {
    ends("Ctrl-A X", "", 12, |terminal, _, _| {
        terminal.wait_for(PROMPT, RUN_TIME_MAX);
        terminal.type_text("\x01x");
    });
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn a_guest_that_does_not_listen_is_stopped_after_sigterm() {
    // Nothing in mini listens to the power button.
    ends("SIGTERM", "", 12, |_, vm, _| vm.signal(Signal::TERM));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn the_terminal_survives_a_panic_of_the_guest() {
    ends("panic", "doppel.end=panic", 10, |_, _, _| ());
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn the_terminal_survives_doppel_stop() {
    ends("stop --force", "", 12, |_, _, scratch| {
        Doppel::new(scratch, "stop").args("t --force").run(SHORT).expect(0);
    });
}
