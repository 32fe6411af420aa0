//! Recordings (L1, L2, L5): what is recorded replays on both engines; what was cut off replays as
//! far as it goes; what was changed is noticed or refused in one clear line.

mod common;

use std::path::PathBuf;

use common::guest::Guest;
use common::{Place, Vm, text, wait_for};

/// Resets once, computes for a while, echoes what is typed up to `q`, and powers off.
fn guest() -> Vec<u8> {
    let guest = Guest::new().print("up\n").reset_once().count_down(3_000_000);
    guest.echo().print("done\n").power_off().image()
}

const CONSOLE: &str = "up\nup\nhello, worldqdone\n";

fn typed(place: &Place, name: &str, more: &[&str]) -> PathBuf {
    let dir = place.path(&format!("{name}.rec"));
    let arguments = [&["--record", dir.to_str().unwrap()], more].concat();
    let mut vm: Vm<'_> = place.start(name, &guest(), &arguments);
    // What is typed before the guest runs enters at the very beginning.
    wait_for("a guest on its way", || vm.inspect("branches").parse::<u64>().unwrap() > 1_000);
    vm.type_text("hello, ");
    std::thread::sleep(std::time::Duration::from_millis(300));
    vm.type_text("worldq");
    let output = vm.finish();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), CONSOLE.into()));
    assert_eq!(text(&output.stderr), "");
    dir
}

