//! Checkpoints under stress: the monitor killed at random moments of save, commit and merge, disks
//! that are full, the live disk and every checkpoint of a guest that writes at full speed (C8, C9).
//!
//! 520 trials by default; `DOPPEL_TRIALS=50` makes it short.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkpoint::{Checkpoint, Manifest};
use rustix::process::Signal;
use whole::doppel::{Doppel, Running, program};
use whole::images;
use whole::net::inside_namespace;
use whole::random::Random;
use whole::scratch::{Scratch, text, tool};
use whole::writer::{DISK, LONG, check_log, newest, restore, said, start};

/// The given share of all trials, in hundredths.
fn trials(share: u32) -> u32 {
    let all = std::env::var("DOPPEL_TRIALS").ok().and_then(|text| text.parse().ok());
    (all.unwrap_or(520) * share).div_ceil(100)
}

/// A verb of `doppel` in the background.
fn verb(scratch: &Scratch, words: &[&str]) -> Child {
    Command::new(program())
        .args(words)
        .env("XDG_RUNTIME_DIR", scratch.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("doppel starts")
}

/// Whether it succeeded, and what it complained about.
fn end(child: Child) -> (bool, String) {
    let output = child.wait_with_output().expect("doppel");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A checkpoint of a writer that trials start from; the last record that was durable then, and
/// how long it took.
fn base(scratch: &Scratch) -> (PathBuf, u64, Duration) {
    let image = images::create(scratch, "base.raw", "raw", DISK);
    let vm = start(scratch, "base", &image);
    let least = said(&vm.console()).expect("a record");
    let (folder, begin) = (scratch.path("base"), Instant::now());
    let (good, why) = end(verb(scratch, &["checkpoint", "base", text(&folder)]));
    assert!(good, "{why}");
    (folder, least, begin.elapsed())
}

/// Kills it; the last record that it said was durable, if it said any.
fn kill(vm: Running) -> Option<u64> {
    vm.signal(Signal::KILL);
    said(&vm.end(LONG).console)
}

/// A moment that is often in what comes first.
fn moment(random: &mut Random, whole: Duration) -> Duration {
    let whole = whole.as_micros() as u64;
    Duration::from_micros(match random.below(3) {
        0 => random.below(whole / 10 + 1),
        _ => random.below(whole + whole / 4),
    })
}

/// Whatever happened to a checkpoint of it, the image is what it is to be: it can be opened for
/// writing, which finishes what was begun, or a checkpoint keeps it.
fn check_image(scratch: &Scratch, image: &Path, least: u64, random: &mut Random) {
    check_log(scratch, &newest(image), least);
    let open = |path: &Path| {
        disk::open(disk::DiskSpec { path: path.into(), format: None, read_only: false }).map(drop)
    };
    // Whoever finishes it may be killed too.
    for _ in 0..random.below(3) {
        let run = Doppel::new(scratch, "run").guest("mini", "6.1", "").disk(image, "");
        let vm = run.args("--memory 64M --name again --console none").start();
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        vm.signal(Signal::KILL);
        vm.end(LONG);
        check_log(scratch, &newest(image), least);
    }
    match open(image) {
        Ok(()) => {
            check_log(scratch, image, least);
            images::check_killed_qcow2(image);
            let folder = image.parent().expect("a folder");
            // A marker that was never named may be there.
            let other = |name: &String| !name.starts_with("c") && !name.ends_with(".doppel.new");
            let left = names(folder).into_iter().filter(other);
            assert_eq!(left.collect::<Vec<_>>(), ["disk0.qcow2"]);
        }
        Err(disk::DiskError::Kept { overlay, .. }) => {
            open(&overlay).expect("the overlay");
            check_log(scratch, &overlay, least);
        }
        Err(error) => panic!("{error}"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What has a checkpoint's name is whole; whether there is one.
fn is_whole(folder: &Path) -> bool {
    if !folder.exists() {
        return false;
    }
    let checkpoint = Checkpoint::open(folder).expect("a whole checkpoint");
    checkpoint.verify(&mut || ()).expect("a whole checkpoint");
    true
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn killed_at_any_moment_of_a_checkpoint_nothing_is_lost() {
    let scratch = Scratch::new();
    let (base, mut before, mut whole) = base(&scratch);
    before += 1;
    let mut random = Random(0x5eed_1234);
    let count = trials(60);
    let (mut there, mut cancelled) = (0, 0);
    for trial in 0..count {
        let disks = scratch.path(&format!("d{trial}"));
        let (image, folder) = (disks.join("disk0.qcow2"), disks.join("c"));
        let vm = restore(&scratch, "vm", &base, &disks);
        let mut words = vec!["checkpoint", "vm", text(&folder)];
        if random.below(2) == 0 {
            words.push("--keep-parent");
        }
        if random.below(3) == 0 {
            words.extend(["--incremental-from", text(&base)]);
        }
        if random.below(3) == 0 {
            words.extend(["--cow-limit", "1M"]);
        }
        let begin = Instant::now();
        let child = verb(&scratch, &words);
        std::thread::sleep(moment(&mut random, whole));
        if random.below(4) == 0 {
            // Given up at a random moment, it leaves a VM that goes on.
            let (was, _) = end(verb(&scratch, &["checkpoint", "--cancel", "vm"]));
            cancelled += u32::from(was);
            end(child);
            let now = said(&vm.console()).map_or(0, |n| n + 3);
            vm.wait_for(&format!("W {now}\r"), LONG);
        } else if random.below(8) == 0 {
            assert!(end(child).0);
            whole = (whole + begin.elapsed()) / 2;
        } else {
            vm.signal(Signal::KILL);
            end(child);
        }
        let least = kill(vm).unwrap_or(0).max(before - 1);
        there += u32::from(is_whole(&folder));
        check_image(&scratch, &image, least, &mut random);
        fs::remove_dir_all(&disks).unwrap();
    }
    println!("{count} trials: {there} whole checkpoints, {cancelled} cancelled");
    assert!(count < 20 || there > 0 && there < count, "moments are badly chosen");
}

/// A chain of three checkpoints of a writer in `chain`, and what is restored from the topmost.
fn chain(scratch: &Scratch) -> (PathBuf, Contents) {
    let image = images::create(scratch, "chain.qcow2", "qcow2", DISK);
    let vm = start(scratch, "chain", &image);
    let chain = scratch.path("chain");
    fs::create_dir(&chain).unwrap();
    let mut below: Option<PathBuf> = None;
    for name in ["c0", "c1", "c2"] {
        let folder = chain.join(name);
        let mut words = vec!["checkpoint", "chain", text(&folder)];
        if let Some(below) = &below {
            words.extend(["--incremental-from", text(below)]);
        }
        let (good, why) = end(verb(scratch, &words));
        assert!(good, "{why}");
        below = Some(folder);
    }
    kill(vm);
    let contents = contents(&chain.join("c2"));
    (chain, contents)
}

/// Hashes of memory and of all other state.
type Contents = Vec<(String, u128)>;

fn contents(folder: &Path) -> Contents {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    checkpoint.verify(&mut || ()).expect("a whole checkpoint");
    let mut restored = checkpoint.restore().expect("a machine");
    restored.machine.section_hashes()
}

fn copy_tree(from: &Path, to: &Path) {
    tool("cp", &["-a", "--sparse=always", text(from), text(to)]);
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn killed_at_any_moment_of_a_merge_the_chain_is_what_it_was() {
    let scratch = Scratch::new();
    let (chain, expected) = chain(&scratch);
    let mut random = Random(0x00c4_a123);
    let count = trials(25);
    let (mut whole, mut alone) = (Duration::from_millis(500), 0);
    for trial in 0..count {
        let copy = scratch.path("copy");
        copy_tree(&chain, &copy);
        let top = copy.join("c2");
        let what = ["merge", "prune"][random.below(2) as usize];
        let begin = Instant::now();
        let mut child = verb(&scratch, &["chain", what, text(&top)]);
        if trial % 8 == 0 {
            assert!(child.wait().unwrap().success());
            whole = begin.elapsed();
        } else {
            std::thread::sleep(moment(&mut random, whole));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(contents(&top) == expected, "trial {trial}: {what}");
        let stands_alone = Manifest::read(&top).unwrap().parent.is_none();
        alone += u32::from(stands_alone);
        // It can be done again, and those below it are whole or gone.
        let (good, why) = end(verb(&scratch, &["chain", "prune", text(&top)]));
        assert!(good, "{why}");
        assert!(contents(&top) == expected);
        for below in ["c0", "c1"].map(|name| copy.join(name)) {
            if below.join("manifest.json").exists() {
                is_whole(&below);
            }
        }
        // What a killed prune had not come to is done by the next.
        if what == "prune" {
            assert_eq!(names(&copy), ["c2"], "trial {trial}");
            assert!(!top.join("pruning.json").exists());
        }
        fs::remove_dir_all(&copy).unwrap();
    }
    println!("{count} trials: {alone} chains were merged");
    assert!(count < 20 || alone > 0 && alone < count, "moments are badly chosen");
}

/// A file system of `size` bytes in memory, at the folder `at`.
fn small_file_system(at: &Path, size: u64) {
    fs::create_dir_all(at).unwrap();
    tool("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", text(at)]);
}

/// Needs a mount name space: a tmpfs is the disk that is full.
#[test]
#[ignore = "slow, root or user name spaces: cargo xtask test --slow"]
fn full_disk_at_any_moment_costs_the_checkpoint_and_nothing_else() {
    if !inside_namespace("full_disk_at_any_moment_costs_the_checkpoint_and_nothing_else") {
        return;
    }
    let scratch = Scratch::new();
    let (base, before, _) = base(&scratch);
    let (chain, expected) = chain(&scratch);
    let mut random = Random(0xf011_d15c);
    let count = trials(15);
    let (mut failed, mut starved) = (0, 0);
    for trial in 0..count {
        let small = scratch.path("small");
        match trial % 3 {
            0 => failed += u32::from(full_folder(&scratch, &base, before, &small, &mut random)),
            1 => starved += u32::from(full_image(&scratch, &base, before, &small, &mut random)),
            _ => failed += u32::from(full_merge(&scratch, &chain, &expected, &small, &mut random)),
        }
        tool("umount", &[text(&small)]);
    }
    eprintln!("{count} trials on full disks: {failed} refused, {starved} guests without room");
    assert!(count < 15 || failed > 0 && starved > 0, "sizes are badly chosen");
}

/// There may be no room for the checkpoint; whether there was none.
fn full_folder(
    scratch: &Scratch,
    base: &Path,
    before: u64,
    small: &Path,
    random: &mut Random,
) -> bool {
    small_file_system(small, random.below(40 << 20) + 4096);
    let disks = scratch.path("disks");
    let (image, folder) = (disks.join("disk0.qcow2"), small.join("c"));
    let vm = restore(scratch, "vm", base, &disks);
    let keep = ["--keep-parent", "--copy-disk"][random.below(2) as usize];
    let limit = ["64K", "256M"][random.below(2) as usize];
    let words = ["checkpoint", "vm", text(&folder), keep, "--cow-limit", limit];
    let (good, why) = end(verb(scratch, &words));
    let now = said(&vm.console()).map_or(0, |n| n + 2);
    vm.wait_for(&format!("W {now}\r"), LONG);
    let least = kill(vm).unwrap_or(before);
    if good {
        is_whole(&folder);
    } else {
        assert!(why.contains("No space left"), "{why}");
        assert_eq!(names(small), Vec::<String>::new());
    }
    check_image(scratch, &image, least, random);
    fs::remove_dir_all(disks).unwrap();
    !good
}

/// There may be no room for the overlay, nor for committing it; whether the guest ran out of room.
fn full_image(
    scratch: &Scratch,
    base: &Path,
    before: u64,
    small: &Path,
    random: &mut Random,
) -> bool {
    small_file_system(small, 64 << 20);
    let resize = |size: u64| {
        tool("mount", &["-o", &format!("remount,size={size}"), text(small)]);
    };
    let (image, folder) = (small.join("disk0.qcow2"), scratch.path("c"));
    let vm = restore(scratch, "vm", base, small);
    let free = rustix::fs::statvfs(small).unwrap();
    let used = (free.f_blocks - free.f_bavail) * 4096;
    resize(used + random.below(768 << 10));
    let (good, why) = end(verb(scratch, &["checkpoint", "vm", text(&folder)]));
    assert!(good || why.contains("No space left"), "{why}");
    std::thread::sleep(Duration::from_millis(random.below(300)));
    let least = kill(vm).unwrap_or(before);
    let full = rustix::fs::statvfs(small).unwrap().f_bavail < 16;
    check_log(scratch, &newest(&image), least);
    resize(64 << 20);
    check_image(scratch, &image, least, random);
    // What has the name is whole, even if its disk could not be committed.
    if is_whole(&folder) {
        assert!(good || why.contains("the checkpoint is there"), "{why}");
        fs::remove_dir_all(folder).unwrap();
    }
    full
}

/// There may be no room for the merged checkpoint; whether there was none.
fn full_merge(
    scratch: &Scratch,
    chain: &Path,
    expected: &Contents,
    small: &Path,
    random: &mut Random,
) -> bool {
    let used = tool("du", &["-sk", text(chain)]);
    let used = used.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10;
    small_file_system(small, used + (1 << 20) + random.below(used));
    let copy = small.join("chain");
    copy_tree(chain, &copy);
    let top = copy.join("c2");
    let (good, why) = end(verb(scratch, &["chain", "merge", text(&top)]));
    assert!(good || why.contains("No space left"), "{why}");
    assert_eq!(names(&copy).len(), 3, "{:?}", names(&copy));
    assert!(contents(&top) == *expected);
    !good
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn every_checkpoint_of_a_writing_guest_has_the_disk_its_memory_knows() {
    let count = trials(100).min(200);
    let scratch = Scratch::new();
    let mut image = images::create(&scratch, "d.qcow2", "qcow2", DISK);
    let vm = start(&scratch, "vm", &image);
    for number in 0..count {
        let folder = scratch.path(&format!("c{number}"));
        let keep = number % 8 == 7;
        let before = said(&vm.console()).expect("a record");
        let mut words = vec!["checkpoint", "vm", text(&folder)];
        if keep {
            words.push("--keep-parent");
        }
        let (good, why) = end(verb(&scratch, &words));
        assert!(good, "{why}");
        let kept = Manifest::read(&folder).unwrap().disks.remove(0);
        check_log(&scratch, &folder.join(&kept.path), before);
        if keep {
            image = newest(&image);
        }
        // Restored, the guest finds the disk that it left, and goes on writing the log.
        if number % 4 == 0 {
            let disks = scratch.path("restored");
            let restored = restore(&scratch, "r", &folder, &disks);
            restored.wait_for("\r\nW ", LONG);
            let goes_on = kill(restored).expect("a record");
            assert!(goes_on >= before, "goes on at {goes_on}, {before} was durable");
            check_log(&scratch, &disks.join("disk0.qcow2"), goes_on);
            fs::remove_dir_all(&disks).unwrap();
        }
        fs::remove_dir_all(&folder).unwrap();
    }
    let vm_said = kill(vm).expect("a record");
    check_log(&scratch, &newest(&image), vm_said);
    println!("{count} checkpoints, {vm_said} records");
}
