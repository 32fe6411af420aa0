//! Each way a guest can end, its exit status and its output.

mod common;

use common::guest::Guest;
use common::{Place, names, text};

/// Runs a guest; exit status, console, standard error.
fn run(guest: Guest, more: &[&str]) -> (i32, String, String) {
    let place = Place::new();
    let kernel = place.file("k", &guest.image());
    let arguments = [&["run", "--memory", "4M", "--kernel", kernel.to_str().unwrap()], more];
    let output = place.run(&arguments.concat());
    assert!(names(&place.runtime()).is_empty(), "left over: {:?}", names(&place.runtime()));
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn each_ending_has_its_status() {
    let hi = || Guest::new().print("hi\n");
    for (what, guest, more, status) in [
        ("power-off", hi().power_off(), &[][..], 0),
        ("reset", hi().reset(), &["--no-reboot"], 6),
        ("triple fault", hi().triple_fault(), &[], 8),
        ("panic", hi().out8(0x505, 1).halt(), &[], 10),
        ("debug exit 0", hi().out8(0xf4, 0).halt(), &["--debug-exit", "0xf4"], 1),
        ("debug exit 16", hi().out8(0xf4, 16).halt(), &["--debug-exit", "0xf4"], 33),
        ("debug exit elsewhere", hi().out8(0x501, 3).halt(), &["--debug-exit", "0x501"], 7),
        ("stop point", hi().spin(), &["--stop-at", "100000"], 0),
        ("power-off, seeded", hi().power_off(), &["--seed", "1", "--warp"], 0),
        ("power-off, v2", hi().power_off(), &["--cpu", "v2", "--engine", "interp"], 0),
    ] {
        let got = run(guest, more);
        assert_eq!(got, (status, "hi\n".into(), String::new()), "{what}");
    }
}

#[test]
fn reset_boots_again() {
    let guest = Guest::new().print("up\n").reset_once().print("again\n").power_off();
    assert_eq!(run(guest, &[]), (0, "up\nup\nagain\n".into(), String::new()));
}

#[test]
fn without_the_debug_exit_device_its_port_is_nothing() {
    let guest = Guest::new().out8(0xf4, 1).print("on\n").power_off();
    assert_eq!(run(guest, &[]), (0, "on\n".into(), String::new()));
}

#[test]
fn typed_bytes_reach_the_guest_in_order() {
    let place = Place::new();
    let mut vm = place.start("echo", &Guest::new().echo().power_off().image(), &[]);
    let typed: String = ('a'..='p').cycle().take(5000).collect::<String>() + "q";
    vm.type_text(&typed);
    let output = vm.finish();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), typed));
}

#[test]
fn consoles_lead_where_they_are_told() {
    let place = Place::new();
    let guest = Guest::new().print("one").out8(0x2f8, b'2').power_off();
    let kernel = place.file("k", &guest.image());
    let arguments = ["--console", "file=out1", "--serial2", "file=out2"];
    let boot = ["run", "--memory", "4M", "--kernel", kernel.to_str().unwrap()];
    let output = place.run(&[&boot[..], &arguments].concat());
    assert_eq!(output.status.code(), Some(0));
    let read = |name| std::fs::read_to_string(place.path(name)).unwrap();
    assert_eq!((read("out1"), read("out2")), ("one".into(), "2".into()));
}

#[test]
fn seeded_runs_have_the_same_hashes() {
    let place = Place::new();
    let guest = Guest::new().print("go").count_down(300_000).print("end").power_off();
    let kernel = place.file("k", &guest.image());
    let log = |name: &str, more: &[&str]| {
        let mut arguments = vec!["run", "--kernel", kernel.to_str().unwrap(), "--memory", "4M"];
        arguments.extend(["--seed", "7", "--hash-every", "1000", "--hash-log", name]);
        arguments.extend(more);
        assert_eq!(place.run(&arguments).status.code(), Some(0));
        std::fs::read_to_string(place.path(name)).unwrap()
    };
    let first = log("a", &[]);
    assert_eq!(first.lines().count(), 301);
    assert!(first.lines().last().unwrap().starts_with("end 3000"));
    assert_eq!(first, log("b", &["--warp", "--name", "other", "--console", "none"]));
    let stopped = log("c", &["--stop-at", "5000"]);
    assert_eq!(stopped.lines().count(), 6);
    let last = stopped.lines().last().unwrap();
    assert_eq!(last.strip_prefix("end "), first.lines().nth(4));
}