#[test]
fn recording_replays_on_both_engines_resets_and_typing_included() {
    let place = Place::new();
    let dir = typed(&place, "r", &[]);
    let dir = dir.to_str().unwrap();
    for engine in ["translate", "interp"] {
        let output = place.run(&["replay", dir, "--verify", "--engine", engine]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), out), (Some(0), CONSOLE.into()), "{err}");
        assert!(err.contains("power-off") && err.contains("checks equal"), "{err}");
        let output = place.run(&["verify", dir, "--engine", engine, "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["orderly_end"], true, "{report}");
        assert!(report["checks"].as_u64().unwrap() >= 1, "{report}");
    }
    let typed = place.run(&["events", dir, "--console"]);
    assert_eq!(text(&typed.stdout), "hello, worldq");
    let transcript = text(&place.run(&["events", dir, "--what", "console", "--text"]).stdout);
    let lines: Vec<&str> = transcript.lines().map(|line| line[14..].trim()).collect();
    // In the order in which lines end; the typed one has no end.
    let expected =
        ["ttyS0 < up", "ttyS0 < up", "ttyS0 < hello, worldqdone", "ttyS0 > hello, worldq"];
    assert_eq!(lines, expected, "{transcript}");
    let consoles = text(&place.run(&["events", dir, "--what", "console"]).stdout);
    assert_eq!(consoles.lines().count(), 2, "{consoles}");
    assert!(consoles.lines().all(|line| line.contains(" console ")), "{consoles}");
    let listed = text(&place.run(&["events", dir]).stdout);
    assert!(listed.lines().last().unwrap().ends_with("end"), "{listed}");
    let json = text(&place.run(&["events", dir, "--json"]).stdout);
    assert_eq!(json.lines().count(), listed.lines().count());
    for line in json.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn replay_stops_at_any_place() {
    let place = Place::new();
    let dir = typed(&place, "p", &[]);
    let dir = dir.to_str().unwrap();
    for (to, words) in [
        ("1_000_000", "branch 1000000 "),
        ("#0", "0 events"),
        ("#2", "2 events"),
        ("0.01s", " 0.0"),
    ] {
        let output = place.run(&["replay", dir, "--to", to, "--verify"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{to}: {said}");
        assert!(said.contains(words), "{to}: {said}");
    }
    for to in ["#9999", "3600s", "99999999999"] {
        let output = place.run(&["replay", dir, "--to", to]);
        assert_ne!(output.status.code(), Some(16), "{}", text(&output.stderr));
    }
}

#[test]
fn recording_goes_live_at_a_place() {
    let place = Place::new();
    let dir = typed(&place, "g", &[]);
    let dir = dir.to_str().unwrap();
    let mut command = place.doppel(&["replay", dir, "--to", "10", "--go-live", "--name", "l"]);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    wait_for("a VM that answers", || place.run(&["inspect", "l"]).status.success());
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"another endq").unwrap();
    let output = common::finish(child);
    assert_eq!(text(&output.stdout), "up\nup\nanother endqdone\n", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn log_cut_at_any_byte_replays_as_far_as_it_goes() {
    let place = Place::new();
    let dir = typed(&place, "c", &[]);
    let log = dir.join("events.log");
    let whole = std::fs::read(&log).unwrap();
    for cut in (12..whole.len()).step_by(whole.len() / 7) {
        std::fs::write(&log, &whole[..cut]).unwrap();
        let output = place.run(&["replay", dir.to_str().unwrap()]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "cut at {cut}: {said}");
        assert!(said.contains("cut off"), "cut at {cut}: {said}");
        assert!(CONSOLE.starts_with(&text(&output.stdout)), "cut at {cut}");
    }
}

/// One line on standard error with `words` in it, and the status.
fn refused(place: &Place, arguments: &[&str], status: i32, words: &[&str]) {
    let output = place.run(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(said.starts_with("doppel: ") && said.lines().count() == 1, "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "no {word:?} in {said}"));
}

#[test]
fn damaged_and_foreign_recordings_are_refused() {
    let place = Place::new();
    let dir = typed(&place, "d", &[]);
    let text_dir = dir.to_str().unwrap();
    let (log, manifest) = (dir.join("events.log"), dir.join("recording.json"));
    let (whole, json) = (std::fs::read(&log).unwrap(), std::fs::read_to_string(&manifest).unwrap());
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    let mut newer = whole.clone();
    newer[8] += 1;
    for (bytes, words) in
        [(damaged, "damaged"), (newer, "version 3"), (b"DOPPEL".to_vec(), "not an event log")]
    {
        std::fs::write(&log, bytes).unwrap();
        refused(&place, &["replay", text_dir], 2, &[words]);
        refused(&place, &["events", text_dir], 2, &[words]);
    }
    std::fs::remove_file(&log).unwrap();
    refused(&place, &["verify", text_dir], 4, &["events.log"]);
    std::fs::write(&log, whole).unwrap();
    for (from, to, words) in [
        ("\"version\": 2", "\"version\": 3", "version 3"),
        ("\"version\": 2,", "", "no version"),
        ("\"kernel\": \"kernel\"", "\"kernel\": \"../kernel\"", "outside"),
        ("\"v3\"", "\"v9\"", "v9"),
        ("{", "", "recording.json"),
    ] {
        std::fs::write(&manifest, json.replacen(from, to, 1)).unwrap();
        refused(&place, &["replay", text_dir], 2, &[words]);
    }
    refused(&place, &["replay", place.dir.to_str().unwrap()], 2, &["no recording"]);
    let guest = place.file("k", &guest());
    let run = ["run", "--kernel", guest.to_str().unwrap(), "--record", text_dir];
    refused(&place, &run, 2, &["there already"]);
}

#[test]
fn recording_of_other_semantics_is_refused_by_name() {
    let place = Place::new();
    let dir = typed(&place, "o", &[]);
    let (text_dir, manifest) = (dir.to_str().unwrap(), dir.join("recording.json"));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    assert_eq!(json["semantics"], machine::SEMANTICS);
    let mut other = json.clone();
    (other["semantics"], other["doppel"]) = (999.into(), "7.8.9".into());
    other["commit"] = "c0ffee".into();
    std::fs::write(&manifest, other.to_string()).unwrap();
    let words = ["doppel 7.8.9 (c0ffee)", "semantics 999", "--other-semantics"];
    for verb in ["replay", "verify", "debug"] {
        refused(&place, &[verb, text_dir], 2, &words);
    }
    refused(&place, &["trace", text_dir, "--what", "disk"], 2, &words);
    // Events are what they are.
    assert_eq!(place.run(&["events", text_dir]).status.code(), Some(0));
    let verified = place.run(&["verify", text_dir, "--other-semantics"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified.stderr));
    // Recordings of before say nothing of it.
    let mut before = json.clone();
    before["version"] = 1.into();
    let fields = before.as_object_mut().unwrap();
    fields.remove("semantics");
    fields.remove("commit");
    std::fs::write(&manifest, before.to_string()).unwrap();
    assert_eq!(place.run(&["verify", text_dir]).status.code(), Some(0));
}

#[test]
fn planted_fault_is_reported_where_it_is_noticed() {
    let place = Place::new();
    let dir = typed(&place, "f", &[]);
    let log = dir.join("events.log");
    let mut changed = Vec::new();
    let bytes = std::fs::read(&log).unwrap();
    let mut reader = journal::LogReader::new(&bytes[..]).unwrap();
    let mut writer = journal::LogWriter::new(&mut changed).unwrap();
    while let Some(mut entry) = reader.next_entry().unwrap() {
        if let journal::What::Input(journal::Input::Console { bytes, .. }) = &mut entry.what {
            bytes[0] ^= 1;
        }
        writer.append(&entry).unwrap();
    }
    writer.flush().unwrap();
    std::fs::write(&log, changed).unwrap();
    let output = place.run(&["verify", dir.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(16), "{said}");
    assert!(said.contains("branch "), "{said}");
}

#[test]
fn engines_side_by_side_are_the_same() {
    let place = Place::new();
    let dir = typed(&place, "e", &[]);
    let output = place.run(&["verify", dir.to_str().unwrap(), "--compare-engines"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "both engines are the same all the way\n");
}

#[test]
fn disk_of_a_recording_is_needed_as_it_was() {
    let place = Place::new();
    let disk = place.file("d.raw", &vec![7; 1 << 20]);
    let spec = format!("path={},format=raw", disk.display());
    let dir = typed(&place, "w", &["--disk", &spec]);
    let text_dir = dir.to_str().unwrap();
    assert!(dir.join("disk0.qcow2").exists());
    assert_eq!(std::fs::read(&disk).unwrap(), vec![7; 1 << 20]);
    assert_eq!(place.run(&["verify", text_dir]).status.code(), Some(0));
    // Another time of change, as on another host, is no other disk.
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    assert_eq!(place.run(&["verify", text_dir]).status.code(), Some(0));
    std::fs::write(&disk, vec![8; 1 << 20]).unwrap();
    refused(&place, &["replay", text_dir], 2, &["d.raw", "contents changed"]);
    std::fs::write(&disk, vec![7; 1 << 19]).unwrap();
    refused(&place, &["replay", text_dir], 2, &["d.raw", "524288"]);
    std::fs::remove_file(&disk).unwrap();
    refused(&place, &["replay", text_dir], 4, &["d.raw", "No such file"]);
}

#[test]
fn killed_recorder_leaves_what_came_before() {
    let place = Place::new();
    let dir = place.path("k.rec");
    let guest = Guest::new().print("up\n").echo().spin().image();
    let mut vm = place.start("k", &guest, &["--record", dir.to_str().unwrap()]);
    vm.type_text("abq");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    vm.signal(rustix::process::Signal::KILL);
    vm.finish();
    let output = place.run(&["replay", dir.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("cut off"), "{said}");
    assert!(text(&output.stdout).starts_with("up\nabq"), "{}", text(&output.stdout));
}
