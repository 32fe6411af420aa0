//! Checkpoints along a recording: the middle is entered there, and comes to the same.

mod common;

use std::path::Path;
use std::time::Duration;

use common::guest::Guest;
use common::{Place, Vm, names, text, wait_for};

/// Echoes for some seconds what is typed, with checkpoints meanwhile; returns how many.
fn recorded(place: &Place, dir: &str, more: &[&str]) -> usize {
    let guest = Guest::new().print("up\n").echo().print("done\n").power_off().image();
    let arguments = [&["--record", dir, "--checkpoint-every", "250ms"], more].concat();
    let mut vm: Vm<'_> = place.start("a", &guest, &arguments);
    wait_for("a guest on its way", || vm.inspect("branches").parse::<u64>().unwrap() > 1_000);
    for letter in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        vm.type_text(letter);
        std::thread::sleep(Duration::from_millis(250));
    }
    let checkpoints = || {
        let names = names(&place.path(dir)).into_iter();
        names.filter(|name| name.starts_with("checkpoint-")).count()
    };
    // On a busy host they are slow to come.
    wait_for("three checkpoints", || checkpoints() >= 3);
    // The next one comes at once; the end is to be some way behind it.
    std::thread::sleep(Duration::from_millis(150));
    vm.type_text("q");
    let output = vm.finish();
    assert_eq!((text(&output.stdout), text(&output.stderr)), (WHOLE.into(), String::new()));
    checkpoints()
}

const WHOLE: &str = "up\nabcdefghqdone\n";

/// Branches of the events of a kind.
fn events(place: &Place, dir: &str, kind: &str) -> Vec<u64> {
    let json = text(&place.run(&["events", dir, "--json"]).stdout);
    let events = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of_kind = events.filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["branches"].as_u64().unwrap()).collect()
}

