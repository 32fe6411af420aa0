//! Chains of checkpoints of a running VM, given up, and at the limit of copies: what a user does
//! and sees (C4 to C6).

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use whole::doppel::{Doppel, Running};
use whole::images;
use whole::scratch::Scratch;
use whole::shell::{ask, json, restore, shell, verb};

fn disk(scratch: &Scratch) -> PathBuf {
    images::create(scratch, "d.qcow2", "qcow2", "32M")
}

fn links(scratch: &Scratch, folder: &str) -> Vec<Value> {
    json(scratch, &format!("chain list {folder}")).as_array().cloned().expect("a list")
}

/// The shell's variable X in a machine restored from `folder`.
fn check_restored(scratch: &Scratch, folder: &str, x: &str) {
    let words = format!("{folder} --name r-{folder} --copy --discard");
    let mut copy = restore(scratch, &words);
    let said = ask(&mut copy, "echo X=$X.", "r");
    assert!(said.contains(&format!("X={x}.")), "{folder}: {said}");
    copy.kill_off();
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn chains_of_a_running_vm_are_listed_verified_merged_and_pruned() {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "one", &disk(&scratch), "");
    let mut below = String::new();
    for (name, more) in [("base", ""), ("next", "--compress zstd"), ("last", "")] {
        ask(&mut vm, &format!("X={name}"), name);
        let from = match below.as_str() {
            "" => String::new(),
            below => format!("--incremental-from {below}"),
        };
        json(&scratch, &format!("checkpoint one {name} {from} {more}"));
        below = name.into();
    }
    json(&scratch, "checkpoint one side --incremental-from base");
    let ids: Vec<_> = links(&scratch, "last").iter().map(|link| link["id"].clone()).collect();
    let inspected = |folder: &str| json(&scratch, &format!("inspect {folder}"));
    let of = |folder: &str| inspected(folder)["id"].clone();
    assert_eq!(ids, [of("last"), of("next"), of("base")]);
    let next = inspected("next");
    assert_eq!(next["memory"]["packed"]["compression"], "zstd");
    assert_eq!(next["parent"]["id"], of("base"));
    assert!(inspected("last")["memory"].get("packed").is_none());
    let pages = |words: &str| json(&scratch, words)["pages"].as_u64().expect("a number");
    let saved: u64 =
        links(&scratch, "last").iter().map(|link| link["pages"].as_u64().unwrap()).sum();
    // Pages that became zeroes are looked at as well.
    assert!(pages("chain verify last") >= saved);
    // Another VM has nothing to do with it, and says so.
    let other = verb(&scratch, "restore nowhere --name two");
    assert_ne!(other.code(), Some(0));
    for name in ["base", "next", "last"] {
        check_restored(&scratch, name, name);
    }
    // Merged, it stands alone; those below are untouched.
    assert!(pages("chain merge last") > 0);
    assert_eq!(links(&scratch, "last").len(), 1);
    assert_eq!(inspected("last")["id"], ids[0]);
    check_restored(&scratch, "last", "last");
    check_restored(&scratch, "next", "next");
    // Pruned, it takes those along that nobody needs: base is needed by side.
    let pruned = json(&scratch, "chain prune next");
    assert_eq!(pruned["removed"].as_array().map(Vec::len), Some(0), "{pruned}");
    let pruned = json(&scratch, "chain prune side");
    assert_eq!(pruned["removed"].as_array().map(Vec::len), Some(1), "{pruned}");
    assert!(!scratch.path("base").exists());
    for (name, x) in [("next", "next"), ("side", "last")] {
        verb(&scratch, &format!("chain verify {name}")).expect(0);
        check_restored(&scratch, name, x);
    }
    // A page that changed is found, by its file.
    let path = scratch.path("last/memory.img");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let refused = verb(&scratch, "chain verify last");
    assert!(refused.code() != Some(0) && refused.stderr.contains("memory.img"), "{refused:?}");
}

