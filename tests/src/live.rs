//! What is shown of a mini guest with a disk that is recorded while it runs (L1, L2, L5, C3, C7);
//! on which engines, whoever calls decides.

use std::time::Duration;

use serde_json::Value;

use crate::doppel::{Doppel, Ended, Running};
use crate::images;
use crate::scratch::Scratch;

/// How long a guest may take to boot, or a verb to be done, on a busy host.
const LONG: Duration = Duration::from_secs(300);

fn verb(scratch: &Scratch, words: &str) -> Ended {
    let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
    let mut doppel = Doppel::new(scratch, verb).args(rest);
    doppel.command().current_dir(scratch.root());
    doppel.run(LONG)
}

fn json(scratch: &Scratch, words: &str) -> Value {
    let ended = verb(scratch, &format!("{words} --json"));
    ended.expect(0);
    serde_json::from_str(&ended.console).expect("JSON")
}

/// Types a command; waits until it is done.
fn ask(vm: &mut Running, command: &str, mark: &str) {
    let from = vm.console().len();
    vm.type_text(&format!("{command}; echo {mark}-$((6*7))\n"));
    vm.wait_from(from, &format!("{mark}-42"), LONG);
}

/// A mini guest with a disk, at its shell.
fn shell(scratch: &Scratch, more: &str) -> Running {
    shell_of(scratch, "quiet", more)
}

fn shell_of(scratch: &Scratch, cmdline: &str, more: &str) -> Running {
    let image = images::create(scratch, "d.qcow2", "qcow2", "32M");
    let mut vm = Doppel::new(scratch, "run");
    vm.command().current_dir(scratch.root()).env("XDG_STATE_HOME", scratch.path("state"));
    let mut vm = vm
        .guest("mini", "backports", cmdline)
        .args("--memory 128M --name one")
        .args(more)
        .disk(&image, "")
        .typed()
        .start();
    vm.wait_for("# ", LONG);
    vm.wait_ready(scratch, "one");
    vm
}

/// A recording begun while reads and writes are in flight replays, and goes live with the disk
/// of its end.
///
/// # Panics
/// When it is not so.
pub fn at_work(engines: &[&str]) {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "");
    ask(&mut vm, "X=kept; echo before | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    // Reads and writes are in flight all the time.
    vm.type_text("while :; do dd if=/dev/vda of=/dev/vda bs=64k seek=64 count=256 conv=notrunc ");
    vm.type_text("iflag=direct oflag=direct 2>/dev/null; done &\n");
    let status = json(&scratch, "record one rec");
    assert!(status["stun_ns"].as_u64().is_some_and(|ns| ns < 5_000_000), "{status}");
    ask(&mut vm, "head -1 /dev/vda; echo after | dd of=/dev/vda conv=notrunc 2>/dev/null", "w2");
    ask(&mut vm, "kill %1; sync; head -1 /dev/vda", "w3");
    json(&scratch, "record --stop one");
    ask(&mut vm, "echo later | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null", "w4");
    for engine in engines {
        let report = json(&scratch, &format!("verify rec --engine {engine}"));
        assert!(report["orderly_end"] == true && report["checks"].as_u64() > Some(0), "{report}");
    }
    let replayed = verb(&scratch, "replay rec").console;
    assert!(replayed.contains("before") && replayed.contains("after"), "{replayed}");
    assert!(!replayed.contains("later"), "{replayed}");
    let syscalls = verb(&scratch, "trace rec --what syscalls --to end");
    assert!(syscalls.console.lines().count() > 10, "{}", syscalls.stderr);
    let mut live = Doppel::new(&scratch, "replay").args("rec --go-live --name two").typed();
    live.command().current_dir(scratch.root());
    let mut live = live.start();
    live.wait_ready(&scratch, "two");
    ask(&mut live, "echo X=$X.; head -1 /dev/vda", "r");
    let said = live.console();
    assert!(said.contains("X=kept.") && said.matches("after").count() > 1, "{said}");
    live.kill_off();
    vm.kill_off();
    images::check_qcow2(&scratch.path("d.1.qcow2"));
}

