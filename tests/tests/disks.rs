//! A journalled disk over boots that end by power-off, raw and qcow2, and images over images.

#![forbid(unsafe_code)]

use std::time::Duration;

use whole::disk_boots::{boot, boots_leave_a_clean_disk};
use whole::doppel::Doppel;
use whole::images;
use whole::scratch::{Scratch, sha256, text, tool};

const RUN_TIME_MAX: Duration = Duration::from_secs(300);

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn two_boots_leave_a_raw_disk_clean() {
    boots_leave_a_clean_disk("raw", 2);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn a_chain_of_overlays_is_written_at_its_top_alone() {
    let scratch = Scratch::new();
    let base = images::create(&scratch, "base.raw", "raw", "128M");
    assert!(boot(&scratch, &base, "raw").contains("boots=1"));
    let middle = images::overlay(&scratch, "middle.qcow2", &base, "raw");
    assert!(boot(&scratch, &middle, "qcow2").contains("boots=2"));
    let top = images::overlay(&scratch, "top.qcow2", &middle, "qcow2");
    let before = [sha256(&base), sha256(&middle)];
    assert!(boot(&scratch, &top, "qcow2").contains("boots=3"));
    assert_eq!([sha256(&base), sha256(&middle)], before);
    for image in [&middle, &top] {
        images::check_qcow2(image);
        images::check_ext4(&scratch, image, "qcow2");
    }
    tool("qemu-img", &["commit", "-q", text(&top)]);
    assert!(boot(&scratch, &middle, "qcow2").contains("boots=4"));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn two_guests_share_a_disk_they_only_read() {
    let scratch = Scratch::new();
    let disk = scratch.write("shared.raw", whole::net::noise(8 << 20, 11));
    let sum = sha256(&disk);
    let start = |name: &str| {
        Doppel::new(&scratch, "run")
            .guest(
                "mini",
                "6.1",
                "quiet doppel.run=sum:sha256sum%20/dev/vda;sleep%205 doppel.run=w:\
                if%20dd%20if=/dev/zero%20of=/dev/vda%20count=1%20conv=fsync;then%20false;fi \
                doppel.end=poweroff",
            )
            .disk(&disk, ",format=raw,readonly")
            .args(&format!("--name {name}"))
            .start()
    };
    let both = [start("one"), start("two")];
    for vm in both {
        let ended = vm.end(RUN_TIME_MAX);
        ended.expect(0);
        assert!(ended.output_of("sum").contains(&sum), "{}", ended.console);
        ended.output_of("w");
    }
    assert_eq!(sha256(&disk), sum);
}
