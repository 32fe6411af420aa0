//! Debian boots to its login prompt, does some work, and leaves its disk in order when asked to.

use crate::debian::{BOOT, Debian};
use crate::dmesg::complaints;

const JOB: &str = r#"
echo "state $(systemctl is-system-running --wait)"
systemctl --failed --no-legend --plain
echo "root $(findmnt -nro FSTYPE,SOURCE /)"
python3 -c 'import json, sys; print("python", json.loads("[1, 2]")[1] + 1)'
echo 'SELECT "sqlite " || (6 * 7);' | sqlite3
echo "openssl $(printf abc | openssl sha256 -r | cut -c1-16)"
echo kept >/var/tmp/kept
dmesg --raw | sed 's/^/LOG /'
"#;

/// Does all that on an engine, with at most so many MiB of the monitor's beside the guest's.
///
/// # Panics
/// When something is wrong.
pub fn boots_works_and_powers_off(engine: &str, monitor_max: u64) {
    let debian = Debian::new("6.1");
    // In virtual time: on a busy host the engine is slower than systemd's patience.
    let vm = debian
        .with_job(&[("job", JOB.as_bytes())], false)
        .args(&format!("--seed 1 --grace 20min --engine {engine}"))
        .start();
    vm.wait_for("doppel login:", BOOT);
    println!("login prompt after {:.0?}", vm.elapsed());
    vm.wait_for("DOPPEL-BEGIN job", BOOT);
    vm.wait_for("DOPPEL-END job", BOOT);
    let memory = vm.memory();
    // The power button: systemd listens to it.
    vm.signal(rustix::process::Signal::TERM);
    let ended = vm.end(BOOT);
    debian.check(&ended);
    let output = ended.output_of("job");
    for wanted in
        ["state running", "root ext4 /dev/vda", "python 3", "sqlite 42", "openssl ba7816bf8f01cfea"]
    {
        assert!(output.lines().any(|line| line == wanted), "no {wanted:?} in {output}");
    }
    let log: String = output
        .lines()
        .filter_map(|line| line.strip_prefix("LOG "))
        .fold(String::new(), |log, line| log + line + "\n");
    assert_eq!(complaints(&log), [""; 0]);
    println!("powered off after {:.0?}; monitor {} MiB", ended.elapsed, memory.monitor >> 20);
    assert!(memory.monitor < monitor_max << 20, "{memory:?}");
}
