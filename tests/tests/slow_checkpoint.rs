//! Checkpoints under stress: the monitor killed at random moments, the live disk and every
//! checkpoint of a guest that writes at full speed (C8, C9).
//!
//! The long form, without the variable there are 25 trials:
//! `DOPPEL_TRIALS=500 cargo test --release -p whole --test slow_checkpoint -- --ignored`

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use whole::doppel::{Doppel, Running, program};
use whole::images;
use whole::scratch::Scratch;

const LONG: Duration = Duration::from_secs(180);
/// Bytes of a record of the guest's log.
const RECORD: u64 = 4096;
const DISK: u64 = 64 << 20;

/// A guest that writes a numbered log to its disk: record n, a sector with its number and a
/// checksum of it, is durable before the guest says `n` on its console.
const WRITER: &str = "quiet doppel.run=echo%20begins;n=0;while%20:;do%20\
    printf%20%22%25-4095s\\n%22%20%22R%20$n%20$((n*7919%2B13))%20E%22%20|%20\
    dd%20of=/dev/vda%20bs=4096%20count=1%20seek=$((n%2516384))%20iflag=fullblock%20\
    oflag=direct%20conv=notrunc,fsync%202>/dev/null;\
    echo%20W%20$n;n=$((n%2B1));done";

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn trials() -> u32 {
    std::env::var("DOPPEL_TRIALS").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

fn start(scratch: &Scratch, name: &str, image: &Path) -> Running {
    let vm = Doppel::new(scratch, "run")
        .guest("mini", "6.1", WRITER)
        .args("--memory 96M --name")
        .arg(name)
        .disk(image, "")
        .start();
    vm.wait_for("W 2\r", LONG);
    vm
}

/// The last record that the console says is durable.
fn said(console: &str) -> u64 {
    let lines = console.lines().rev();
    let mut numbers = lines.filter_map(|line| line.trim().strip_prefix("W ")?.parse().ok());
    numbers.next().unwrap_or(0)
}

/// The disk has every record up to `least`, in order, and nothing that is not one.
fn check_log(scratch: &Scratch, image: &Path, least: u64) -> u64 {
    let raw = scratch.path("log.raw");
    let converted = Command::new("qemu-img")
        .args(["convert", "-U", "-O", "raw"])
        .args([image, &raw])
        .output()
        .expect("qemu-img");
    assert!(converted.status.success(), "{converted:?}");
    let bytes = std::fs::read(&raw).unwrap();
    let mut last = None;
    for (n, record) in (0u64..).zip(bytes.chunks(RECORD as usize)) {
        let text = String::from_utf8_lossy(record);
        if record.iter().all(|byte| *byte == 0) {
            break;
        }
        let expected = format!("R {n} {} E", n * 7919 + 13);
        assert_eq!(text.trim_end(), expected, "record {n}");
        last = Some(n);
    }
    let last = last.expect("a record");
    assert!(last >= least, "{image:?} ends at {last}, {least} was durable");
    last
}

/// `doppel checkpoint` in the background.
fn checkpoint(scratch: &Scratch, name: &str, folder: &Path, more: &[&str]) -> std::process::Child {
    Command::new(program())
        .arg("checkpoint")
        .arg(name)
        .arg(folder)
        .args(more)
        .env("XDG_RUNTIME_DIR", scratch.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("doppel starts")
}

/// The image that has the newest data, by the markers.
fn newest(image: &Path) -> std::path::PathBuf {
    let mut path = image.to_owned();
    while let Some(marker) = disk::Marker::read(&path).expect("a sound marker") {
        if !marker.overlay.exists() {
            break;
        }
        path = marker.overlay;
    }
    path
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn killed_at_any_moment_of_a_checkpoint_nothing_is_lost() {
    let mut random = Random(0x5eed_1234);
    let (mut whole, mut none) = (0, 0);
    for trial in 0..trials() {
        let scratch = Scratch::new();
        let image = images::create(&scratch, "d.qcow2", "qcow2", "64M");
        let vm = start(&scratch, "vm", &image);
        let folder = scratch.path("c");
        let keep = random.below(2) == 0;
        let more: &[&str] = if keep { &["--keep-parent"] } else { &[] };
        let mut child = checkpoint(&scratch, "vm", &folder, more);
        std::thread::sleep(Duration::from_micros(random.below(400_000)));
        vm.signal(Signal::KILL);
        let ended = vm.end(LONG);
        let _ = child.wait();
        let durable = said(&ended.console);
        let top = newest(&image);
        check_log(&scratch, &top, durable);
        // Opening for writing finishes what was begun, or refuses because a checkpoint keeps it.
        match disk::open(disk::DiskSpec { path: image.clone(), format: None, read_only: false }) {
            Ok(opened) => {
                drop(opened);
                check_log(&scratch, &image, durable);
                images::check_qcow2(&image);
            }
            Err(disk::DiskError::Kept { overlay, .. }) => {
                drop(disk::open(disk::DiskSpec { path: overlay, format: None, read_only: false }));
            }
            Err(error) => panic!("trial {trial}: {error}"),
        }
        // What has the checkpoint's name is whole.
        if folder.exists() {
            whole += 1;
            let checkpoint = checkpoint::Checkpoint::open(&folder).expect("a whole checkpoint");
            checkpoint.verify(&mut || ()).expect("a whole checkpoint");
        } else {
            none += 1;
        }
    }
    println!("{} trials: {whole} whole checkpoints, {none} none", trials());
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn every_checkpoint_of_a_writing_guest_has_the_disk_its_memory_knows() {
    let count = trials().min(200);
    let scratch = Scratch::new();
    let mut image = images::create(&scratch, "d.qcow2", "qcow2", "64M");
    let vm = start(&scratch, "vm", &image);
    assert_eq!(DISK / RECORD, 16384);
    for number in 0..count {
        let folder = scratch.path(&format!("c{number}"));
        let keep = number % 8 == 7;
        let before = said(&vm.console());
        let more: &[&str] = if keep { &["--keep-parent"] } else { &[] };
        let child = checkpoint(&scratch, "vm", &folder, more);
        let output = child.wait_with_output().expect("doppel");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let kept = checkpoint::Manifest::read(&folder).unwrap().disks.remove(0);
        let disk = folder.join(&kept.path);
        check_log(&scratch, &disk, before);
        if keep {
            image = newest(&image);
        }
        // Restored, the guest finds the disk that it left, and goes on writing the log.
        if number % 4 == 0 {
            let mut doppel = Doppel::new(&scratch, "restore").arg(&folder);
            doppel.command().env("XDG_STATE_HOME", scratch.path("state"));
            let restored = doppel.args("--copy --name r --discard").start();
            restored.wait_for("W ", LONG);
            let first = said(&restored.console());
            assert!(first >= before, "goes on at {first}, {before} was durable");
            restored.wait_for(&format!("W {}\r", first + 3), LONG);
            restored.signal(Signal::KILL);
            restored.end(LONG);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
    let vm_said = said(&vm.console());
    vm.signal(Signal::KILL);
    vm.end(LONG);
    check_log(&scratch, &newest(&image), vm_said);
    println!("{count} checkpoints, {vm_said} records");
}
