//! Boots of the mini guest that write to a journalled disk, power off, and leave it to be checked.

use std::path::Path;
use std::time::Duration;

use crate::doppel::Doppel;
use crate::images;
use crate::scratch::Scratch;

const RUN_TIME_MAX: Duration = Duration::from_secs(600);

/// One boot: checks what earlier ones wrote, writes, reads back, powers off. What it said.
pub fn boot(scratch: &Scratch, disk: &Path, format: &str) -> String {
    let ended = Doppel::new(scratch, "run")
        .guest("mini-full", "6.1", "quiet doppel.disk=ext4test doppel.end=poweroff")
        .disk(disk, &format!(",format={format}"))
        .run(RUN_TIME_MAX);
    ended.expect(0).output_of("disk")
}

/// Boots `count` times; checks the image and its file system after each.
///
/// # Panics
/// When anything is wrong with the disk.
pub fn boots_leave_a_clean_disk(format: &str, count: u32) {
    let scratch = Scratch::new();
    let disk = images::create(&scratch, "d", format, "128M");
    for number in 1..=count {
        let said = boot(&scratch, &disk, format);
        assert!(said.contains(&format!("DISK-OK boots={number}\n")), "{said}");
        images::check_ext4(&scratch, &disk, format);
        if format == "qcow2" {
            images::check_qcow2(&disk);
        }
    }
    println!("{count} boots on {format}");
}
