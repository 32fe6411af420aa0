//! What the host alone does to a program that never stops: the largest hole between two of its
//! looks at the clock, undisturbed and beside a writer.
//!
//! A host that is itself virtual may take its CPUs away when they and its disk are busy at once;
//! no monitor on it can do better than this.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::spawn;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// What a checkpoint of a guest of 512 MiB with 256 MB of data writes, in pieces of 64 KiB.
const PIECES: &str = "7000";

/// Largest hole in `time` without anything else, and beside a writer of [`PIECES`] into `folder`.
///
/// # Errors
/// When nothing can be written there.
pub fn measure(time: Duration, folder: &Path) -> Result<(Duration, Duration)> {
    let done = Arc::new(AtomicBool::new(false));
    let watcher = |done: &Arc<AtomicBool>| {
        let done = Arc::clone(done);
        spawn(move || largest_hole(|| done.load(Ordering::Relaxed)))
    };
    let undisturbed = watcher(&done);
    std::thread::sleep(time);
    done.store(true, Ordering::Relaxed);
    let undisturbed = undisturbed.join().expect("a loop");
    done.store(false, Ordering::Relaxed);
    let beside = watcher(&done);
    let file = folder.join(format!("doppel-holes-{}", std::process::id()));
    let written = write(&file);
    done.store(true, Ordering::Relaxed);
    let beside = beside.join().expect("a loop");
    let _ = std::fs::remove_file(file);
    written.map(|()| (undisturbed, beside))
}

/// As the saver writes: with less weight than others, and to the disk at last.
fn write(file: &Path) -> Result<()> {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "dd", "if=/dev/zero", "bs=64K", "conv=fsync", "status=none"]);
    command.arg(format!("count={PIECES}")).arg(format!("of={}", file.display()));
    let status = command.status().context("dd")?;
    ensure!(status.success(), "{}: cannot be written", file.display());
    Ok(())
}

fn largest_hole(done: impl Fn() -> bool) -> Duration {
    let (mut last, mut largest) = (Instant::now(), Duration::ZERO);
    while !done() {
        let now = Instant::now();
        largest = largest.max(now - last);
        last = now;
    }
    largest
}