/// A recording verifies from each checkpoint along it, with the disk of that time; every other
/// checkpoint on the last of `engines`.
///
/// # Panics
/// When it is not so.
pub fn with_checkpoints(engines: &[&str]) {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "--record rec --checkpoint-every 2s");
    vm.type_text("while :; do dd if=/dev/vda of=/dev/vda bs=64k seek=64 count=256 conv=notrunc ");
    vm.type_text("iflag=direct oflag=direct 2>/dev/null; done &\n");
    for round in 0..4 {
        let write = format!("echo round-{round} | dd of=/dev/vda conv=notrunc 2>/dev/null");
        ask(&mut vm, &format!("{write}; sync; head -1 /dev/vda; sleep 2"), &format!("w{round}"));
    }
    ask(&mut vm, "kill %1; sync", "k");
    vm.type_text("poweroff\n");
    vm.end(LONG).expect(0);
    let count = (1..100).take_while(|n| scratch.path(&format!("rec/checkpoint-{n}")).exists());
    let count = count.count();
    assert!(count >= 3, "{count}");
    let whole = json(&scratch, "verify rec");
    for number in 1..=count {
        let engine = engines[(number + 1) % engines.len()];
        let from = format!("verify rec --from-checkpoint {number} --engine {engine}");
        let report = json(&scratch, &from);
        assert!(report["orderly_end"] == true && report["branches"] == whole["branches"]);
    }
    // Near the end the disk has what was written last, and the guest goes on with it.
    let to = whole["events"].as_u64().unwrap() - 3;
    let replayed = verb(&scratch, &format!("replay rec --to #{to}")).console;
    assert!(!replayed.contains("DOPPEL-INIT"), "{replayed}");
    let last = format!("trace rec --what syscalls --from #{} --to #{to}", to - 1);
    verb(&scratch, &last).expect(0);
}

/// Host time less the guest's uptime, seconds: the least of several looks, because the way there
/// and back takes time.
fn lag(vm: &mut Running, mark: &str) -> f64 {
    let look = |round: u32| {
        let from = vm.console().len();
        vm.type_text(&format!("echo {mark}{round}-$(cut -d' ' -f1 /proc/uptime)-e''nd\n"));
        vm.wait_from(from, "-end\r\n", LONG);
        let now = vm.elapsed().as_secs_f64();
        let said = vm.console();
        let wanted = format!("\n{mark}{round}-");
        let at = said.rfind(&wanted).expect("an answer") + wanted.len();
        now - said[at..].split('-').next().unwrap().parse::<f64>().expect("a number")
    };
    (0..20).map(look).fold(f64::MAX, f64::min)
}

/// After a pause the clock of the guest is the host's again, and never went back.
///
/// # Panics
/// When it is not so.
pub fn clock_after_pauses(engines: &[&str]) {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "--record rec");
    let before = lag(&mut vm, "before");
    vm.type_text("(last=0; while :; do now=$(cut -d' ' -f1 /proc/uptime | tr -d .); ");
    vm.type_text("[ $now -lt $last ] && echo went-back; last=$now; done) &\n");
    for seconds in [2, 9] {
        verb(&scratch, "pause one").expect(0);
        std::thread::sleep(Duration::from_secs(seconds));
        verb(&scratch, "resume one").expect(0);
        let after = lag(&mut vm, &format!("after{seconds}"));
        assert!((after - before).abs() < 0.05, "after {seconds} s of pause: {before} {after}");
    }
    ask(&mut vm, "kill %1; dmesg | grep -ciE 'lockup|stall|unstable'", "d");
    let said = vm.console();
    assert!(!said.contains("\nwent-back") && said.contains("\n0\r\n"), "{said}");
    vm.type_text("poweroff\n");
    vm.end(LONG).expect(0);
    let events = verb(&scratch, "events rec --what clock");
    let jumps = events.console.lines().filter(|line| line.contains("forward 4000000000 ns"));
    assert!(jumps.count() >= 2, "{}", events.console);
    for engine in engines {
        assert_eq!(json(&scratch, &format!("verify rec --engine {engine}"))["orderly_end"], true);
    }
}

