//! What the real `doppel` keeps, restores in a fresh process and keeps again is the same to the
//! byte, and runs on to the same states, whichever engine does what (C3, C7).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use whole::doppel::{Doppel, Running};
use whole::images;
use whole::kept::assert_same;
use whole::scratch::Scratch;
use whole::shell::{ask, json, restore, shell, verb};

/// How long the slower engine may take to boot, or to run on.
const LONG: Duration = Duration::from_secs(400);
const ENGINES: [&str; 2] = ["interp", "translate"];

fn disk(scratch: &Scratch) -> PathBuf {
    images::create(scratch, "d.qcow2", "qcow2", "32M")
}

/// All bytes of guest memory are the same; the file's end names its checkpoint.
fn assert_same_memory(one: &Path, other: &Path) {
    let size = checkpoint::Manifest::read(one).unwrap().machine.memory_bytes as usize;
    let [a, b] = [one, other].map(|folder| fs::read(folder.join("memory.img")).unwrap());
    assert!(a.len() == b.len() && a[..size] == b[..size], "{one:?} is not as {other:?}");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn kept_restored_in_a_fresh_process_and_kept_again_is_the_same_to_the_byte() {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "one", &disk(&scratch), "--net user --hvc none");
    let busy = "dd if=/dev/urandom of=/dev/vda bs=64k count=64 oflag=direct 2>/dev/null";
    ask(&mut vm, &format!("(while :; do {busy}; wget -T 1 -q 10.0.2.2; done) & echo"), "w");
    json(&scratch, "checkpoint one c0");
    vm.kill_off();
    for (number, engine) in (0..).zip(ENGINES.into_iter().cycle().take(4)) {
        let (from, to) = (format!("c{number}"), format!("c{}", number + 1));
        let words = format!("{from} --name r --paused --discard --engine {engine}");
        let mut again = restore(&scratch, &words);
        again.wait_ready(&scratch, "r");
        // Results of reads in flight are in a checkpoint for good, requests that were are not.
        json(&scratch, &format!("checkpoint r {to}"));
        again.kill_off();
        let [from, to] = [from, to].map(|name| scratch.path(&name));
        assert_same(&from, &to);
        assert_same_memory(&from, &to);
    }
}

/// Lines `branches hash`.
fn hashes(log: &Path) -> BTreeMap<u64, String> {
    let text = fs::read_to_string(log).expect("a log of hashes");
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(at, hash)| Some((at.parse().ok()?, hash.to_owned()))).collect()
}

/// A guest in virtual time alone that computes and uses its disk.
fn seeded(scratch: &Scratch, engine: &str) -> Running {
    let work = "quiet doppel.run=echo%20begins;while%20:;do%20head%20-c%20300000%20/dev/urandom\
                %20|%20tee%20/dev/vda%20|%20md5sum;sync;done";
    let vm = Doppel::new(scratch, "run")
        .guest("mini", "6.1", work)
        .disk(&disk(scratch), "")
        .args("--memory 128M --name one --seed 7 --hash-every 1000000")
        .args(&format!("--engine {engine} --hash-log {}", scratch.path("one.log").display()))
        .start();
    vm.wait_for("begins", LONG);
    vm
}

fn runs_on_to_the_same_states(engine: &str) {
    let scratch = Scratch::new();
    let vm = seeded(&scratch, engine);
    json(&scratch, "checkpoint one c");
    let manifest = json(&scratch, "inspect c");
    let begin = manifest["point"]["branches"].as_u64().expect("a number");
    let until = (begin / 1_000_000 + 12) * 1_000_000;
    let at = || json(&scratch, "inspect one")["branches"].as_u64().expect("a number");
    while at() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    vm.kill_off();
    let original = hashes(&scratch.path("one.log"));
    for other in ENGINES {
        let log = format!("{other}.log");
        let checks = format!("--hash-every 1000000 --hash-log {log} --stop-at {until}");
        let ended = verb(
            &scratch,
            &format!("restore c --name r --discard --console none --engine {other} {checks}"),
        );
        ended.expect(0);
        let restored = hashes(&scratch.path(&log));
        assert!(restored.len() >= 10 && *restored.keys().next().unwrap() > begin, "{restored:?}");
        for (at, hash) in restored.range(..until) {
            assert_eq!(original.get(at), Some(hash), "{engine}, {other}, at {at}");
        }
    }
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn checkpoint_of_the_translator_runs_on_to_the_same_states_on_either_engine() {
    runs_on_to_the_same_states("translate");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn checkpoint_of_the_interpreter_runs_on_to_the_same_states_on_either_engine() {
    runs_on_to_the_same_states("interp");
}