/// A guest with much in its memory, which takes a while to compress.
fn full(scratch: &Scratch) -> Running {
    let mut vm = Doppel::new(scratch, "run")
        .guest("mini", "backports", "quiet")
        .args("--memory 2G --name big")
        .disk(&disk(scratch), "")
        .typed()
        .start();
    vm.wait_for("# ", Duration::from_secs(120));
    vm.wait_ready(scratch, "big");
    // The more the same page is in memory, the faster; so each is another one.
    let fill = "mkdir -p /f; mount -t tmpfs -o size=1500M none /f; dd if=/dev/urandom of=/r \
                bs=1M count=8 2>/dev/null; for n in $(seq 100); do cat /r; done > /f/x; ls -l /f";
    let said = ask(&mut vm, fill, "full");
    assert!(said.contains("838860800"), "{said}");
    vm
}

/// How nice the thread is that saves, if there is one.
fn saver_niceness(process: u32) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("a running process");
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let saver = stats.into_iter().find(|stat| stat.contains("(saver)"))?;
    // Field 19 (proc(5)); the first after the name is the third.
    saver.rsplit(')').next()?.split_whitespace().nth(16)?.parse().ok()
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn big_checkpoint_of_a_running_vm_is_given_up_at_once() {
    let scratch = Scratch::new();
    let mut vm = full(&scratch);
    let begun = json(&scratch, "checkpoint big c --compress zstd --background");
    assert!(begun["stun_ns"].is_u64() && begun["phase"] == "saving", "{begun}");
    assert_eq!(saver_niceness(vm.id()), Some(10), "the guest goes before the saver");
    let busy = verb(&scratch, "checkpoint big d");
    assert!(busy.stderr.contains("another checkpoint"), "{busy:?}");
    let start = Instant::now();
    verb(&scratch, "checkpoint --cancel big").expect(0);
    let gone = || {
        let mut names = fs::read_dir(scratch.root()).unwrap().map(|entry| entry.unwrap().path());
        !names.any(|path| {
            path.starts_with(scratch.path("c")) || path.to_string_lossy().contains("part-")
        })
    };
    while !gone() || scratch.path("d.qcow2.doppel").exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "something is left");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("given up after {:?}", start.elapsed());
    assert!(ask(&mut vm, "echo on | dd of=/dev/vda conv=fsync && echo fine", "w").contains("fine"));
    // The next one is as good as any.
    json(&scratch, "checkpoint big c");
    verb(&scratch, "chain verify c").expect(0);
    vm.kill_off();
    images::check_qcow2(&scratch.path("d.qcow2"));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn guest_writes_originals_itself_at_the_limit_of_copies() {
    let scratch = Scratch::new();
    let mut vm = full(&scratch);
    let sum = |said: &str| {
        let sum = said.lines().find_map(|line| line.strip_suffix("  /f/x"));
        sum.unwrap_or_else(|| panic!("no sum in {said}")).to_owned()
    };
    let before = sum(&ask(&mut vm, "md5sum /f/x", "s"));
    ask(&mut vm, "while :; do cat /r /r /r /r /r /r > /f/y; done & echo", "w");
    for (limit, more) in [("4K", "--compress zstd"), ("4K", ""), ("1G", "--compress zstd")] {
        let taken = json(&scratch, &format!("checkpoint big c --cow-limit {limit} {more}"));
        let overflowed = taken["overflowed"].as_u64().unwrap();
        // The least there can be is no copies; 1 GiB is enough for all.
        assert_eq!(overflowed > 0, limit == "4K", "{taken}");
        println!("{limit} {more}: {} copied, {overflowed} overflowed", taken["copied"]);
        verb(&scratch, "chain verify c").expect(0);
        let mut copy = restore(&scratch, "c --name r --copy --discard");
        let after = sum(&ask(&mut copy, "kill $!; md5sum /f/x", "t"));
        assert_eq!(before, after, "--cow-limit {limit} {more}");
        copy.kill_off();
        fs::remove_dir_all(scratch.path("c")).unwrap();
    }
}
