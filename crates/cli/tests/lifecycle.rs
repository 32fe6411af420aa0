//! A VM ordered about from outside: verbs, API, signals.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::guest::Guest;
use common::{Place, finish, names, text, wait_for};
use rustix::process::Signal;

fn polite() -> Vec<u8> {
    Guest::new().print("up\n").wait_power_button().print("bye\n").power_off().image()
}

fn stubborn() -> Vec<u8> {
    Guest::new().print("up\n").spin().image()
}

#[test]
fn paused_vms_stand_still_and_resumed_ones_go_on() {
    let place = Place::new();
    let vm = place.start("p", &stubborn(), &[]);
    assert_eq!(vm.inspect("state"), "running");
    assert!(place.run(&["pause", "p"]).status.success());
    assert!(place.run(&["pause", "p"]).status.success(), "again");
    assert_eq!(vm.inspect("state"), "paused");
    let still = || (vm.inspect("branches"), vm.inspect("virtual_time_ns"));
    let before = still();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(still(), before);
    assert!(place.run(&["resume", "p"]).status.success());
    wait_for("progress", || still() != before);
    assert!(place.run(&["stop", "p", "--force"]).status.success());
    assert_eq!(vm.finish().status.code(), Some(12));
    assert!(names(&place.runtime()).is_empty());
}

#[test]
fn stop_asks_the_guest_and_waits_for_its_end() {
    let place = Place::new();
    for paused in [false, true] {
        let vm = place.start("s", &polite(), &[]);
        if paused {
            assert!(place.run(&["pause", "s"]).status.success());
        }
        assert!(place.run(&["stop", "s"]).status.success());
        assert_eq!(text(&place.run(&["list"]).stdout), "");
        let output = vm.finish();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "up\nbye\n".into()));
    }
}

#[test]
fn a_guest_that_does_not_listen_is_ended_after_the_grace() {
    let place = Place::new();
    for signal in [None, Some(Signal::TERM)] {
        let vm = place.start("g", &stubborn(), &["--grace", "100ms"]);
        match signal {
            Some(signal) => vm.signal(signal),
            None => assert!(place.run(&["stop", "g", "--no-wait"]).status.success()),
        }
        assert_eq!(vm.finish().status.code(), Some(12));
    }
}

#[test]
fn signals_ask_first_and_then_insist() {
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let vm = place.start("t", &polite(), &[]);
        vm.signal(signal);
        let output = vm.finish();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "up\nbye\n".into()));
        let vm = place.start("t", &stubborn(), &[]);
        vm.signal(signal);
        wait_for("stopping", || vm.inspect("state") == "stopping");
        assert!(!place.run(&["pause", "t"]).status.success());
        let start = Instant::now();
        vm.signal(signal);
        assert_eq!(vm.finish().status.code(), Some(12));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_halted_guest_sleeps_and_can_be_ended() {
    let place = Place::new();
    for more in [&[][..], &["--warp"], &["--seed", "1"]] {
        let vm = place.start("h", &Guest::new().print("up").halt().image(), more);
        std::thread::sleep(Duration::from_millis(20));
        assert!(place.run(&["stop", "h", "--force"]).status.success());
        assert_eq!(vm.finish().status.code(), Some(12), "{more:?}");
    }
}

#[test]
fn a_vm_whose_output_nobody_reads_can_be_ended() {
    let place = Place::new();
    // Prints for ever: the pipe and the buffer fill, and the machine waits.
    let chatter = Guest::new().print(&"x".repeat(1000)).reset();
    let vm = place.start("c", &chatter.image(), &["--grace", "200ms"]);
    std::thread::sleep(Duration::from_millis(300));
    vm.signal(Signal::TERM);
    assert_eq!(vm.finish().status.code(), Some(12));
}

#[test]
fn names_are_unique_and_leftovers_are_cleaned_up() {
    let place = Place::new();
    let vm = place.start("n", &stubborn(), &[]);
    let kernel = place.path("n.elf");
    let again = ["run", "--memory", "4M", "--kernel", kernel.to_str().unwrap(), "--name", "n"];
    let output = place.run(&again);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--name n") && message.contains("doppel stop n"), "{message}");
    vm.signal(Signal::KILL);
    drop(vm.finish());
    assert!(!names(&place.runtime()).is_empty(), "kill leaves things behind");
    let vm = place.start("n", &polite(), &[]);
    assert!(place.run(&["stop", "n"]).status.success());
    drop(vm);
    let vm = place.start("m", &stubborn(), &[]);
    vm.signal(Signal::KILL);
    drop(vm.finish());
    assert_eq!(text(&place.run(&["list"]).stdout), "");
    assert!(names(&place.runtime()).is_empty());
}

