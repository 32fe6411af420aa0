//! Our reading and writing against QEMU's: same contents, clean images.

mod common;

use common::{Random, Scratch, exercise, open_as, open_rw};
use disk::{DiskIo, Format};
use journal::{DiskOperation, DiskRequest};

const SIZE: usize = 24 << 20;

#[test]
fn raw_random_operations_equal_model() {
    let scratch = Scratch::new();
    let path = scratch.create("a.img", "raw", "", "24M");
    let mut model = vec![0; SIZE];
    let mut disk = open_rw(&path);
    assert_eq!((disk.size(), disk.read_only()), (SIZE as u64, false));
    exercise(disk.as_mut(), &mut model, &mut Random(1), 2000);
    drop(disk);
    assert!(std::fs::read(&path).unwrap() == model);
}

#[test]
fn qcow2_random_operations_equal_model_for_every_layout() {
    let layouts = [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=2M",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "preallocation=metadata",
    ];
    for (seed, layout) in (0..).zip(layouts) {
        let scratch = Scratch::new();
        let path = scratch.create("a.qcow2", "qcow2", layout, "24M");
        let mut model = vec![0; SIZE];
        for round in 0..2 {
            let mut disk = open_rw(&path);
            let random = &mut Random(seed * 10 + round);
            exercise(disk.as_mut(), &mut model, random, 400);
            drop(disk);
            scratch.check_clean("a.qcow2");
            assert!(scratch.contents("a.qcow2", "qcow2") == model, "layout {layout:?}");
        }
    }
}

#[test]
fn sizes_that_end_inside_a_cluster_equal_model() {
    for (seed, size) in [(60, 512), (61, 48 << 10), (62, (64 << 10) + 512), (63, 1_000_448)] {
        for options in ["", "compat=0.10", "cluster_size=2M", "cluster_size=4096"] {
            let scratch = Scratch::new();
            let base = scratch.create("base.img", "raw", "", &size.to_string());
            let mut model = Random(seed).bytes(size);
            std::fs::write(base, &model).unwrap();
            let comma = if options.is_empty() { "" } else { "," };
            let options = format!("backing_file=base.img,backing_fmt=raw{comma}{options}");
            let path = scratch.create("a.qcow2", "qcow2", &options, "");
            let mut disk = open_rw(&path);
            exercise(disk.as_mut(), &mut model, &mut Random(seed), 500);
            drop(disk);
            scratch.check_clean("a.qcow2");
            assert!(scratch.contents("a.qcow2", "qcow2") == model, "{size} {options:?}");
        }
    }
}

#[test]
fn overlays_on_raw_and_qcow2_keep_their_backing_files_unchanged() {
    for (seed, format) in [(20, "raw"), (21, "qcow2")] {
        let scratch = Scratch::new();
        let base_name = if format == "raw" { "base.img" } else { "base.qcow2" };
        let base = scratch.create(base_name, format, "", "24M");
        let mut model = vec![0; SIZE];
        let mut random = Random(seed);
        exercise(open_rw(&base).as_mut(), &mut model, &mut random, 300);
        let before = std::fs::read(&base).unwrap();
        let options = format!("backing_file={base_name},backing_fmt={format}");
        scratch.create("mid.qcow2", "qcow2", &options, "");
        let options = "backing_file=mid.qcow2,backing_fmt=qcow2,cluster_size=4096";
        scratch.create("top.qcow2", "qcow2", options, "");
        for name in ["mid.qcow2", "top.qcow2"] {
            let mut disk = open_rw(&scratch.path(name));
            exercise(disk.as_mut(), &mut model, &mut random, 500);
            drop(disk);
            scratch.check_clean(name);
            assert!(scratch.contents(name, "qcow2") == model, "{name} on {format}");
        }
        assert!(std::fs::read(&base).unwrap() == before);
    }
}

#[test]
fn old_overlay_discards_do_not_show_the_backing_file() {
    let scratch = Scratch::new();
    let base = scratch.create("base.img", "raw", "", "1M");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let options = "backing_file=base.img,backing_fmt=raw,compat=0.10";
    let top = scratch.create("top.qcow2", "qcow2", options, "");
    let mut disk = open_rw(&top);
    disk.discard(512, 300 << 10).unwrap();
    drop(disk);
    let mut model = vec![7; 1 << 20];
    model[512..512 + (300 << 10)].fill(0);
    scratch.check_clean("top.qcow2");
    assert!(scratch.contents("top.qcow2", "qcow2") == model);
}

