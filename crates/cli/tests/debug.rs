//! gdb itself on a recording (L1, L2): forwards, backwards, and who wrote it.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::guest::Guest;
use common::{Place, finish, text, wait_for};

/// Counts down twice with a store of 1, then 2, to 0x300000 between, and powers off.
fn guest() -> Vec<u8> {
    Guest::new()
        .count_down(200_000)
        .store(0x30_0000, 1)
        .count_down(300_000)
        .store(0x30_0000, 2)
        .count_down(400_000)
        .print("done\n")
        .power_off()
        .image()
}

fn record(place: &Place, guest: &[u8], prints: &str) -> std::path::PathBuf {
    let kernel = place.file("k", guest);
    let dir = place.path("rec");
    let arguments = ["run", "--memory", "4M", "--kernel", kernel.to_str().unwrap()];
    let output = place.run(&[&arguments[..], &["--record", dir.to_str().unwrap()]].concat());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), prints.into()));
    dir
}

/// What gdb says; the answers to `monitor` are on standard error.
struct Said {
    stdout: String,
    stderr: String,
}

/// What gdb says to a script, connected to `socket`.
fn gdb_at(place: &Place, socket: &str, script: &[&str]) -> Said {
    let mut file = std::fs::File::create(place.path("script")).unwrap();
    for line in ["set pagination off", "set confirm off", "set width 0"] {
        writeln!(file, "{line}").unwrap();
    }
    writeln!(file, "target remote {socket}").unwrap();
    script.iter().for_each(|line| writeln!(file, "{line}").unwrap());
    writeln!(file, "detach").unwrap();
    drop(file);
    let gdb = Command::new("gdb")
        .args(["-nx", "-batch", "-x", place.path("script").to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("gdb is installed: cargo xtask test says how");
    let said = finish(gdb);
    Said { stdout: text(&said.stdout), stderr: text(&said.stderr) }
}

/// What gdb says to a script, with `doppel debug` at the other end.
fn gdb(place: &Place, dir: &Path, engine: &str, script: &[&str]) -> Said {
    gdb_with(place, dir, &["--engine", engine], script)
}

/// The same with more arguments for `doppel debug`.
fn gdb_with(place: &Place, dir: &Path, more: &[&str], script: &[&str]) -> Said {
    let socket = place.path("gdb.sock");
    let arguments = ["debug", dir.to_str().unwrap(), "--once", "--listen"];
    let mut command = place.doppel(&[&arguments[..], &[socket.to_str().unwrap()], more].concat());
    let server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the socket", || socket.exists());
    let said = gdb_at(place, socket.to_str().unwrap(), script);
    let served = finish(server);
    assert_eq!(text(&served.stderr), "", "{}", said.stdout);
    said
}

/// Branches that a VM says it has executed.
fn branches(place: &Place, name: &str) -> u64 {
    let said = place.run(&["inspect", name, "--json"]).stdout;
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    said["branches"].as_u64().unwrap()
}

#[test]
fn gdb_holds_a_running_vm_which_goes_on_and_records_nothing_of_it() {
    let place = Place::new();
    let guest = Guest::new().store_more_and_more(0x30_0000).image();
    let vm = place.start("live", &guest, &["--record", place.path("rec").to_str().unwrap()]);
    let script = [
        "watch *(int*)0x300000",
        "continue",
        "delete",
        "set $before = $ebx",
        "hbreak *0x100026",
        "continue",
        "print $rip == 0x100026",
        "continue",
        "delete",
        "stepi",
        "print $rip == 0x100027",
        "print $ebx - *(int*)0x300000",
        "print $ebx > $before",
        "monitor break begin",
        "continue",
        "monitor where",
        "monitor unbreak begin",
        "reverse-stepi",
        "monitor seek end",
    ];
    let map = place.file("System.map", b"00100020 T begin\n");
    for round in 0..2 {
        let socket = place.path(&format!("gdb{round}"));
        let arguments = ["debug", "live", "--once", "--symbols", map.to_str().unwrap()];
        let served = place.run(&[&arguments[..], &["--listen", socket.to_str().unwrap()]].concat());
        assert!(served.status.success(), "{}", text(&served.stderr));
        let said = gdb_at(&place, socket.to_str().unwrap(), &script);
        has(&said.stdout, &["Old value = ", "New value = ", "$1 = 1", "$2 = 1", "$3 = 1"]);
        has(&said.stdout, &["$4 = 1", "SIGTRAP", "No more reverse-execution history"]);
        let how = ["being recorded: `doppel debug ", "rec` goes back from here"];
        has(&said.stderr, &how);
        has(&said.stderr, &["rip 0x100020 (begin)", "where   ", "symbol NAME"]);
        let before = branches(&place, "live");
        wait_for("the VM to go on", || branches(&place, "live") > before);
    }
    // The recording is followed while it grows.
    let dir = place.path("rec");
    let twice = ["continue", "monitor where", "shell sleep 3", "continue", "monitor where"];
    let said = gdb(&place, &dir, "translate", &[&twice[..], &["reverse-stepi"]].concat());
    let at = said.stderr.lines().filter_map(|line| line.strip_prefix("branch "));
    let at: Vec<u64> = at.map(|at| at.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(at.len() == 2 && at[0] < at[1], "{at:?} {}", said.stderr);
    assert!(place.run(&["stop", "live", "--force"]).status.success());
    drop(vm);
    for engine in ["translate", "interp"] {
        let verified = place.run(&["verify", dir.to_str().unwrap(), "--engine", engine]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
    }
}

#[test]
fn gdb_is_refused_where_there_is_nothing_to_debug() {
    let place = Place::new();
    let refused = place.run(&["debug", "nobody", "--listen", "s"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("nobody"));
    let guest = Guest::new().spin().image();
    let _vm = place.start("live", &guest, &[]);
    let first = place.run(&["debug", "live", "--listen", "s"]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let second = place.run(&["debug", "live", "--listen", "s2"]);
    assert!(text(&second.stderr).contains("gdb is served already"), "{}", text(&second.stderr));
    let said = gdb_at(&place, place.path("s").to_str().unwrap(), &["stepi", "reverse-stepi"]);
    has(&said.stderr, &["`doppel record live DIR` records it from now on"]);
    // A gdb that is killed leaves the VM going.
    let script = ["shell kill -9 $PPID"];
    gdb_at(&place, place.path("s").to_str().unwrap(), &script);
    let before = branches(&place, "live");
    wait_for("the VM to go on", || branches(&place, "live") > before);
}

fn has(said: &str, words: &[&str]) {
    let mut rest = said;
    for word in words {
        let at = rest.find(word).unwrap_or_else(|| panic!("no {word:?} after that in:\n{said}"));
        rest = &rest[at + word.len()..];
    }
}

#[test]
fn gdb_finds_the_writes_backwards_from_the_end() {
    let place = Place::new();
    let dir = record(&place, &guest(), "done\n");
    for engine in ["translate", "interp"] {
        let said = gdb(
            &place,
            &dir,
            engine,
            &[
                "continue",
                "monitor where",
                "watch *(int*)0x300000",
                "reverse-continue",
                "monitor where",
                "reverse-continue",
                "monitor where",
                "reverse-continue",
                "continue",
                "monitor where",
                "delete",
                "monitor seek end",
                "monitor last-write 0x300000 4",
            ],
        );
        has(
            &said.stdout,
            &[
                "No more reverse-execution history",
                "Hardware watchpoint 1: *(int*)0x300000",
                "Old value = 2",
                "New value = 1",
                "Old value = 1",
                "New value = 0",
                "No more reverse-execution history",
                "Old value = 0",
                "New value = 1",
            ],
        );
        let last = "last changed by the instruction at branch 500000";
        let points = ["branch 900000", "branch 500000", "branch 200000", "branch 200000", last];
        has(&said.stderr, &points);
    }
}

#[test]
fn gdb_steps_to_and_fro_and_meets_breakpoints() {
    let place = Place::new();
    let dir = record(&place, &guest(), "done\n");
    let script = [
        "monitor seek 100000",
        "maintenance flush register-cache",
        "set $there = $rip",
        "stepi",
        "stepi",
        "stepi",
        "reverse-stepi",
        "reverse-stepi",
        "reverse-stepi",
        "print $there == $rip",
        "print $branches",
        "hbreak *$rip",
        "reverse-continue",
        "print $branches",
        "continue",
        "print $branches",
        "delete",
        "monitor seek #0",
        "maintenance flush register-cache",
        "print $branches",
        "reverse-stepi",
        "print $rip",
    ];
    for engine in ["translate", "interp"] {
        let said = gdb(&place, &dir, engine, &script);
        let words = ["$1 = 1", "$2 = 100000", "$3 = 99999", "$4 = 100000", "$5 = 0"];
        has(
            &said.stdout,
            &[&words[..], &["No more reverse-execution history", "0x100020"]].concat(),
        );
    }
}

/// Loads and stores words near each other, with branches between to tell them apart.
fn reader() -> Vec<u8> {
    Guest::new()
        .store(0x30_0000, 7)
        .count_down(1000)
        .load(0x30_0000)
        .count_down(2000)
        .load(0x30_0004)
        .count_down(3000)
        .store(0x30_0000, 7)
        .count_down(4000)
        .load(0x30_0000)
        .count_down(5000)
        .power_off()
        .image()
}

#[test]
fn gdb_stops_at_reads_and_at_stores_of_what_was_there() {
    let place = Place::new();
    let dir = record(&place, &reader(), "");
    for engine in ["translate", "interp"] {
        let forward = ["rwatch *(int*)0x300000", "continue", "print $branches", "continue"];
        let rest = ["print $branches", "continue", "delete", "awatch *(int*)0x300000"];
        let back = ["reverse-continue", "print $branches", "reverse-continue", "print $branches"];
        let start = ["reverse-continue", "print $branches", "reverse-continue", "continue"];
        let both = ["print $branches", "awatch *(int*)0x300004", "continue", "continue"];
        let script = [&forward[..], &rest, &back, &start, &both, &["print $branches"]].concat();
        let said = gdb(&place, &dir, engine, &script);
        let read = ["read watchpoint 1", "Value = 7", "$1 = 1000", "Value = 7", "$2 = 10000"];
        let end = ["No more reverse-execution history", "$3 = 10000", "$4 = 6000", "$5 = 1000"];
        let again = ["$6 = 0", "read/write", "Value = 0", "$7 = 3000"];
        has(&said.stdout, &[&read[..], &end, &again].concat());
    }
}

#[test]
fn monitor_knows_names_of_a_map() {
    let place = Place::new();
    let dir = record(&place, &guest(), "done\n");
    let map = "00100020 T begin\n00100025 t first_loop\n00300000 B cell\n";
    let map = place.file("System.map", map.as_bytes());
    let script = [
        "monitor symbol first_loop",
        "monitor symbol loop",
        "monitor symbol nothing",
        "monitor break first_loop",
        "continue",
        "monitor where",
        "monitor unbreak first_loop",
        "monitor seek end",
        "monitor last-write cell 4",
        "monitor name 0x100027",
    ];
    let said = gdb_with(&place, &dir, &["--symbols", map.to_str().unwrap()], &script);
    let words = ["0x100025 first_loop", "0x100025 first_loop", "nothing: no such symbol"];
    let stops = ["stops at 0x100025 (first_loop)", "rip 0x100025 (first_loop)", "no longer"];
    let end = ["0x300000 was last changed", "(first_loop+", "0x100027 (first_loop+0x2)"];
    has(&said.stderr, &[&words[..], &stops, &end].concat());
    let bad = place.file("bad", b"hello there, you\n");
    let refused = place.run(&["debug", dir.to_str().unwrap(), "--symbols", bad.to_str().unwrap()]);
    assert!(text(&refused.stderr).contains("neither an ELF file nor a System.map"));
}

#[test]
fn bisect_finds_the_first_point_and_trace_tells_what_is_between() {
    let place = Place::new();
    let dir = record(&place, &guest(), "done\n");
    let dir = dir.to_str().unwrap();
    for engine in ["translate", "interp"] {
        for (when, words) in [
            ("u32[0x300000] == 2", "branch 500000 "),
            ("u32[0x300000] == 1", "branch 200000 "),
            ("u8[0x300000] > 0 && rcx == 399999", "branch 500000 "),
            ("rcx == 77", "branch 199922 "),
        ] {
            let found = place.run(&["bisect", dir, "--when", when, "--engine", engine]);
            let said = text(&found.stdout);
            assert!(said.starts_with(words), "{when}: {said} {}", text(&found.stderr));
        }
        let never = ["bisect", dir, "--when", "u32[0x300000] == 3", "--engine", engine];
        let never = place.run(&never);
        assert_eq!(never.status.code(), Some(2));
        assert!(text(&never.stderr).contains("nowhere"));
        let trace = ["trace", dir, "--what", "branches", "--from", "1000", "--to", "1003"];
        let lines = text(&place.run(&[&trace[..], &["--engine", engine]].concat()).stdout);
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, count) in lines.iter().zip(1001..) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(
                (words[0], words[2], words[3]),
                (&*count.to_string(), "0x100026", "0x100025")
            );
        }
    }
}
