//! A guest that writes a numbered log to its disk at full speed, and the check of what it wrote.
//!
//! Record n, 4 KiB with its number and a checksum of it, is written with O_DIRECT and made durable
//! before the guest says `W n` on its console. A record that cannot be written is written again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use disk::Marker;

use crate::doppel::{Doppel, Running};
use crate::scratch::Scratch;

/// How long anything may take on a busy host.
pub const LONG: Duration = Duration::from_secs(180);
/// Bytes of a record.
const RECORD: usize = 4096;
/// Size of the disk, for `qemu-img`.
pub const DISK: &str = "64M";

/// The kernel's command line.
const WRITER: &str = "quiet doppel.run=echo%20begins;n=0;while%20:;do%20\
    printf%20%22%25-4095s\\n%22%20%22R%20$n%20$((n*7919%2B13))%20E%22%20|%20\
    dd%20of=/dev/vda%20bs=4096%20count=1%20seek=$((n%2516384))%20iflag=fullblock%20\
    oflag=direct%20conv=notrunc,fsync%202>/dev/null%20%26%26%20\
    echo%20W%20$n%20%26%26%20n=$((n%2B1));done";

/// Starts the guest on a disk, and waits until it writes.
pub fn start(scratch: &Scratch, name: &str, image: &Path) -> Running {
    let vm = Doppel::new(scratch, "run")
        .guest("mini", "6.1", WRITER)
        .args("--memory 96M --name")
        .arg(name)
        .disk(image, "")
        .start();
    vm.wait_for("W 2\r", LONG);
    vm
}

/// Goes on with a writer from a checkpoint, its overlays in `disks`.
pub fn restore(scratch: &Scratch, name: &str, folder: &Path, disks: &Path) -> Running {
    let mut doppel = Doppel::new(scratch, "restore").arg(folder).file("--disks", disks);
    doppel.command().env("XDG_STATE_HOME", scratch.path("state"));
    let vm = doppel.args("--name").arg(name).start();
    vm.wait_for("W ", LONG);
    vm
}

/// The last record that the console says is durable.
pub fn said(console: &str) -> Option<u64> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let mut lines = whole.lines().rev();
    lines.find_map(|line| line.trim().strip_prefix("W ")?.parse().ok())
}

/// Checks that the disk has every record up to `least` that it has room for, in order, and nothing
/// that is not one; the last that it has.
///
/// # Panics
/// When it has not.
pub fn check_log(scratch: &Scratch, image: &Path, least: u64) -> u64 {
    let raw = scratch.path("log.raw");
    let converted = Command::new("qemu-img")
        .args(["convert", "-U", "-O", "raw"])
        .args([image, &raw])
        .output()
        .expect("qemu-img");
    assert!(converted.status.success(), "{converted:?}");
    let bytes = std::fs::read(&raw).expect("what was converted");
    let records: Vec<&[u8]> = bytes.chunks(RECORD).collect();
    let newest = records.iter().filter_map(|record| number(record)).max();
    let last = newest.expect("a record");
    let slots = records.len() as u64;
    for (slot, record) in (0u64..).zip(&records) {
        if slot > last {
            assert!(record.iter().all(|byte| *byte == 0), "record {slot} after the last, {last}");
            continue;
        }
        // Full, the log begins again at the front.
        let n = last - (last - slot) % slots;
        let text = String::from_utf8_lossy(record);
        assert_eq!(text.trim_end(), format!("R {n} {} E", n * 7919 + 13), "record {n}");
    }
    assert!(last >= least, "{image:?} ends at {last}, {least} was durable");
    last
}

/// The number that a record says it has.
fn number(record: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(record).ok()?;
    text.strip_prefix("R ")?.split(' ').next()?.parse().ok()
}

/// The image that has the newest data, by the markers.
///
/// # Panics
/// When a marker is damaged.
pub fn newest(image: &Path) -> PathBuf {
    let mut path = image.to_owned();
    while let Some(marker) = Marker::read(&path).expect("a sound marker") {
        if !marker.overlay.exists() {
            break;
        }
        path = marker.overlay;
    }
    path
}
