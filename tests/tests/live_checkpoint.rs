//! Checkpoints, restores and forks of the real `doppel`: what a user does and sees (C1 to C9).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use whole::doppel::{Doppel, Ended, Running, SHORT};
use whole::images;
use whole::scratch::Scratch;

/// How long a guest may take to boot, or a checkpoint to be taken, on a busy host.
const LONG: Duration = Duration::from_secs(120);

/// A mini guest with a disk, at its shell.
fn shell(scratch: &Scratch, name: &str, disk: &Path) -> Running {
    let mut vm = Doppel::new(scratch, "run")
        .guest("mini", "backports", "quiet")
        .args("--memory 128M --name")
        .arg(name)
        .disk(disk, "")
        .typed()
        .start();
    vm.wait_for("# ", LONG);
    vm.wait_ready(scratch, name);
    vm
}

fn verb(scratch: &Scratch, words: &str) -> Ended {
    let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
    let mut doppel = Doppel::new(scratch, verb).args(rest);
    doppel.command().env("XDG_STATE_HOME", scratch.path("state")).current_dir(scratch.root());
    doppel.run(LONG)
}

fn json(scratch: &Scratch, words: &str) -> Value {
    let ended = verb(scratch, &format!("{words} --json"));
    ended.expect(0);
    serde_json::from_str(&ended.console).expect("JSON")
}

fn restore(scratch: &Scratch, words: &str) -> Running {
    let mut doppel = Doppel::new(scratch, "restore").args(words).typed();
    doppel.command().env("XDG_STATE_HOME", scratch.path("state")).current_dir(scratch.root());
    doppel.start()
}

/// Types a command; what it prints before `mark`.
fn ask(vm: &mut Running, command: &str, mark: &str) {
    let from = vm.console().len();
    vm.type_text(&format!("{command}; echo {mark}-$((6*7))\n"));
    vm.wait_from(from, &format!("{mark}-42"), LONG);
}

