//! Long tests at two lengths, and Debian jobs that are run twice and must be the same run.
//!
//! A length is a number with a name: short unless `DOPPEL_SOAK=full` is set, or what
//! `DOPPEL_SOAK_NAME` says. `cargo xtask soak` sets these.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::debian::{Debian, jobs_disk};
use crate::doppel::{Ended, Running};
use crate::harness::guest_cache;
use crate::scratch::{Scratch, tool};

/// What a kernel prints when it kills a process for want of memory.
const NO_MEMORY: &str = "Out of memory: Killed process";

/// Branches between two hashes of a run.
const HASH_EVERY: u64 = 50_000_000;

/// The length `name` of a test.
///
/// # Panics
/// When the environment has something for it that is no number.
pub fn length(name: &str, short: u64, full: u64) -> u64 {
    let variable = format!("DOPPEL_SOAK_{}", name.to_ascii_uppercase().replace('-', "_"));
    if let Ok(text) = std::env::var(&variable) {
        return text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number"));
    }
    if is_full() { full } else { short }
}

/// Whether the tests are to run at full length.
pub fn is_full() -> bool {
    std::env::var("DOPPEL_SOAK").is_ok_and(|value| value == "full")
}

/// A file that `cargo xtask soak` fetched.
///
/// # Panics
/// When it is not there.
pub fn fetched(name: &str) -> Vec<u8> {
    let path = guest_cache().join("soak").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}; cargo xtask soak fetches it"))
}

/// A job for the Debian guest.
#[derive(Debug)]
pub struct Job<'a> {
    /// What it is called in reports.
    pub name: &'a str,
    /// Files beside the script, on a disk at /mnt.
    pub files: &'a [(&'a str, &'a [u8])],
    /// Lines before the script, such as settings of its variables.
    pub settings: String,
    /// The script.
    pub script: &'a str,
    /// The most that one run may take.
    pub time_max: Duration,
}

impl Job<'_> {
    /// Runs it in two guests at once, from power-on to power-off, with the same seed. Hashes on the
    /// way, the consoles and what is then on the disks must be equal, and the disks in order. What
    /// the job printed.
    ///
    /// # Panics
    /// When it fails or anything differs.
    pub fn twice(&self, watch: impl Fn(&Running) + Sync) -> String {
        let scratch = Scratch::new();
        let script = format!("{}\n{}", self.settings, self.script);
        let files = [&[("job", script.as_bytes())], self.files].concat();
        let jobs = jobs_disk(&scratch, &files);
        let [first, second] = thread::scope(|scope| {
            let runs = [(); 2].map(|()| scope.spawn(|| self.once(&jobs, &watch)));
            runs.map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let name = self.name;
        let differs = (0..).zip(first.hashes.iter().zip(&second.hashes)).find(|(_, (a, b))| a != b);
        assert_eq!(differs, None, "{name}: hashes differ");
        assert_eq!(first.hashes.len(), second.hashes.len(), "{name}: one ended before");
        assert!(first.hashes.len() > 2, "{name}: too short: {:?}", first.hashes);
        assert_eq!(first.ended.console, second.ended.console, "{name}");
        let disks = [&first, &second].map(|run| run.debian.disk.display().to_string());
        tool("qemu-img", &["compare", "-q", &disks[0], &disks[1]]);
        println!(
            "{name}: twice the same: {} hashes, {:.0?} and {:.0?}",
            first.hashes.len(),
            first.ended.elapsed,
            second.ended.elapsed
        );
        first.ended.output_of("job")
    }

    fn once(&self, jobs: &Path, watch: impl Fn(&Running)) -> Run {
        let debian = Debian::new("6.1");
        let log: PathBuf = debian.scratch.path("hashes");
        let doppel = debian
            .with_disk_of_jobs(jobs, "doppel.end=poweroff")
            .args(&format!("--seed 1 --warp --hash-every {HASH_EVERY}"))
            .file("--hash-log", &log);
        let mut vm = doppel.start();
        watch(&vm);
        while vm.is_running() && vm.elapsed() < self.time_max {
            // systemd stops the job with all of its processes then, and the guest is idle for ever.
            assert!(
                !vm.console().contains(NO_MEMORY),
                "{}: the guest ran out of memory",
                self.name
            );
            thread::sleep(Duration::from_secs(1));
        }
        let ended = vm.end(self.time_max);
        debian.check(&ended);
        let text = fs::read_to_string(log).expect("a log of hashes");
        Run { hashes: text.lines().map(str::to_owned).collect(), ended, debian }
    }
}

struct Run {
    hashes: Vec<String>,
    ended: Ended,
    debian: Debian,
}
