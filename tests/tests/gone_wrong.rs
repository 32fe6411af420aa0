//! Guests that end badly or mean harm: an exit status each, no panic, no hang, no damage.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use whole::doppel::{Doppel, SHORT};
use whole::images;
use whole::scratch::{Scratch, sha256, text, tool};

const RUN_TIME_MAX: Duration = Duration::from_secs(180);
/// Words of a run of ours that went wrong.
const DEFECT: &[&str] = &["panicked", "defect", "RUST_BACKTRACE"];

fn linux(scratch: &Scratch, cmdline: &str, more: &str) -> whole::doppel::Ended {
    let run = Doppel::new(scratch, "run").guest("mini", "6.1", &format!("quiet {cmdline}"));
    run.args(more).run(RUN_TIME_MAX)
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn linux_panic_reset_and_no_init_have_their_statuses() {
    let scratch = Scratch::new();
    let ended = linux(&scratch, "doppel.end=panic", "");
    ended.expect(10);
    assert!(ended.console.contains("Kernel panic - not syncing: sysrq"), "{}", ended.console);
    linux(&scratch, "doppel.end=reboot", "--no-reboot").expect(6);
    linux(&scratch, "doppel.end=poweroff", "").expect(0);
    // An initramfs that is noise, and no root file system: the kernel panics before it has a driver
    // to say so by, and resets, since it is told to.
    let noise = scratch.write("noise", whole::net::noise(1 << 20, 9));
    let kernel = whole::guest_cache().join("kernel-6.1/vmlinuz");
    let run = Doppel::new(&scratch, "run").file("--kernel", &kernel).file("--initrd", &noise);
    let run = run.arg("--cmdline").arg("console=ttyS0 quiet panic=-1").arg("--no-reboot");
    let ended = run.run(RUN_TIME_MAX);
    assert!(ended.console.contains("Unable to mount root"), "{}", ended.console);
    ended.expect(6);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn linux_reboots_into_itself() {
    let scratch = Scratch::new();
    let vm = Doppel::new(&scratch, "run").guest("mini", "6.1", "quiet doppel.end=reboot").start();
    vm.wait_for("DOPPEL-INIT", RUN_TIME_MAX);
    let first = vm.console().len();
    vm.wait_from(first, "DOPPEL-INIT", RUN_TIME_MAX);
    vm.kill_off().expect(12);
}

/// Compiles a kernel of `tests/kernels`.
fn kernel(scratch: &Scratch, name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = here.join("arch/kernel.ld");
    let source = here.join(format!("tests/kernels/{name}.c"));
    let kernel = scratch.path(&format!("{name}.elf"));
    let link = format!("-Wl,-T,{},--build-id=none,-z,max-page-size=4096", text(&script));
    let mut arguments: Vec<&str> = "-m32 -O1 -std=gnu11 -ffreestanding -fno-builtin -fno-pic \
        -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none \
        -mgeneral-regs-only -Wall -Wextra -Werror -nostdlib -static -no-pie"
        .split_whitespace()
        .collect();
    arguments.extend([&link, "-Wl,--no-warn-rwx-segments", text(&source), "-o", text(&kernel)]);
    tool("gcc", &arguments);
    kernel
}

#[test]
#[ignore = "needs a release build: cargo xtask test"]
fn guests_that_misprogram_every_virtio_field_harm_nothing() {
    let scratch = Scratch::new();
    let kernel = kernel(&scratch, "virtio_abuse");
    let disk = images::create(&scratch, "d.qcow2", "qcow2", "16M");
    let fixed = scratch.write("fixed.raw", whole::net::noise(16 << 20, 3));
    let before = sha256(&fixed);
    for seed in 1..=12 {
        let ended = Doppel::new(&scratch, "run")
            .file("--kernel", &kernel)
            .disk(&disk, "")
            .disk(&fixed, ",format=raw,readonly")
            .args(&format!("--memory 32M --debug-exit 0xf4 --net user --hvc none --seed {seed}"))
            .args(&format!("--cmdline seed={seed}"))
            .run(RUN_TIME_MAX);
        // Five devices: two disks, a card, a console, a source of random numbers.
        assert_eq!(ended.code(), Some(5 << 1 | 1), "seed {seed}: {}", ended.stderr);
        assert_eq!(ended.console, "ABUSE\nDONE\n", "seed {seed}");
        assert!(!DEFECT.iter().any(|word| ended.stderr.contains(word)), "{}", ended.stderr);
        // A guest must not fill its host's logs.
        assert!(ended.stderr.lines().count() < 20, "seed {seed}: {}", ended.stderr);
        images::check_qcow2(&disk);
    }
    assert_eq!(sha256(&fixed), before, "a read-only disk was changed");
}

#[test]
#[ignore = "needs a release build: cargo xtask test"]
fn guests_that_run_wild_end_or_can_be_ended() {
    let scratch = Scratch::new();
    let kernel = kernel(&scratch, "wild");
    let disk = scratch.write("fixed.raw", whole::net::noise(1 << 20, 3));
    let before = sha256(&disk);
    let mut count = [0; 3];
    for seed in 1..=40 {
        let vm = Doppel::new(&scratch, "run")
            .file("--kernel", &kernel)
            .disk(&disk, ",format=raw,readonly")
            .args(&format!("--memory 32M --seed {seed} --warp --stop-at 3000000 --no-reboot"))
            .args(&format!("--grace 100ms --cmdline seed={seed} --net user"))
            .start();
        vm.wait_for("WILD", SHORT);
        let (start, id) = (Instant::now(), vm.id());
        let is_running = || Path::new(&format!("/proc/{id}/fd/0")).exists();
        while is_running() && start.elapsed() < Duration::from_secs(4) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that has halted for good, or is still at it.
        if is_running() {
            vm.signal(Signal::TERM);
        }
        // Long: on a host with a hundred times more work than CPUs twenty seconds were too short.
        let ended = vm.end(3 * SHORT);
        match ended.code() {
            Some(0) => count[0] += 1,
            Some(6 | 8) => count[1] += 1,
            Some(12) => count[2] += 1,
            _ => panic!("seed {seed}: {:?} {}", ended.status, ended.stderr),
        }
        assert!(!DEFECT.iter().any(|word| ended.stderr.contains(word)), "{}", ended.stderr);
    }
    assert_eq!(sha256(&disk), before, "a read-only disk was changed");
    let [stopped, fell, halted] = count;
    println!("stopped at the limit {stopped}, fell {fell}, halted for good {halted}");
}
