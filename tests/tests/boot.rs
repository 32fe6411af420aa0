//! The mini guest boots on both kernels: soon, quietly, and with little memory of the monitor's.

#![forbid(unsafe_code)]

use std::time::Duration;

use whole::dmesg::complaints;
use whole::doppel::Doppel;
use whole::scratch::Scratch;

/// From the start of the process to the first line of init.
const INIT_TIME_MAX: Duration = Duration::from_secs(30);
const RUN_TIME_MAX: Duration = Duration::from_secs(180);
/// Memory of the monitor beside the guest's.
const MONITOR_BYTES_MAX: u64 = 96 << 20;

fn boots_quietly(kernel: &str) {
    let scratch = Scratch::new();
    let vm = Doppel::new(&scratch, "run")
        .guest(
            "mini",
            kernel,
            "quiet doppel.run=dmesg%20-r doppel.run=uname%20-r doppel.end=poweroff",
        )
        .start();
    vm.wait_for("DOPPEL-INIT", RUN_TIME_MAX);
    let (init_time, cpu_time) = (vm.elapsed(), vm.cpu_time());
    let ended = vm.end(RUN_TIME_MAX);
    ended.expect(0);
    let log = ended.output_of("dmesg");
    assert!(log.lines().count() > 100, "that is not the kernel's log: {log}");
    assert_eq!(complaints(&log), [""; 0]);
    let release = ended.output_of("uname");
    assert!(release.contains("-cloud-amd64"), "{release}");
    assert!(!ended.console.contains("DOPPEL-FAIL"), "{}", ended.console);
    println!(
        "mini {kernel}: init after {init_time:.1?} ({cpu_time:.1?} of CPU time), powered off after \
         {:.1?}",
        ended.elapsed
    );
    // On a host that is busy with other things, what counts is the time we had.
    let time = init_time.min(cpu_time.mul_f64(1.1));
    assert!(time <= INIT_TIME_MAX, "init only after {time:.1?}");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn mini_boots_quietly_on_6_1() {
    boots_quietly("6.1");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn mini_boots_quietly_on_backports() {
    boots_quietly("backports");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn monitor_needs_little_memory_beside_the_guests() {
    let scratch = Scratch::new();
    let disk = whole::images::create(&scratch, "d.qcow2", "qcow2", "256M");
    // Much of the guest's memory is used, its disk too, before the monitor's share is taken.
    let work = "doppel.run=fill:dd%20if=/dev/zero%20of=/tmp/f%20bs=1M%20count=200%20&&%20\
        dd%20if=/dev/urandom%20of=/dev/vda%20bs=64k%20count=256 \
        doppel.run=wait:echo%20MEASURE-NOW;sleep%2060";
    let vm = Doppel::new(&scratch, "run")
        .guest("mini", "6.1", &format!("quiet {work}"))
        .disk(&disk, "")
        .args("--net user")
        .start();
    vm.wait_for("MEASURE-NOW\r", RUN_TIME_MAX);
    let memory = vm.memory();
    println!("guest {} MiB, monitor at most {} MiB", memory.guest >> 20, memory.monitor >> 20);
    assert!(memory.guest > 200 << 20, "the guest has not used its memory: {memory:?}");
    assert!(memory.monitor < MONITOR_BYTES_MAX, "{} MiB", memory.monitor >> 20);
    vm.kill_off().expect(12);
    whole::images::check_qcow2(&disk);
}
