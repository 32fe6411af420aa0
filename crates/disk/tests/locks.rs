//! Locks: between two of ours, and between us and real QEMU tools, in both directions.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use common::{Scratch, open_as, open_rw, refusal};
use disk::DiskError;

const IMAGES: [(&str, &str); 2] = [("a.img", "raw"), ("a.qcow2", "qcow2")];

/// A qemu-io that holds an image open until dropped.
struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    fn new(scratch: &Scratch, name: &str, format: &str, read_only: bool) -> Holder {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]).args(read_only.then_some("-r")).arg(scratch.path(name));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs qemu-io: apt-get install qemu-utils");
        let mut stdin = child.stdin.take().unwrap();
        // It answers the first command only once the image is open.
        writeln!(stdin, "length").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("MiB"), "qemu-io said {line:?}");
        Holder { child, stdin: Some(stdin) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

#[test]
fn second_writer_is_refused_readers_share() {
    let scratch = Scratch::new();
    for (name, format) in IMAGES {
        let path = scratch.create(name, format, "", "1M");
        let writer = open_rw(&path);
        assert!(matches!(refusal(&path, None, false), DiskError::InUse { .. }));
        assert!(matches!(refusal(&path, None, true), DiskError::InUse { .. }));
        drop(writer);
        let readers = [open_as(&path, None, true).unwrap(), open_as(&path, None, true).unwrap()];
        let refused = refusal(&path, None, false);
        assert!(matches!(&refused, DiskError::InUse { path: said } if *said == path));
        drop(readers);
        open_rw(&path);
    }
}

#[test]
fn image_open_in_qemu_is_refused_to_us() {
    let scratch = Scratch::new();
    for (name, format) in IMAGES {
        let path = scratch.create(name, format, "", "1M");
        let holder = Holder::new(&scratch, name, format, false);
        for read_only in [false, true] {
            assert!(matches!(refusal(&path, None, read_only), DiskError::InUse { .. }));
        }
        drop(holder);
        let holder = Holder::new(&scratch, name, format, true);
        // qemu-io, unlike qemu-img and a guest's disk, lets others write below a raw reader.
        if format == "qcow2" {
            assert!(matches!(refusal(&path, None, false), DiskError::InUse { .. }));
        }
        open_as(&path, None, true).unwrap();
        drop(holder);
        open_rw(&path);
    }
}

#[test]
fn image_open_in_ours_is_refused_to_qemu() {
    let scratch = Scratch::new();
    for (name, format) in IMAGES {
        let path = scratch.create(name, format, "", "1M");
        let write = ["-f", format, "-c", "write 0 512", name];
        let read = ["-r", "-f", format, "-c", "read 0 512", name];
        let convert = ["convert", "-f", format, "-O", "raw", name, "copy.raw"];
        let writer = open_rw(&path);
        for (tool, arguments) in [("qemu-io", &write[..]), ("qemu-img", &convert)] {
            let output = scratch.try_qemu(tool, arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("lock"), "{tool} {arguments:?} on {format}: {said}");
        }
        drop(writer);
        let reader = open_as(&path, None, true).unwrap();
        let said = scratch.try_qemu("qemu-io", &write).stderr;
        assert!(String::from_utf8_lossy(&said).contains("lock"));
        scratch.qemu("qemu-img", &convert);
        scratch.qemu("qemu-io", &read);
        scratch.qemu("qemu-img", &["info", name]);
        drop(reader);
        scratch.qemu("qemu-io", &write);
    }
}

#[test]
fn backing_files_are_locked_for_reading() {
    let scratch = Scratch::new();
    let base = scratch.create("base.qcow2", "qcow2", "", "1M");
    let options = "backing_file=base.qcow2,backing_fmt=qcow2";
    let tops = ["one.qcow2", "two.qcow2"].map(|name| scratch.create(name, "qcow2", options, ""));
    let opened = tops.each_ref().map(|path| open_rw(path));
    assert!(matches!(refusal(&base, None, false), DiskError::InUse { .. }));
    let said = scratch.try_qemu("qemu-io", &["-c", "write 0 512", "base.qcow2"]).stderr;
    assert!(String::from_utf8_lossy(&said).contains("lock"));
    drop(opened);
    let base_writer = open_rw(&base);
    let refused = refusal(&tops[0], None, false);
    assert!(matches!(&refused, DiskError::Backing { source, .. }
        if matches!(**source, DiskError::InUse { .. })));
    drop(base_writer);
}