#[test]
fn overlay_larger_than_its_backing_file_reads_zeroes_beyond() {
    let scratch = Scratch::new();
    let base = scratch.create("base.img", "raw", "", "1M");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let top = scratch.create("top.qcow2", "qcow2", "backing_file=base.img,backing_fmt=raw", "2M");
    let mut data = vec![1; 2 << 20];
    open_rw(&top).read_at(0, &mut data).unwrap();
    assert!(data[..1 << 20].iter().all(|byte| *byte == 7));
    assert!(data[1 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn compressed_and_snapshotted_images_read_and_take_writes() {
    let scratch = Scratch::new();
    let path = scratch.create("a.qcow2", "qcow2", "", "24M");
    let mut model = vec![0; SIZE];
    exercise(open_rw(&path).as_mut(), &mut model, &mut Random(30), 200);
    let convert = ["convert", "-c", "-O", "qcow2", "a.qcow2", "packed.qcow2"];
    scratch.qemu("qemu-img", &convert);
    scratch.qemu("qemu-img", &["snapshot", "-c", "kept", "packed.qcow2"]);
    let kept = model.clone();
    let mut disk = open_rw(&scratch.path("packed.qcow2"));
    exercise(disk.as_mut(), &mut model, &mut Random(31), 300);
    drop(disk);
    scratch.check_clean("packed.qcow2");
    assert!(scratch.contents("packed.qcow2", "qcow2") == model);
    scratch.qemu("qemu-img", &["snapshot", "-a", "kept", "packed.qcow2"]);
    assert!(scratch.contents("packed.qcow2", "qcow2") == kept);
}

#[test]
fn a_chain_of_two_hundred_overlays_works() {
    let scratch = Scratch::new();
    scratch.create("0.qcow2", "qcow2", "", "1M");
    let mut model = vec![0; 1 << 20];
    let mut random = Random(40);
    for index in 1..200 {
        let options = format!("backing_file={}.qcow2,backing_fmt=qcow2", index - 1);
        let path = scratch.create(&format!("{index}.qcow2"), "qcow2", &options, "1M");
        if index % 20 == 19 {
            exercise(open_rw(&path).as_mut(), &mut model, &mut random, 20);
        }
    }
    let io = DiskIo::spawn(open_rw(&scratch.path("199.qcow2")));
    let operation = DiskOperation::Read { offset: 0, len: 1 << 20 };
    io.submit(DiskRequest { id: 1, operation });
    assert!(io.wait(1).result.unwrap() == model);
}

#[test]
fn odd_sizes_are_padded_for_reading_and_refused_for_writing() {
    let scratch = Scratch::new();
    let path = scratch.path("odd.img");
    std::fs::write(&path, vec![9; 1000]).unwrap();
    let mut disk = open_as(&path, None, true).unwrap();
    assert_eq!(disk.size(), 1024);
    let mut data = vec![1; 1024];
    disk.read_at(0, &mut data).unwrap();
    assert!(data[..1000].iter().all(|byte| *byte == 9) && data[1000..] == [0; 24]);
    drop(disk);
    let refused = common::refusal(&path, None, false).to_string();
    assert!(refused.contains("1000 bytes") && refused.contains("truncate"), "{refused}");
}

#[test]
fn read_only_disks_refuse_changes_and_leave_the_file_alone() {
    let scratch = Scratch::new();
    for (name, format) in [("a.img", "raw"), ("a.qcow2", "qcow2")] {
        let path = scratch.create(name, format, "", "1M");
        let before = std::fs::read(&path).unwrap();
        let mut disk = open_as(&path, None, true).unwrap();
        for refused in
            [disk.write_at(0, &[1; 512]), disk.discard(0, 512), disk.write_zeroes(0, 512)]
        {
            assert!(refused.unwrap_err().to_string().contains("reading only"));
        }
        disk.flush().unwrap();
        drop(disk);
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

#[test]
fn ranges_past_the_end_are_refused() {
    let scratch = Scratch::new();
    for (name, format) in [("a.img", "raw"), ("a.qcow2", "qcow2")] {
        let path = scratch.create(name, format, "", "1M");
        let mut disk = open_rw(&path);
        assert!(disk.read_at((1 << 20) - 512, &mut [0; 1024]).is_err());
        assert!(disk.write_at(u64::MAX, &[0; 1024]).is_err());
        assert!(disk.discard(512, u64::MAX).is_err());
        assert!(disk.write_zeroes(1 << 20, 512).is_err());
        drop(disk);
        assert_eq!(scratch.contents(name, format).len(), 1 << 20);
    }
}

#[test]
fn killed_in_the_middle_of_writes_the_image_has_no_errors() {
    if let Ok(path) = std::env::var("DISK_TEST_VICTIM") {
        let mut disk = open_as(path.as_ref(), Some(Format::Qcow2), false).unwrap();
        exercise(disk.as_mut(), &mut vec![0; SIZE], &mut Random(50), usize::MAX);
    }
    let scratch = Scratch::new();
    for round in 0..5 {
        let path = scratch.create("a.qcow2", "qcow2", "", "24M");
        let this = std::env::current_exe().unwrap();
        let mut victim = std::process::Command::new(this)
            .args(["--exact", "killed_in_the_middle_of_writes_the_image_has_no_errors"])
            .env("DISK_TEST_VICTIM", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100 + 50 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let output = scratch.try_qemu("qemu-img", &["check", "a.qcow2"]);
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 3)), "only leaks are allowed: {code:?} {output:?}");
        open_rw(&path).read_at(0, &mut vec![0; SIZE]).unwrap();
    }
}
