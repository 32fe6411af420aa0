//! Recordings of running VMs: they begin with a checkpoint, and replay like any other.

mod common;

use std::path::Path;

use common::guest::Guest;
use common::{Place, Vm, names, text, wait_for};

/// Echoes up to `q`, resets, does so again, and powers off.
fn guest() -> Vec<u8> {
    Guest::new().print("up\n").echo().reset_once().print("done\n").power_off().image()
}

/// A VM that has echoed `a`, recorded from there; it ends itself.
fn recorded(place: &Place, name: &str, dir: &str, more: &[&str]) {
    let mut vm: Vm<'_> = place.start(name, &guest(), more);
    wait_for("a guest on its way", || vm.inspect("branches").parse::<u64>().unwrap() > 1_000);
    vm.type_text("a");
    std::thread::sleep(std::time::Duration::from_millis(200));
    let started = place.run(&["record", name, dir]);
    assert_eq!(started.status.code(), Some(0), "{}", text(&started.stderr));
    assert!(text(&started.stdout).contains("recording"), "{}", text(&started.stdout));
    vm.type_text("bq");
    std::thread::sleep(std::time::Duration::from_millis(400));
    vm.type_text("cq");
    let output = vm.finish();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert_eq!(text(&output.stdout), "up\nabqup\ncqdone\n");
}

