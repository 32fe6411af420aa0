//! The flight recorder: the last while becomes a recording after it has happened.

mod common;

use std::time::Duration;

use common::guest::Guest;
use common::{Place, names, text, wait_for};

fn verified(place: &Place, dir: &str, engine: &str) -> serde_json::Value {
    let output = place.run(&["verify", dir, "--engine", engine, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{engine}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The files of the flight recorders.
fn kept(place: &Place) -> Vec<String> {
    let folders = names(&place.path("state/doppel/flight"));
    folders.iter().flat_map(|name| names(&place.path("state/doppel/flight").join(name))).collect()
}

#[test]
fn last_while_is_a_recording_and_what_came_before_is_forgotten() {
    let place = Place::new();
    let guest = Guest::new().print("up\n").echo().print("done\n").power_off().image();
    let mut vm = place.start("f", &guest, &["--flight-recorder", "2s,1G"]);
    wait_for("a guest on its way", || vm.inspect("branches").parse::<u64>().unwrap() > 1_000);
    vm.type_text("A");
    std::thread::sleep(Duration::from_secs(4));
    for letter in ["b", "c", "d"] {
        vm.type_text(letter);
        std::thread::sleep(Duration::from_millis(400));
    }
    let saved = place.run(&["save-recording", "f", "one.rec"]);
    assert_eq!(saved.status.code(), Some(0), "{}", text(&saved.stderr));
    let logs = kept(&place).iter().filter(|name| name.starts_with("events")).count();
    assert!((2..=12).contains(&logs), "{:?}", kept(&place));
    vm.type_text("e");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(place.run(&["save-recording", "f", "two.rec"]).status.code(), Some(0));
    vm.type_text("q");
    let output = vm.finish();
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("up\nAbcdeqdone\n".into(), "".into())
    );
    // The recorder's own files go with the VM; the recordings stay.
    assert_eq!(kept(&place), Vec::<String>::new());
    for (dir, typed) in [("one.rec", "bcd"), ("two.rec", "e")] {
        for engine in ["translate", "interp"] {
            let report = verified(&place, dir, engine);
            assert_eq!(report["orderly_end"], true, "{report}");
            assert!(report["checks"].as_u64() > Some(0), "{report}");
        }
        let console = text(&place.run(&["replay", dir]).stdout);
        assert!(console.ends_with(typed) && !console.contains("up"), "{dir}: {console}");
    }
    let one = text(&place.run(&["events", "one.rec", "--console"]).stdout);
    assert!(one == "bcd" || one == "cd", "{one}");
}

#[test]
fn flight_recorder_keeps_to_its_size() {
    let place = Place::new();
    let guest = Guest::new().print("up\n").spin().image();
    // A lap takes some tens of kilobytes, so that a few fit, and the time would allow for hundreds.
    let vm = place.start("s", &guest, &["--flight-recorder", "30s,1M"]);
    let laps = || kept(&place).iter().filter(|name| name.starts_with("checkpoint")).count();
    wait_for("the first lap", || laps() > 0);
    assert_eq!(place.run(&["save-recording", "s", "s.rec"]).status.code(), Some(0));
    assert_eq!(verified(&place, "s.rec", "translate")["orderly_end"], true);
    assert!(laps() < 40);
    assert_eq!(place.run(&["stop", "s", "--force"]).status.code(), Some(0));
    vm.finish();
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = Place::new();
    let guest = Guest::new().spin().image();
    let plain = place.start("p", &guest, &[]);
    let flown = place.start("f", &guest, &["--flight-recorder", "10s,1G"]);
    place.file("file", b"x");
    for (arguments, words) in [
        (["save-recording", "p", "x.rec"], "no flight recorder"),
        (["save-recording", "f", "file"], "make"),
        (["record", "f", "x.rec"], "save-recording"),
    ] {
        let mut said = String::new();
        // A lap that is being taken is in the way of a moment only.
        wait_for("the reason", || {
            let output = place.run(&arguments);
            assert_ne!(output.status.code(), Some(0));
            said = text(&output.stderr);
            !said.contains("another checkpoint")
        });
        assert!(said.contains(words) && said.lines().count() == 1, "{arguments:?}: {said}");
        assert!(!place.path("x.rec").exists());
    }
    for name in ["p", "f"] {
        assert_eq!(place.run(&["stop", name, "--force"]).status.code(), Some(0));
    }
    plain.finish();
    flown.finish();
}