/// A guest that reads its clocks and the TSC all the time, interrupted by a timer every
/// millisecond, has the host's time, in which nothing goes back: by the TSC, as a kernel for one
/// CPU, and by the ACPI timer with the local APIC's own.
///
/// # Panics
/// When it is not so.
pub fn clocks(engines: &[&str]) {
    for cmdline in ["quiet", "quiet nosmp", "quiet lapic=notscdeadline clocksource=acpi_pm"] {
        let scratch = Scratch::new();
        let mut vm = shell_of(&scratch, cmdline, "--record rec");
        let before = lag(&mut vm, "before");
        ask(&mut vm, "clocks 2 && echo steady", "c");
        let after = lag(&mut vm, "after");
        assert!((after - before).abs() < 0.05, "{cmdline}: {before} {after}");
        let said = vm.console();
        let line = said.lines().find(|line| line.starts_with("clocks: ")).expect("a line");
        println!("{cmdline}: {line}; from the host by {:.1} ms", (after - before) * 1e3);
        let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(said.contains("\nsteady") && numbers[1] == 0.0, "{line}");
        // What came together is counted, but for the last.
        assert!((1_950.0..=2_010.0).contains(&numbers[2]), "{line}");
        vm.type_text("poweroff\n");
        vm.end(LONG).expect(0);
        for engine in engines {
            let report = json(&scratch, &format!("verify rec --engine {engine}"));
            assert_eq!(report["orderly_end"], true, "{cmdline}: {report}");
        }
    }
}

/// What a flight recorder saves has the disk of its beginning, and the VM goes on.
///
/// # Panics
/// When it is not so.
pub fn flight(engines: &[&str]) {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "--flight-recorder 4s,2G");
    ask(&mut vm, "X=kept; echo before | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    vm.type_text("while :; do dd if=/dev/vda of=/dev/vda bs=64k seek=64 count=256 conv=notrunc ");
    vm.type_text("iflag=direct oflag=direct 2>/dev/null; done &\n");
    for round in 0..3 {
        let write = format!("echo round-{round} | dd of=/dev/vda conv=notrunc 2>/dev/null");
        ask(&mut vm, &format!("head -1 /dev/vda; {write}; sync; sleep 2"), &format!("r{round}"));
    }
    verb(&scratch, "save-recording one rec").expect(0);
    ask(&mut vm, "kill %1; echo after | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null", "a");
    for engine in engines {
        let report = json(&scratch, &format!("verify rec --engine {engine}"));
        assert!(report["orderly_end"] == true && report["checks"].as_u64() > Some(0), "{report}");
    }
    let replayed = verb(&scratch, "replay rec").console;
    assert!(replayed.contains("round-1") && !replayed.contains("DOPPEL-INIT"), "{replayed}");
    let mut live = Doppel::new(&scratch, "replay").args("rec --go-live --name two").typed();
    live.command().current_dir(scratch.root());
    let mut live = live.start();
    live.wait_ready(&scratch, "two");
    ask(&mut live, "kill %1; echo X=$X.; head -1 /dev/vda", "l");
    let said = live.console();
    assert!(said.contains("X=kept.") && said.contains("round-2"), "{said}");
    live.kill_off();
    ask(&mut vm, "head -1 /dev/vda", "z");
    assert!(vm.console().contains("after"), "{}", vm.console());
    vm.kill_off();
    images::check_qcow2(&scratch.path("d.1.qcow2"));
    images::check_qcow2(&scratch.path("rec/disk0.qcow2"));
}
