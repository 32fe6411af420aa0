//! Bad input around real guests: one clear message, the right exit status, no image touched.
//!
//! The command line itself is tested by the package `cli`; here are real kernels cut short, real
//! images damaged, disks in use by a running guest, networks that are not there.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use whole::doppel::{Doppel, Ended, SHORT, program};
use whole::images;
use whole::scratch::{Scratch, sha256, text, tool};
use whole::{guest_cache, net};

/// Nobody's user and group.
const NOBODY: u32 = 65534;

fn vmlinuz() -> Vec<u8> {
    fs::read(guest_cache().join("kernel-6.1/vmlinuz")).expect("the kernel; cargo xtask guest")
}

/// One line on standard error that begins as all do and has `words` in it, and no output.
#[track_caller]
fn says(what: &str, ended: &Ended, status: i32, words: &[&str]) {
    let Ended { stderr, console, elapsed, .. } = ended;
    assert_eq!(ended.code(), Some(status), "{what}: {:?} {stderr}", ended.status);
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert!(stderr.starts_with("doppel: "), "{what}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{what}: no {word:?} in {stderr}");
    }
    assert_eq!(console, "", "{what}: the guest ran");
    assert!(*elapsed < Duration::from_secs(10), "{what}: refused only after {elapsed:?}");
}

/// Checksums of all files in a folder.
fn sums(scratch: &Scratch) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(scratch.root()).expect("the folder of the test");
    let paths = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
    let mut sums: Vec<_> = paths.map(|path| (path.clone(), sha256(&path))).collect();
    sums.sort();
    sums
}

/// A boot of the mini guest that would power off at once.
fn boot(scratch: &Scratch) -> Doppel {
    Doppel::new(scratch, "run").guest("mini", "6.1", "quiet doppel.end=poweroff")
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn kernels_cut_short_or_of_others_are_refused() {
    let scratch = Scratch::new();
    let whole = vmlinuz();
    let run = |path: &Path| Doppel::new(&scratch, "run").file("--kernel", path).run(SHORT);
    for length in [0x100, 0x230, 0x1000, 100_000, whole.len() / 2, whole.len() - 100_000] {
        let path = scratch.write("cut", &whole[..length]);
        says(&format!("the first {length} bytes"), &run(&path), 2, &["--kernel", "cut"]);
    }
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 4096].fill(0x5a);
    says("damaged", &run(&scratch.write("damaged", damaged)), 2, &["payload is corrupt"]);
    let cpio = guest_cache().join("mini-6.1.cpio");
    says("an initramfs", &run(&cpio), 2, &["mini-6.1.cpio", "not a kernel"]);
    says("a program", &run(&program()), 2, &["--kernel"]);
    let mut arm = vec![0; 1 << 16];
    arm[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    says("an ARM kernel", &run(&scratch.write("arm", &arm)), 2, &["arm", "x86-64"]);
    arm.fill(0);
    arm[..2].copy_from_slice(b"MZ");
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    says("an ARM image", &run(&scratch.write("image", &arm)), 2, &["image"]);
    says("nothing", &run(&scratch.path("gone")), 2, &["gone", "No such file"]);
    says("a folder", &run(scratch.root()), 2, &["folder"]);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn initrds_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let larger = scratch.sparse("larger", 600 << 20);
    let kernel = guest_cache().join("kernel-6.1/vmlinuz");
    let run = |initrd: &Path, memory: &str| {
        let doppel = Doppel::new(&scratch, "run").file("--kernel", &kernel);
        doppel.file("--initrd", initrd).args(&format!("--memory {memory}")).run(SHORT)
    };
    says("larger than RAM", &run(&larger, "512M"), 2, &["--initrd", "larger", "--memory"]);
    let full = guest_cache().join("mini-full-6.1.cpio");
    says("no room beside the kernel", &run(&full, "64M"), 2, &["--initrd", "--memory"]);
    says("no room for the kernel", &run(&full, "16M"), 2, &["--memory"]);
    let empty = scratch.write("empty", b"");
    says("empty", &run(&empty, "512M"), 2, &["--initrd", "empty"]);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn memory_that_cannot_be_is_refused() {
    let scratch = Scratch::new();
    let run = |memory: &str| boot(&scratch).args(&format!("--memory {memory}")).run(SHORT);
    for (memory, words) in [
        ("0", &["too little"][..]),
        ("1M", &["too little"]),
        ("500G", &["the host has"]),
        ("16777216T", &["--memory"]),
        ("-1M", &["-1"]),
        ("half", &["half", "512M"]),
        ("536870913", &["multiple"]),
    ] {
        says(memory, &run(memory), 2, words);
    }
}

/// A qcow2 image with data in it.
fn good_image(scratch: &Scratch, name: &str) -> PathBuf {
    let raw = scratch.write(&format!("{name}.source"), net::noise(1 << 20, 5));
    let path = scratch.path(name);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&path)]);
    path
}

