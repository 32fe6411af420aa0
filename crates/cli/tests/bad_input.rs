//! Whatever is wrong ends in one clear line and the right status, and changes nothing.

mod common;

use common::guest::Guest;
use common::{Place, names, text};

/// One line on standard error that starts as all do and has `words` in it; the status.
fn check(place: &Place, arguments: &[&str], status: i32, words: &[&str]) {
    let output = place.run(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}");
    assert!(message.starts_with("doppel: "), "{arguments:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: no {word:?} in {message}");
    }
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert!(names(&place.runtime()).is_empty(), "{arguments:?} left something");
}

/// `check` for a VM that boots, but for `more`.
fn check_run(place: &Place, more: &[&str], words: &[&str]) {
    let kernel = place.file("good", &Guest::new().power_off().image());
    let mut arguments = vec!["run", "--kernel", kernel.to_str().unwrap()];
    if !more.contains(&"--memory") {
        arguments.extend(["--memory", "4M"]);
    }
    arguments.extend(more);
    check(place, &arguments, 2, words);
}

#[test]
fn usage() {
    let place = Place::new();
    for (arguments, words) in [
        (&[][..], &["no verb", "--help"][..]),
        (&["fly"], &["fly", "see `doppel --help`"]),
        (&["inspect"], &["NAME", "see `doppel inspect --help`"]),
        (&["run"], &["--kernel"]),
        (&["run", "--krnel", "x"], &["--krnel", "did you mean --kernel?"]),
        (&["run", "mini", "--kernel", "x"], &["cannot be used"]),
        (&["run", "--kernel"], &["value is required"]),
        (
            &["run", "--kernel", "x", "--memory", "lots"],
            &["lots", "512M", "see `doppel run --help`"],
        ),
        (&["run", "--kernel", "x", "--memory", "-5"], &["-5"]),
        (&["run", "--kernel", "x", "--cpu", "host"], &["host", "v3 and v2"]),
        (&["run", "--kernel", "x", "--engine", "kvm"], &["kvm", "interp", "translate"]),
        (&["run", "--kernel", "x", "--disk", "root.img"], &["root.img", "path=FILE"]),
        (&["run", "--kernel", "x", "--net", "bridge"], &["bridge", "tap=NAME"]),
        (&["run", "--kernel", "x", "--net", "user,hostfwd=22"], &["hostfwd=22", "tcp:"]),
        (&["run", "--kernel", "x", "--console", "vga"], &["vga", "stdio, pty"]),
        (&["run", "--kernel", "x", "--debug-exit", "0x10000"], &["0x10000", "0xffff"]),
        (&["run", "--kernel", "x", "--seed", "abc"], &["abc", "number"]),
        (&["run", "--kernel", "x", "--grace", "soon"], &["soon", "30s"]),
        (&["run", "--kernel", "x", "--hash-every", "0"], &["1 or more"]),
        (&["run", "nosuch"], &["nosuch", "mini", "--kernel"]),
        (&["run", "mini"], &["not built", "cargo xtask guest"]),
        (&["inspect", "nobody"], &["nobody", "doppel list"]),
        (&["stop", "nobody"], &["nobody"]),
        (&["pause", "../x"], &["../x", "A-Z"]),
    ] {
        check(&place, arguments, 2, words);
    }
}