fn verified(place: &Place, dir: &str, engine: &str) -> serde_json::Value {
    let output = place.run(&["verify", dir, "--engine", engine, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{engine}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn running_vm_is_recorded_from_a_checkpoint_resets_included() {
    let place = Place::new();
    recorded(&place, "r", "r.rec", &[]);
    for engine in ["translate", "interp"] {
        let report = verified(&place, "r.rec", engine);
        assert_eq!((&report["orderly_end"], &report["end"]), (&true.into(), &"power-off".into()));
        assert!(report["checks"].as_u64().unwrap() >= 1, "{report}");
    }
    // What was printed before is in the checkpoint's past.
    let output = place.run(&["replay", "r.rec"]);
    assert_eq!(text(&output.stdout), "bqup\ncqdone\n", "{}", text(&output.stderr));
    let events = place.run(&["events", "r.rec", "--console"]);
    assert_eq!(text(&events.stdout), "bqcq");
    let output = place.run(&["trace", "r.rec", "--what", "branches", "--from", "#0", "--to", "#1"]);
    assert!(text(&output.stdout).lines().count() > 1, "{}", text(&output.stderr));
    // The mark that says that it was reset is not there at the beginning, and comes.
    let output = place.run(&["bisect", "r.rec", "--when", "u8[0x300000] == 0x5a"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("branch"), "{}", text(&output.stdout));
}

#[test]
fn recording_ends_when_told_and_the_vm_goes_on() {
    let place = Place::new();
    let guest = Guest::new().print("up\n").echo().power_off().image();
    let mut vm = place.start("s", &guest, &[]);
    for (round, dir) in ["one.rec", "two.rec"].into_iter().enumerate() {
        assert_eq!(place.run(&["record", "s", dir]).status.code(), Some(0));
        let again = place.run(&["record", "s", "three.rec"]);
        assert_eq!(again.status.code(), Some(2));
        assert!(text(&again.stderr).contains("is being recorded"), "{}", text(&again.stderr));
        assert!(!place.path("three.rec").exists());
        vm.type_text(if round == 0 { "x" } else { "y" });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let ended = place.run(&["record", "--stop", "s"]);
        assert_eq!(text(&ended.stdout), format!("{}: complete\n", place.path(dir).display()));
        // Complete at once, while the VM goes on.
        let report = verified(&place, dir, "translate");
        assert_eq!(report["orderly_end"], true, "{report}");
    }
    let none = place.run(&["record", "--stop", "s"]);
    assert!(text(&none.stderr).contains("not being recorded"), "{}", text(&none.stderr));
    vm.type_text("q");
    assert_eq!(text(&vm.finish().stdout), "up\nxyq");
    for (dir, typed) in [("one.rec", "x"), ("two.rec", "y")] {
        assert_eq!(text(&place.run(&["replay", dir]).stdout), typed);
    }
}

#[test]
fn what_cannot_be_recorded_is_refused_and_leaves_nothing() {
    let place = Place::new();
    place.file("file", b"x");
    std::fs::create_dir(place.path("full")).unwrap();
    place.file("full/x", b"x");
    let vm = place.start("p", &Guest::new().spin().image(), &["--record", "p.rec"]);
    let other = place.start("o", &Guest::new().spin().image(), &[]);
    for (arguments, words) in [
        (["record", "p", "q.rec"], "is being recorded into"),
        (["record", "o", "file"], "make"),
        (["record", "o", "full"], "not empty"),
        (["record", "nobody", "q.rec"], "no VM named"),
    ] {
        let output = place.run(&arguments);
        let said = text(&output.stderr);
        assert!(output.status.code() != Some(0) && said.contains(words), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(
        (place.path("q.rec").exists(), names(&place.path("full"))),
        (false, vec!["x".into()])
    );
    assert_eq!(place.run(&["record", "--stop", "p"]).status.code(), Some(0));
    let report = verified(&place, "p.rec", "translate");
    assert_eq!(report["orderly_end"], true, "{report}");
    for name in ["p", "o"] {
        assert_eq!(place.run(&["stop", name, "--force"]).status.code(), Some(0));
    }
    vm.finish();
    other.finish();
}

#[test]
fn checkpoint_that_cannot_be_saved_ends_the_recording() {
    let place = Place::new();
    let vm = place.start("f", &Guest::new().spin().image(), &[]);
    // The name of the checkpoint is taken between its making and its end, if we are quick enough.
    let failed = (0..50).any(|round| {
        let dir = format!("f{round}.rec");
        let mut command = place.doppel(&["record", "f", &dir]);
        let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        while !place.path(&dir).join("events.log").exists() {
            std::hint::spin_loop();
        }
        let _ = std::fs::create_dir(place.path(&dir).join("start"));
        let output = common::finish(child);
        if output.status.code() == Some(0) {
            assert_eq!(place.run(&["record", "--stop", "f"]).status.code(), Some(0));
            return false;
        }
        assert!(text(&output.stderr).contains("exists"), "{}", text(&output.stderr));
        assert!(!place.path(&dir).exists());
        true
    });
    assert!(failed);
    assert_eq!(place.run(&["record", "f", "g.rec"]).status.code(), Some(0));
    assert_eq!(place.run(&["stop", "f", "--force"]).status.code(), Some(0));
    vm.finish();
    verified(&place, "g.rec", "translate");
}

#[test]
fn killed_vm_leaves_what_was_recorded() {
    let place = Place::new();
    let mut vm = place.start("k", &Guest::new().print("up\n").echo().spin().image(), &[]);
    assert_eq!(place.run(&["record", "k", "k.rec"]).status.code(), Some(0));
    vm.type_text("abq");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    vm.signal(rustix::process::Signal::KILL);
    vm.finish();
    let output = place.run(&["replay", "k.rec"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cut off") && text(&output.stdout) == "abq");
}

#[test]
fn checkpoint_of_a_recording_is_needed() {
    let place = Place::new();
    recorded(&place, "d", "d.rec", &[]);
    let memory = place.path("d.rec/start/sections.bin");
    let mut bytes = std::fs::read(&memory).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&memory, bytes).unwrap();
    refused(&place, "sections.bin");
    std::fs::remove_dir_all(Path::new(&place.path("d.rec/start"))).unwrap();
    refused(&place, "start");
}

fn refused(place: &Place, words: &str) {
    for verb in ["replay", "verify"] {
        let output = place.run(&[verb, "d.rec"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
}
