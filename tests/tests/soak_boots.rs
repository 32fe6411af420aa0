//! Debian boots again and again on one disk, with a clean end and a clean disk each time.

#![forbid(unsafe_code)]

use std::fs;

use whole::debian::{BOOT, Debian};
use whole::scratch::tool;
use whole::soak::length;

/// Checks what earlier boots wrote, writes more, and says how many there were.
const JOB: &str = "mkdir -p /var/tmp/soak && cd /var/tmp/soak && \
    { [ ! -e sums ] || sha256sum -c --quiet sums; } && \
    name=$(date +%s%N) && head -c 262144 /dev/urandom >$name && sha256sum $name >>sums && \
    echo boots=$(wc -l <sums)";

/// A boot on the disk of `debian`; its last hash, where it has a seed.
fn boot(debian: &Debian, number: u64, more: &str) -> Option<String> {
    let job = JOB.replace('%', "%25").replace(' ', "%20").replace('\n', "%0a");
    let doppel = debian.doppel(&format!("quiet doppel.run=job:{job} doppel.end=poweroff"));
    let log = debian.scratch.path("hashes");
    let hashes = format!("--hash-every 100000000 --hash-log {}", log.display());
    let ended = doppel.args(&format!("{more} {hashes}")).run(BOOT);
    debian.check(&ended);
    let said = ended.output_of("job");
    assert_eq!(said.trim(), format!("boots={number}"), "boot {number}");
    let log = fs::read_to_string(log).expect("a log of hashes");
    log.lines().last().map(str::to_owned)
}

/// Boots in live time, as everybody's do, by turns with both kernels.
#[test]
#[ignore = "long: cargo xtask soak"]
fn boots_live() {
    let count = length("boots-live", 1, 20);
    let mut debian = Debian::new("6.1");
    for number in 1..=count {
        debian.kernel = if number % 2 == 1 { "6.1" } else { "backports" };
        boot(&debian, number, "");
    }
    println!("{count} live boots, each ended by power-off, fsck and qemu-img check clean");
}

/// Boots with a seed on two disks: the same all the way.
#[test]
#[ignore = "long: cargo xtask soak"]
fn boots_twice() {
    let count = length("boots", 2, 100);
    let mut pair = [Debian::new("6.1"), Debian::new("6.1")];
    let mut hashes = Vec::new();
    for number in 1..=count {
        pair.iter_mut().for_each(|debian| {
            debian.kernel = if number % 2 == 1 { "6.1" } else { "backports" };
        });
        let ends = std::thread::scope(|scope| {
            let boots = [&pair[0], &pair[1]].map(|debian| {
                scope.spawn(move || boot(debian, number, &format!("--seed {number} --warp")))
            });
            boots.map(|boot| boot.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        assert_eq!(ends[0], ends[1], "boot {number}");
        hashes.push(ends[0].clone().expect("a last hash"));
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len() as u64, count, "two boots were one");
    let disks = [&pair[0], &pair[1]].map(|debian| debian.disk.display().to_string());
    tool("qemu-img", &["compare", "-q", &disks[0], &disks[1]]);
    println!("{count} boots twice the same, each ended by power-off, disks clean");
}