fn disk(scratch: &Scratch, name: &str) -> PathBuf {
    images::create(scratch, name, "qcow2", "32M")
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn copied_checkpoint_restores_with_its_disk_and_the_vm_keeps_its_image() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "d.qcow2");
    let mut vm = shell(&scratch, "one", &image);
    ask(&mut vm, "X=old; echo before | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    let status = json(&scratch, "checkpoint one c");
    assert_eq!(status["phase"], "done");
    assert!(status["stun_ns"].as_u64().is_some_and(|ns| ns < 2_000_000), "{status}");
    assert!(
        !scratch.path("d.qcow2.live.qcow2").exists() && !scratch.path("d.qcow2.doppel").exists()
    );
    ask(&mut vm, "X=new; echo after | dd of=/dev/vda conv=fsync 2>/dev/null", "w2");
    images::check_qcow2(&scratch.path("c/disk0.qcow2"));
    assert!(json(&scratch, "inspect c")["disks"][0]["policy"] == "copied");
    let mut copy = restore(&scratch, "c --name two --copy");
    ask(&mut copy, "head -1 /dev/vda; echo $X", "r");
    let said = copy.console();
    assert!(said.contains("before") && said.contains("old"), "{said}");
    // Its kernel was told.
    ask(&mut copy, "dmesg | grep -c 'virtual machine fork'", "g");
    assert!(copy.console().contains("\n1\r\n") || copy.console().contains("\r\n1\r\n"));
    copy.kill_off();
    vm.kill_off();
    images::check_qcow2(&image);
    images::check_qcow2(&scratch.path("state/doppel/disks/two/disk0.qcow2"));
    let mut again = restore(&scratch, "c --name three --eager --discard --engine interp");
    ask(&mut again, "head -1 /dev/vda; echo $X", "r");
    assert!(again.console().contains("before") && again.console().contains("old"));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn kept_parent_belongs_to_the_checkpoint_and_chains_grow_on_it() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "d.qcow2");
    let mut vm = shell(&scratch, "one", &image);
    ask(&mut vm, "X=a; echo first | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    json(&scratch, "checkpoint one base --keep-parent");
    let live = json(&scratch, "inspect one")["disks"][0]["path"].clone();
    assert!(live.as_str().is_some_and(|path| path.ends_with("d.1.qcow2")), "{live}");
    ask(&mut vm, "X=b; echo second | dd of=/dev/vda conv=fsync 2>/dev/null", "w2");
    let next = json(&scratch, "checkpoint one next --keep-parent --incremental-from base");
    assert!(
        next["bytes"].as_u64() < json(&scratch, "inspect base")["machine"]["memory_bytes"].as_u64()
    );
    assert_eq!(json(&scratch, "chain list next").as_array().map(Vec::len), Some(2));
    verb(&scratch, "chain verify next").expect(0);
    // Whoever names the image is told.
    let refused = Doppel::new(&scratch, "run").guest("mini", "6.1", "").disk(&image, "").run(SHORT);
    assert!(refused.stderr.contains("is kept as it is for a checkpoint"), "{}", refused.stderr);
    for (folder, text, x) in [("base", "first", "a"), ("next", "second", "b")] {
        let mut copy = restore(&scratch, &format!("{folder} --name {folder}-1 --copy --discard"));
        ask(&mut copy, "head -1 /dev/vda; echo X=$X.", "r");
        let console = copy.console();
        assert!(console.contains(text) && console.contains(&format!("X={x}.")), "{console}");
        copy.kill_off();
    }
    verb(&scratch, "chain prune next").expect(0);
    assert!(!scratch.path("base").exists());
    let mut copy = restore(&scratch, "next --name last --copy --discard");
    ask(&mut copy, "head -1 /dev/vda; echo X=$X.", "r");
    assert!(copy.console().contains("second") && copy.console().contains("X=b."));
    // The VM is not one that was forgotten over all this.
    ask(&mut vm, "echo X=$X.", "still");
    assert!(vm.console().contains("X=b."));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn forks_run_beside_the_original_each_with_its_own_past() {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "one", &disk(&scratch, "d.qcow2"));
    ask(&mut vm, "X=kept", "w");
    let report = json(&scratch, "fork one -n 3");
    assert_eq!(report["copies"].as_array().map(Vec::len), Some(3), "{report}");
    ask(&mut vm, "echo X=$X.", "still");
    for name in ["one-1", "one-2", "one-3"] {
        let mut console = Doppel::new(&scratch, "console").arg(name).typed().start();
        ask(&mut console, "echo $X-$X", "r");
        assert!(console.console().contains("kept-kept"), "{}", console.console());
        drop(console);
        verb(&scratch, &format!("stop {name} --force")).expect(0);
    }
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn refusals_leave_nothing_behind() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "d.qcow2");
    let vm = shell(&scratch, "one", &image);
    scratch.write("taken", "x");
    for (words, why) in [
        ("checkpoint one taken", "exists"),
        ("checkpoint one nowhere/c", "No such file"),
        ("checkpoint one c --incremental-from nowhere", "No such file"),
        ("checkpoint --cancel one", "no checkpoint of this VM is being taken"),
        ("checkpoint nobody c", "no VM named"),
        ("restore nowhere", "No such file"),
        ("restore .", "is not a checkpoint"),
        ("chain verify .", "is not a checkpoint"),
    ] {
        let ended = verb(&scratch, words);
        assert!(ended.code() != Some(0) && ended.stderr.contains(why), "{words}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
    let left: Vec<_> = std::fs::read_dir(scratch.root()).unwrap().flatten().collect();
    let left: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("part-")), "{left:?}");
    assert!(
        !scratch.path("d.qcow2.doppel").exists() && !scratch.path("d.qcow2.live.qcow2").exists()
    );
    vm.kill_off();
    images::check_qcow2(&image);
}
