//! Recording a guest with a disk while it runs: what it shows afterwards (L1, L2, L5, C3, C7).

use std::time::Duration;

use serde_json::Value;
use whole::doppel::{Doppel, Ended, Running};
use whole::images;
use whole::scratch::Scratch;

/// How long a guest may take to boot, or a verb to be done, on a busy host.
const LONG: Duration = Duration::from_secs(120);

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
fn shell(scratch: &Scratch) -> Running {
    let image = images::create(scratch, "d.qcow2", "qcow2", "32M");
    let mut vm = Doppel::new(scratch, "run")
        .guest("mini", "backports", "quiet")
        .args("--memory 128M --name one")
        .disk(&image, "")
        .typed()
        .start();
    vm.wait_for("# ", LONG);
    vm.wait_ready(scratch, "one");
    vm
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn running_guest_at_work_on_its_disk_replays_and_goes_live() {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch);
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
    for engine in ["translate", "interp"] {
        let report = json(&scratch, &format!("verify rec --engine {engine}"));
        assert!(report["orderly_end"] == true && report["checks"].as_u64() > Some(0), "{report}");
    }
    let replayed = verb(&scratch, "replay rec").console;
    assert!(replayed.contains("before") && replayed.contains("after"), "{replayed}");
    assert!(!replayed.contains("later"), "{replayed}");
    let syscalls = verb(&scratch, "trace rec --what syscalls --to #2");
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
