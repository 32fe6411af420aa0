//! The same seed makes the same run: at a hundred points, and whatever the engine's settings.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use whole::doppel::Doppel;
use whole::images;
use whole::scratch::Scratch;

const RUN_TIME_MAX: Duration = Duration::from_secs(400);
/// Least number of hashes in a log.
const POINTS_MIN: usize = 100;
/// A boot of the mini guest to power-off has about 140 million branches.
const EVERY: u64 = 1_200_000;
const WORK: &str = "quiet doppel.run=work:busybox%20sha256sum%20/bin/busybox%20&&%20\
    head%20-c%2065536%20/dev/urandom%20|%20md5sum doppel.end=poweroff";

struct Lab {
    scratch: Scratch,
}

impl Lab {
    /// A seeded run with hashes each `every` branches; its log and console.
    fn run(&self, name: &str, every: u64, more: &str) -> (Vec<String>, String) {
        let log: PathBuf = self.scratch.path(name);
        let disk = images::create(&self.scratch, "d.raw", "raw", "16M");
        let ended = Doppel::new(&self.scratch, "run")
            .guest("mini", "6.1", WORK)
            .disk(&disk, ",format=raw")
            .args(&format!("--seed 7 --hash-every {every} {more}"))
            .file("--hash-log", &log)
            .run(RUN_TIME_MAX);
        ended.expect(0);
        let text = std::fs::read_to_string(log).expect("a log of hashes");
        (text.lines().map(str::to_owned).collect(), ended.console)
    }
}

/// The first line in which two logs differ, if they do.
fn difference<'a>(a: &'a [String], b: &'a [String]) -> Option<(usize, &'a str, &'a str)> {
    let at = (0..a.len().max(b.len())).find(|&at| a.get(at) != b.get(at))?;
    let line = |log: &'a [String]| log.get(at).map_or("nothing", String::as_str);
    Some((at, line(a), line(b)))
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn same_seed_gives_the_same_hashes_at_a_hundred_points() {
    let lab = Lab { scratch: Scratch::new() };
    let (first, console) = lab.run("first", EVERY, "");
    assert!(first.len() > POINTS_MIN, "only {} points", first.len());
    assert!(console.contains("DOPPEL-END work 0"), "{console}");
    let mut hashes: Vec<_> = first.iter().map(|line| line.rsplit(' ').next()).collect();
    hashes.dedup();
    assert_eq!(hashes.len(), first.len(), "neighbouring points have the same hash");
    let (second, again) = lab.run("second", EVERY, "");
    assert_eq!(difference(&first, &second), None);
    assert_eq!(console, again);
    println!("{} points agree", first.len());
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn engine_settings_do_not_change_the_run() {
    let lab = Lab { scratch: Scratch::new() };
    let (reference, console) = lab.run("reference", 40 * EVERY, "--warp");
    let last = reference.last().expect("a last line");
    // Other quanta: hashes and stops cut them elsewhere. Waiting or not when the guest is idle.
    for (name, every, more) in [
        ("odd", 10_000_019, "--warp"),
        ("waits", 30 * EVERY, "--name another"),
        // The other engine altogether.
        ("interp", 50 * EVERY, "--warp --engine interp"),
        ("elsewhere", 70 * EVERY, "--warp --serial2 pty --grace 1s"),
    ] {
        let (log, other) = lab.run(name, every, more);
        assert_eq!(log.last(), Some(last), "{name}");
        assert_eq!(other, console, "{name}");
    }
    let at = 2 * 40 * EVERY;
    let (stopped, _) = lab.run("stopped", 9_999_991, &format!("--warp --stop-at {at}"));
    let stopped = stopped.last().and_then(|line| line.strip_prefix("end "));
    assert_eq!(stopped, Some(reference[1].as_str()));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn another_seed_is_another_run() {
    let scratch = Scratch::new();
    let hash = |seed: u64| {
        let log = scratch.path(&format!("{seed}"));
        Doppel::new(&scratch, "run")
            .guest("mini", "6.1", WORK)
            .args(&format!("--seed {seed} --warp --hash-every 1000000 --stop-at 3000000"))
            .file("--hash-log", &log)
            .run(RUN_TIME_MAX)
            .expect(0);
        std::fs::read_to_string(log).expect("a log of hashes")
    };
    assert_ne!(hash(1), hash(2));
}