#[test]
fn recording_verifies_from_each_of_its_checkpoints_on_both_engines() {
    let place = Place::new();
    let disk = place.file("d.raw", &vec![7; 1 << 20]);
    let spec = format!("path={},format=raw", disk.display());
    let count = recorded(&place, "v.rec", &["--disk", &spec]);
    // One that was being saved when the guest powered off has its place in the log, but no folder.
    let places = events(&place, "v.rec", "checkpoint").len();
    assert!(places == count || places == count + 1, "{places} places of {count} checkpoints");
    let mut branches = 0;
    for number in 0..=count {
        for engine in ["translate", "interp"] {
            let from = number.to_string();
            let arguments = ["verify", "v.rec", "--json", "--engine", engine];
            let output = place.run(&[&arguments[..], &["--from-checkpoint", &from]].concat());
            assert_eq!(output.status.code(), Some(0), "{from}: {}", text(&output.stderr));
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(report["checks"].as_u64() > Some(0) && report["end"] == "power-off");
            let end = report["branches"].as_u64().unwrap();
            assert!(branches == 0 || branches == end, "{report}");
            branches = end;
        }
    }
    let none = place.run(&["verify", "v.rec", "--from-checkpoint", "99"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("no checkpoint 99"), "{}", text(&none.stderr));
    // As it is where the guest's end came before the last one was saved.
    std::fs::remove_dir_all(place.path(&format!("v.rec/checkpoint-{count}"))).unwrap();
    let last = count.to_string();
    let gone = place.run(&["verify", "v.rec", "--from-checkpoint", &last]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(
        text(&gone.stderr).contains(&format!("no checkpoint {last}")),
        "{}",
        text(&gone.stderr)
    );
    let whole = place.run(&["verify", "v.rec"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
    // A planted fault is found from there too.
    let log = place.path("v.rec/events.log");
    let mut changed = Vec::new();
    let bytes = std::fs::read(&log).unwrap();
    let mut reader = journal::LogReader::new(&bytes[..]).unwrap();
    let mut writer = journal::LogWriter::new(&mut changed).unwrap();
    while let Some(mut entry) = reader.next_entry().unwrap() {
        if let journal::What::Input(journal::Input::Console { bytes, .. }) = &mut entry.what
            && bytes[..] == b"h"[..]
        {
            bytes[0] = b'H';
        }
        writer.append(&entry).unwrap();
    }
    writer.flush().unwrap();
    std::fs::write(&log, changed).unwrap();
    let output = place.run(&["verify", "v.rec", "--from-checkpoint", "1"]);
    assert_eq!(output.status.code(), Some(16), "{}", text(&output.stderr));
}

#[test]
fn replay_to_a_place_begins_at_the_checkpoint_before_it() {
    let place = Place::new();
    recorded(&place, "r.rec", &[]);
    assert_eq!(text(&place.run(&["replay", "r.rec"]).stdout), WHOLE);
    let last = events(&place, "r.rec", "checkpoint").last().unwrap() + 10;
    let to = last.to_string();
    let near = place.run(&["replay", "r.rec", "--to", &to, "--verify"]);
    assert_eq!(near.status.code(), Some(0), "{}", text(&near.stderr));
    // What was printed before the checkpoint is not printed again.
    assert!(!text(&near.stdout).contains("up"), "{}", text(&near.stdout));
    let from_start = ["replay", "r.rec", "--to", &to, "--verify", "--from-checkpoint", "0"];
    let far = place.run(&from_start);
    assert!(text(&far.stdout).starts_with("up\nabc"), "{}", text(&far.stdout));
    let point = |said: &[u8]| {
        text(said).split(" branch ").nth(1).unwrap().split(" of guest").next().unwrap().to_owned()
    };
    assert_eq!(point(&near.stderr), point(&far.stderr));
    // One that is damaged is passed over, and said so.
    let folders = names(&place.path("r.rec")).into_iter();
    for folder in folders.filter(|name| name.starts_with("checkpoint-")) {
        let sections = place.path("r.rec").join(folder).join("sections.bin");
        let mut bytes = std::fs::read(&sections).unwrap();
        bytes[50] ^= 1;
        std::fs::write(&sections, bytes).unwrap();
    }
    let past = place.run(&["replay", "r.rec", "--to", &to]);
    assert_eq!(past.status.code(), Some(0), "{}", text(&past.stderr));
    assert!(text(&past.stdout).starts_with("up\nabc"), "{}", text(&past.stdout));
    assert!(text(&past.stderr).contains("is passed over"), "{}", text(&past.stderr));
}

#[test]
fn log_that_lacks_a_checkpoint_s_place_does_without_it() {
    let place = Place::new();
    recorded(&place, "c.rec", &[]);
    let log = place.path("c.rec/events.log");
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, &whole[..whole.len() * 2 / 3]).unwrap();
    let output = place.run(&["replay", "c.rec", "--to", "10"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = place.run(&["replay", "c.rec"]);
    assert!(text(&output.stderr).contains("cut off"), "{}", text(&output.stderr));
    assert!(WHOLE.starts_with(&text(&output.stdout)));
}

#[test]
fn traveller_enters_in_the_middle_and_finds_the_same() {
    let place = Place::new();
    recorded(&place, "t.rec", &[]);
    let last = *events(&place, "t.rec", "console").last().unwrap();
    let (from, to) = ((last - 40).to_string(), (last - 10).to_string());
    let trace = |dir: &str| {
        let arguments = ["trace", dir, "--what", "branches", "--from", &from, "--to", &to];
        let output = place.run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let with = trace("t.rec");
    assert!(with.lines().count() >= 20, "{with}");
    remove_checkpoints(&place.path("t.rec"));
    assert_eq!(trace("t.rec"), with);
}

fn remove_checkpoints(dir: &Path) {
    for name in names(dir).into_iter().filter(|name| name.starts_with("checkpoint-")) {
        std::fs::remove_dir_all(dir.join(name)).unwrap();
    }
}

#[test]
fn live_recording_with_checkpoints_goes_live_from_the_nearest() {
    let place = Place::new();
    recorded(&place, "g.rec", &[]);
    let last = events(&place, "g.rec", "checkpoint").last().unwrap() + 10;
    let to = last.to_string();
    let arguments = ["replay", "g.rec", "--to", &to, "--go-live", "--name", "l"];
    let mut command = place.doppel(&arguments);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    wait_for("a VM that answers", || place.run(&["inspect", "l"]).status.success());
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"liveq").unwrap();
    let output = common::finish(child);
    assert!(text(&output.stdout).ends_with("liveqdone\n"), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("up"), "{}", text(&output.stdout));
}