/// Overwrites bytes of a file.
fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).expect("the image");
    file.write_all_at(bytes, offset).expect("writing to the image");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn damaged_images_are_refused_and_left_alone() {
    for (what, offset, bytes, words) in [
        ("magic", 0, &b"QFX\xfb"[..], &["qcow2"][..]),
        ("version", 4, &[0, 0, 0, 9], &["version"]),
        ("cluster size", 20, &[0, 0, 0, 63], &["cluster"]),
        ("encryption", 32, &[0, 0, 0, 1], &["encrypt"]),
        ("L1 table past the end", 40, &[0, 0, 1, 0, 0, 0, 0, 0], &["L1"]),
        ("L1 size", 36, &[0xff, 0xff, 0xff, 0xff], &["L1"]),
        ("refcount table past the end", 48, &[0, 0, 1, 0, 0, 0, 0, 0], &["refcount"]),
        ("unknown feature", 72, &[0, 0, 0, 0, 0, 0, 1, 0], &["feature"]),
        ("corrupt bit", 72, &[0, 0, 0, 0, 0, 0, 0, 2], &["corrupt"]),
        ("disk size", 24, &[0xff; 8], &["bytes"]),
    ] {
        let scratch = Scratch::new();
        let image = good_image(&scratch, "d.qcow2");
        poke(&image, offset, bytes);
        let before = sums(&scratch);
        let ended = boot(&scratch).disk(&image, "").run(SHORT);
        says(what, &ended, 2, &[&["--disk", "d.qcow2"], words].concat());
        assert_eq!(sums(&scratch), before, "{what}");
    }
    let scratch = Scratch::new();
    let image = good_image(&scratch, "cut.qcow2");
    let file = fs::File::options().write(true).open(&image).expect("the image");
    file.set_len(200_000).expect("cutting the image");
    let before = sums(&scratch);
    says("cut", &boot(&scratch).disk(&image, "").run(SHORT), 2, &["--disk", "cut.qcow2"]);
    assert_eq!(sums(&scratch), before);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn backing_files_that_are_missing_or_circular_are_refused() {
    let scratch = Scratch::new();
    let base = good_image(&scratch, "base.qcow2");
    let middle = images::overlay(&scratch, "middle.qcow2", &base, "qcow2");
    let top = images::overlay(&scratch, "top.qcow2", &middle, "qcow2");
    let own = images::overlay(&scratch, "own.qcow2", &base, "qcow2");
    tool("qemu-img", &["rebase", "-u", "-b", text(&own), "-F", "qcow2", text(&own)]);
    let kept = good_image(&scratch, "kept.qcow2");
    let orphan = images::overlay(&scratch, "orphan.qcow2", &kept, "qcow2");
    tool("qemu-img", &["rebase", "-u", "-b", "gone.qcow2", "-F", "qcow2", text(&orphan)]);
    // Last, because qemu-img follows circles for ever.
    tool("qemu-img", &["rebase", "-u", "-b", text(&top), "-F", "qcow2", text(&base)]);
    let before = sums(&scratch);
    for (image, words) in [
        (&top, &["circle"][..]),
        (&own, &["circle"]),
        (&orphan, &["backing file", "gone.qcow2", "No such file"]),
    ] {
        for more in ["", ",readonly"] {
            says(text(image), &boot(&scratch).disk(image, more).run(SHORT), 2, words);
        }
    }
    assert_eq!(sums(&scratch), before);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn a_disk_in_use_is_refused_until_its_vm_has_ended() {
    let scratch = Scratch::new();
    let disk = images::create(&scratch, "d.qcow2", "qcow2", "16M");
    let upper = images::overlay(&scratch, "upper.qcow2", &disk, "qcow2");
    let hold = |more: &str| {
        let mut vm = Doppel::new(&scratch, "run")
            .guest("mini", "6.1", "quiet")
            .disk(&disk, more)
            .args("--name holder")
            .start();
        vm.wait_ready(&scratch, "holder");
        vm
    };
    let try_it = |image: &Path, more: &str| {
        boot(&scratch).disk(image, more).args("--stop-at 1000").run(SHORT)
    };
    let writer = hold("");
    for (image, more) in [(&disk, ""), (&disk, ",readonly"), (&upper, "")] {
        says("a writer has it", &try_it(image, more), 2, &["--disk", "in use", "d.qcow2"]);
    }
    drop(writer);
    let reader = hold(",readonly");
    says("a reader has it", &try_it(&disk, ""), 2, &["--disk", "in use"]);
    try_it(&disk, ",readonly").expect(0);
    try_it(&upper, "").expect(0);
    drop(reader);
    try_it(&disk, "").expect(0);
    images::check_qcow2(&disk);
    images::check_qcow2(&upper);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn files_one_may_not_read_are_refused() {
    if !rustix::process::geteuid().is_root() {
        return as_this_user();
    }
    // As nobody: a copy of the program, and a folder that is nobody's.
    let scratch = Scratch::new();
    let folder = scratch.root();
    fs::copy(program(), scratch.path("copy")).expect("a copy of doppel");
    let good = scratch.write("vmlinuz", vmlinuz());
    let disk = images::create(&scratch, "d.qcow2", "qcow2", "1M");
    let secret = scratch.write("secret", vmlinuz());
    for path in [&disk, &secret] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("permissions");
    }
    let doppel = scratch.path("copy");
    for path in [folder, &good, &doppel] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("another owner");
    }
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&doppel);
        command.arg("run").args(arguments).env("XDG_RUNTIME_DIR", folder);
        let output = command.uid(NOBODY).gid(NOBODY).output().expect("doppel starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let before = sums(&scratch);
    let (status, message) = run(&["--kernel", text(&secret)]);
    assert!(status == Some(2) && message.contains("Permission denied"), "{status:?} {message}");
    let with = format!("path={}", text(&disk));
    let (status, message) = run(&["--kernel", text(&good), "--disk", &with]);
    assert!(status == Some(2) && message.contains("Permission denied"), "{status:?} {message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(sums(&scratch), before);
}

fn as_this_user() {
    let scratch = Scratch::new();
    let secret = scratch.write("secret", vmlinuz());
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("permissions");
    let ended = Doppel::new(&scratch, "run").file("--kernel", &secret).run(SHORT);
    says("unreadable", &ended, 2, &["--kernel", "Permission denied"]);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn networks_that_cannot_be_had_are_refused() {
    let scratch = Scratch::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let forward = format!("user,hostfwd=tcp:{port}-:22");
    let run = |spec: &str| boot(&scratch).arg("--net").arg(spec).run(SHORT);
    says("a taken port", &run(&forward), 2, &["--net", &port.to_string(), "another port"]);
    says("no such tap", &run("tap=nosuchtap0"), 2, &["--net", "nosuchtap0", "ip tuntap"]);
    says("no interface name", &run("tap=a-name-too-long-for-it"), 2, &["--net", "15 characters"]);
    let mut without = boot(&scratch).args("--net user");
    without.command().env("PATH", scratch.root());
    says("no passt", &without.run(SHORT), 2, &["--net", "apt-get install passt"]);
}

#[test]
#[ignore = "needs guests, root or user name spaces: cargo xtask test"]
fn a_tap_of_somebody_else_is_refused() {
    if !net::inside_namespace("a_tap_of_somebody_else_is_refused") {
        return;
    }
    let scratch = Scratch::new();
    net::make_tap("theirs", "10.9.0.1/24");
    // Another user's, and this process without the right to use all of them.
    tool("ip", &["link", "delete", "theirs"]);
    tool("ip", &["tuntap", "add", "dev", "theirs", "mode", "tap", "user", "0"]);
    let mut vm = boot(&scratch).args("--net tap=theirs --name one").start();
    vm.wait_ready(&scratch, "one");
    says("in use", &boot(&scratch).args("--net tap=theirs").run(SHORT), 2, &["theirs", "in use"]);
    drop(vm);
    let prefix = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all"];
    if !rustix::process::geteuid().is_root() {
        return;
    }
    fs::copy(program(), scratch.path("copy")).expect("a copy of doppel");
    let kernel = scratch.write("vmlinuz", vmlinuz());
    let runtime = scratch.path("runtime");
    fs::create_dir(&runtime).expect("a folder of nobody's");
    for path in [scratch.root(), &kernel, &runtime] {
        std::os::unix::fs::chown(path, Some(NOBODY), None).expect("another owner");
    }
    let mut doppel = std::process::Command::new(prefix[0]);
    doppel.args(&prefix[1..]).arg(scratch.path("copy")).args(["run", "--kernel"]).arg(&kernel);
    let output = doppel
        .args(["--net", "tap=theirs"])
        .env("XDG_RUNTIME_DIR", &runtime)
        .output()
        .expect("setpriv; apt-get install util-linux");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("theirs") || message.contains("/dev/net/tun"), "{message}");
    assert!(message.contains("no permission"), "{message}");
}