#[test]
fn list_and_inspect_tell_what_runs() {
    let place = Place::new();
    place.file("d.img", &[0; 1 << 20]);
    let mut more = vec!["--disk", "path=d.img,readonly", "--seed", "5", "--cmdline", "a b"];
    more.extend(["--perf-map", "perf-%p.map"]);
    let _a = place.start("a", &stubborn(), &more);
    let _b = place.start("b", &stubborn(), &["--api", "my.sock"]);
    let list = text(&place.run(&["list"]).stdout);
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.lines().nth(1).unwrap().contains("running"), "{list}");
    let json = place.run(&["list", "--json"]);
    let vms: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&vms[0]["name"], &vms[1]["name"]), (&"a".into(), &"b".into()));
    assert_eq!(vms[0]["disks"][0]["size_bytes"], 1 << 20);
    assert_eq!((&vms[0]["seed"], &vms[0]["clock"]), (&5.into(), &"seed".into()));
    let shown = text(&place.run(&["inspect", "a"]).stdout);
    for word in ["d.img", "read-only", "seed 5", "a b", "ttyS0 to stdio", "4M"] {
        assert!(shown.contains(word), "no {word:?} in {shown}");
    }
    assert!(http(&place.path("my.sock"), "GET /vm", "").contains("\"name\":\"b\""));
    // What the engine did, and what for: the first counts come with the first quantum.
    let counters = ["blocks translated", "fall-back (run of 16- or 32-bit code)"];
    wait_for("counters", || {
        let shown = text(&place.run(&["inspect", "a"]).stdout);
        counters.iter().all(|counter| shown.contains(counter))
    });
    assert!(place.path(&format!("perf-{}.map", vms[0]["pid"])).exists());
}

/// One exchange with an API; the whole answer.
fn http(socket: &std::path::Path, request: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{kind}");
    stream.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn api_answers_in_json_also_when_it_refuses() {
    let place = Place::new();
    let vm = place.start("api", &stubborn(), &[]);
    let socket = place.runtime().join("api/api.sock");
    for (request, body, status, word) in [
        ("GET /openapi.json", "", "200", "\"/vm/pause\""),
        ("GET /vm/metrics", "", "200", "\"quanta\""),
        ("PUT /vm/pause", "", "200", "{\"state\":\"paused\"}"),
        ("PUT /vm/resume", "", "200", "{\"state\":\"running\"}"),
        ("PUT /vm/power-button", "", "200", "{\"state\":\"running\"}"),
        ("GET /nothing", "", "404", "{\"error\":"),
        ("POST /vm/pause", "", "405", "{\"error\":"),
        ("PUT /vm/stop", "{\"forse\":true}", "400", "{\"error\":"),
        ("PUT /vm/stop", "{", "400", "{\"error\":"),
        ("PUT /vm/stop", "{}", "200", "{\"state\":\"stopping\"}"),
        ("PUT /vm/pause", "", "409", "it cannot be paused"),
        ("PUT /vm/stop", "{\"force\":true}", "200", "{\"state\":\"stopping\"}"),
    ] {
        let answer = http(&socket, request, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains(word), "{request}: {answer}");
    }
    assert_eq!(vm.finish().status.code(), Some(12));
}

#[test]
fn events_tell_each_change_to_the_end() {
    let place = Place::new();
    let vm = place.start("ev", &polite(), &[]);
    let socket = place.runtime().join("ev/api.sock");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut seen = String::new();
    let mut read_until = |word: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(word) {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "no {word} in {seen}");
            seen.push_str(&text(&buffer[..count]));
        }
    };
    read_until("\"running\"");
    for (verb, state) in [("pause", "\"paused\""), ("stop", "\"stopping\"")] {
        assert!(place.run(&[verb, "ev"]).status.success());
        read_until(state);
    }
    read_until("{\"state\":\"stopped\",\"reason\":\"power-off\",\"status\":0}");
    assert_eq!(vm.finish().status.code(), Some(0));
}

#[test]
fn console_attaches_to_a_vm_in_the_background() {
    let place = Place::new();
    let guest = Guest::new().print("hello\n").echo().power_off().image();
    let vm = place.start("bg", &guest, &["--console", "none"]);
    let mut command = place.doppel(&["console", "bg"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"abcq").unwrap();
    let output = finish(child);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "hello\nabcq".into()));
    assert_eq!(vm.finish().status.code(), Some(0));
}