#[test]
fn kernels() {
    let place = Place::new();
    let file = |name: &str, bytes: &[u8]| place.file(name, bytes).to_str().unwrap().to_owned();
    let good = Guest::new().power_off().image();
    // An ELF header of a 64-bit ARM kernel.
    let mut arm = vec![0; 4096];
    arm[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    for (kernel, words) in [
        (place.path("missing").to_str().unwrap().to_owned(), &["missing", "No such file"][..]),
        (place.dir.to_str().unwrap().to_owned(), &["is a folder"]),
        ("/dev/zero".to_owned(), &["not a regular file"]),
        (file("empty", b""), &["empty"]),
        (file("text", b"#!/bin/sh\necho hello\n"), &["text", "not a kernel"]),
        (file("noise", &[0xa5; 70_000]), &["not a kernel"]),
        (file("arm", &arm), &["arm", "x86-64"]),
        (file("cut", &good[..20]), &["truncated"]),
        (file("elf", b"\x7fELF\x02\x01"), &["truncated"]),
    ] {
        let arguments = ["run", "--memory", "4M", "--kernel", &kernel];
        check(&place, &arguments, 2, &[&["--kernel"], words].concat());
    }
}

#[test]
fn memory() {
    let place = Place::new();
    for (size, words) in [
        ("0", &["0 bytes", "too little", "512M"][..]),
        ("1M", &["too little"]),
        ("4194305", &["multiple of 4096"]),
        ("900G", &["900G", "available"]),
        ("2T", &["too much"]),
    ] {
        check_run(&place, &["--memory", size], &[&["--memory"], words].concat());
    }
}

#[test]
fn initrds_and_command_lines() {
    let place = Place::new();
    let big = place.file("big", &vec![1; 5 << 20]);
    let (big, empty) = (big.to_str().unwrap(), place.file("none", b""));
    check_run(&place, &["--initrd", big], &["--initrd", "big", "--memory"]);
    check_run(&place, &["--initrd", empty.to_str().unwrap()], &["--initrd", "empty"]);
    check_run(&place, &["--initrd", "gone"], &["--initrd", "gone", "No such file"]);
    let long = "x".repeat(100_000);
    check_run(&place, &["--cmdline", &long], &["--cmdline", "100000"]);
}

#[test]
fn disks() {
    let place = Place::new();
    place.file("d.img", &[0; 4096]);
    place.file("odd.img", &[0; 100]);
    place.file("noise.qcow2", &[0x5a; 4096]);
    let mut hostile = b"QFI\xfb\0\0\0\x03".to_vec();
    hostile.resize(65_536, 0xff);
    place.file("hostile.qcow2", &hostile);
    for (disk, words) in [
        ("path=gone.img", &["gone.img", "No such file"][..]),
        ("path=.", &["not a disk image"]),
        ("path=/dev/null", &["not a disk image"]),
        ("path=odd.img", &["odd.img", "100 bytes"]),
        ("path=noise.qcow2", &["does not begin like a qcow2"]),
        ("path=hostile.qcow2", &["hostile.qcow2"]),
        ("path=d.img,format=qcow2", &["d.img", "format=raw"]),
    ] {
        check_run(&place, &["--disk", disk], &[&["--disk"], words].concat());
    }
    let twice = ["--disk", "path=d.img", "--disk", "path=d.img,format=raw"];
    check_run(&place, &twice, &["--disk path=d.img", "twice"]);
    assert_eq!(std::fs::read(place.path("hostile.qcow2")).unwrap(), hostile);
    assert_eq!(std::fs::read(place.path("d.img")).unwrap(), [0; 4096]);
}

#[test]
fn a_disk_in_use_is_refused() {
    let place = Place::new();
    place.file("d.img", &[0; 4096]);
    let _vm = place.start("first", &Guest::new().halt().image(), &["--disk", "path=d.img"]);
    let kernel = place.path("first.elf");
    let more = ["--memory", "4M", "--disk", "path=d.img"];
    let boot = ["run", "--kernel", kernel.to_str().unwrap()];
    let output = place.run(&[&boot[..], &more].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("d.img") && message.contains("in use"), "{message}");
}

#[test]
fn networks_consoles_names_and_sockets() {
    let place = Place::new();
    let taken = place.file("taken", b"x");
    for (more, words) in [
        (&["--net", "tap=nosuchtap0"][..], &["--net", "nosuchtap0", "ip tuntap"][..]),
        (&["--net", "tap=a/b"], &["interface name"]),
        (&["--net", "user,mac=01:00:00:00:00:00"], &["mac=01:00", "even"]),
        (&["--console", "file=/nosuch/dir/x"], &["--console", "/nosuch/dir/x"]),
        (&["--console", "unix=taken"], &["--console", "taken", "not a socket"]),
        (&["--serial2", "stdio"], &["--console and --serial2"]),
        (&["--api", "taken"], &["--api", "taken", "not a socket"]),
        (&["--debug-exit", "0x3f8"], &["--debug-exit: port 0x3f8", "serial", "0xf4"]),
        (&["--debug-exit", "0xcfd"], &["--debug-exit: port 0xcfd", "PCI"]),
        (&["--name", "a b"], &["--name", "a b"]),
        (&["--name", "-x"], &["--name", "-x"]),
        (&["--name", ""], &["--name", "empty"]),
        (&["--hash-log", "log"], &["--hash-every"]),
        (&["--hash-every", "5", "--hash-log", "/nosuch/log"], &["--hash-log", "/nosuch/log"]),
    ] {
        check_run(&place, more, words);
    }
    assert_eq!(std::fs::read(taken).unwrap(), b"x");
    assert!(!place.path("log").exists());
}

#[test]
fn a_console_file_is_not_emptied_before_all_is_found_good() {
    let place = Place::new();
    let kept = place.file("kept", b"old output");
    check_run(&place, &["--console", "file=kept", "--disk", "path=gone"], &["gone"]);
    check_run(&place, &["--console", "file=kept", "--net", "tap=nosuch0"], &["nosuch0"]);
    assert_eq!(std::fs::read(kept).unwrap(), b"old output");
}

#[test]
fn outputs_into_what_the_guest_uses_are_refused() {
    let place = Place::new();
    let kept = place.file("d.img", &[7; 4096]);
    std::fs::hard_link(&kept, place.path("link")).unwrap();
    std::os::unix::fs::symlink("good", place.path("soft")).unwrap();
    let log = |file| ["--hash-every", "5", "--hash-log", file];
    for (more, words) in [
        (&["--console", "file=d.img", "--disk", "path=d.img"][..], &["--console", "--disk"][..]),
        (&["--serial2", "file=link", "--disk", "path=d.img,readonly"], &["--serial2", "link"]),
        (&["--hvc", "file=good"], &["--hvc", "good", "--kernel"]),
        (&["--console", "file=soft"], &["--console", "soft", "--kernel"]),
        (&["--console", "file=d.img", "--initrd", "d.img"], &["--console", "--initrd"]),
        (&[&log("link")[..], &["--disk", "path=d.img"]].concat(), &["--hash-log", "--disk"]),
        (&[&log("new")[..], &["--serial2", "file=new"]].concat(), &["--hash-log", "--serial2"]),
    ] {
        check_run(&place, more, words);
    }
    assert_eq!(std::fs::read(kept).unwrap(), [7; 4096]);
}

#[test]
fn help_says_what_the_statuses_are() {
    let place = Place::new();
    for arguments in [&["--help"][..], &["run", "--help"]] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(0));
        let help = text(&output.stdout);
        assert!(help.contains("Exit status:") && help.contains("triple fault"), "{help}");
    }
    assert!(text(&place.run(&["run", "--help"]).stdout).contains("Examples:"));
    assert_eq!(place.run(&["--version"]).status.code(), Some(0));
}
