//! Bad images: each is refused with a message that says what is wrong, none panics or hangs.

mod common;

use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Random, Scratch, exercise, open_as, open_rw, refusal};
use disk::{DiskError, DiskSpec, Format};

/// Offset of a qcow2 header's encryption method, big-endian; 2 is LUKS.
const CRYPT_METHOD: u64 = 32;

fn says(error: &DiskError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let scratch = Scratch::new();
    says(&refusal(&scratch.path("gone"), None, false), &["gone", "No such file"]);
    says(&refusal(&scratch.path(""), None, false), &["a directory"]);
    says(&refusal(Path::new("/dev/null"), None, false), &["a character device"]);
    let empty = scratch.path("empty.img");
    std::fs::write(&empty, []).unwrap();
    says(&refusal(&empty, None, true), &["0 bytes"]);
    let made = std::process::Command::new("mkfifo").arg(scratch.path("pipe")).status();
    assert!(made.unwrap().success());
    says(&refusal(&scratch.path("pipe"), None, false), &["a pipe"]);
}

#[test]
fn unreadable_image_says_permission() {
    if let Ok(path) = std::env::var("DISK_TEST_UNREADABLE") {
        let error = refusal(path.as_ref(), None, false);
        says(&error, &["Permission denied", "allow this user"]);
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.create("a.img", "raw", "", "1M");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(&path, mode).unwrap();
    // The test must not be root for this; a copy is readable wherever the build tree is.
    let copy = scratch.path("test");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut command = std::process::Command::new(copy);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command
        .args(["--exact", "unreadable_image_says_permission"])
        .env("DISK_TEST_UNREADABLE", &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_qcow2_header_in_a_raw_disk_is_not_believed() {
    let scratch = Scratch::new();
    let path = scratch.create("disk.img", "qcow2", "", "1M");
    let unclear = refusal(&path, None, false);
    assert!(matches!(unclear, DiskError::FormatUnclear { .. }));
    says(&unclear, &["format=raw", "format=qcow2"]);
    assert_eq!(open_as(&path, Some(Format::Qcow2), false).unwrap().size(), 1 << 20);
    let len = std::fs::metadata(&path).unwrap().len();
    assert_eq!(open_as(&path, Some(Format::Raw), true).unwrap().size(), len.div_ceil(512) * 512);

    let raw = scratch.create("raw.qcow2", "raw", "", "1M");
    assert!(matches!(refusal(&raw, None, false), DiskError::NotQcow2 { .. }));
    assert!(matches!(refusal(&raw, Some(Format::Qcow2), false), DiskError::NotQcow2 { .. }));
    open_as(&raw, Some(Format::Raw), false).unwrap();
    let vmdk = scratch.create("a.vmdk", "vmdk", "", "1M");
    says(&refusal(&vmdk, None, false), &[".vmdk", "qemu-img convert"]);

    // An overlay that does not state its backing file's format follows the same rule.
    let top = scratch.create("top.qcow2", "qcow2", "backing_file=disk.img,backing_fmt=qcow2", "");
    scratch.qemu("qemu-img", &["rebase", "-u", "-b", "disk.img", "-F", "qcow2", "top.qcow2"]);
    open_rw(&top);
    let mut bytes = std::fs::read(&top).unwrap();
    let kind = 0xe279_2acau32.to_be_bytes();
    let at = bytes.windows(4).position(|window| window == kind).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    std::fs::write(&top, bytes).unwrap();
    let DiskError::Backing { source, .. } = refusal(&top, None, false) else {
        panic!("no refusal")
    };
    assert!(matches!(*source, DiskError::FormatUnclear { .. }));
}

#[test]
fn unsupported_features_are_named() {
    let scratch = Scratch::new();
    let cases = [
        ("extended_l2=on,cluster_size=128k", "extended L2"),
        ("compression_type=zstd", "zstd"),
        ("data_file=outside.raw", "external data file"),
        ("cluster_size=64k", "LUKS"),
    ];
    for (options, name) in cases {
        scratch.qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "1M"]);
        if name == "LUKS" {
            // Where a thread's CPU time is counted in ticks, qemu-img cannot make one.
            let image = std::fs::File::options().write(true).open(scratch.path("a.qcow2")).unwrap();
            image.write_all_at(&2u32.to_be_bytes(), CRYPT_METHOD).unwrap();
        }
        let before = std::fs::read(scratch.path("a.qcow2")).unwrap();
        let error = refusal(&scratch.path("a.qcow2"), None, false);
        says(&error, &["a.qcow2", name, "not supported"]);
        assert!(std::fs::read(scratch.path("a.qcow2")).unwrap() == before);
    }
}

#[test]
fn backing_file_problems_name_both_files() {
    let scratch = Scratch::new();
    scratch.create("base.qcow2", "qcow2", "", "1M");
    let options = "backing_file=base.qcow2,backing_fmt=qcow2";
    let top = scratch.create("top.qcow2", "qcow2", options, "");
    let rebase = |image: &str, onto: &str, format: &str| {
        scratch.qemu("qemu-img", &["rebase", "-u", "-b", onto, "-F", format, image]);
    };
    rebase("base.qcow2", "top.qcow2", "qcow2");
    let looped = refusal(&top, None, false);
    assert!(matches!(looped, DiskError::BackingLoop { .. }));
    says(&looped, &["circle", "base.qcow2", "top.qcow2"]);
    rebase("top.qcow2", "top.qcow2", "qcow2");
    says(&refusal(&top, None, false), &["circle", "top.qcow2"]);
    rebase("top.qcow2", "gone.img", "raw");
    says(&refusal(&top, None, false), &["top.qcow2", "gone.img", "No such file"]);
    rebase("top.qcow2", "/dev", "raw");
    says(&refusal(&top, None, false), &["top.qcow2", "/dev", "a directory"]);
    rebase("top.qcow2", "nbd://host/x", "raw");
    says(&refusal(&top, None, false), &["top.qcow2", "nbd://host/x", "not supported"]);
    rebase("top.qcow2", "base.vmdk", "vmdk");
    says(&refusal(&top, None, false), &["vmdk", "not supported"]);
}

#[test]
fn chains_have_a_limit_and_can_be_listed() {
    let scratch = Scratch::new();
    scratch.create("0000.qcow2", "qcow2", "", "1M");
    let options = "backing_file=0000.qcow2,backing_fmt=qcow2";
    let template = scratch.create("t.qcow2", "qcow2", options, "");
    let template = std::fs::read(template).unwrap();
    let at = template.windows(10).position(|window| window == b"0000.qcow2").unwrap();
    for index in 1..=disk::BACKING_DEPTH_MAX {
        let mut bytes = template.clone();
        bytes[at..at + 4].copy_from_slice(format!("{:04}", index - 1).as_bytes());
        std::fs::write(scratch.path(&format!("{index:04}.qcow2")), bytes).unwrap();
    }
    let spec = |index: usize| DiskSpec {
        path: scratch.path(&format!("{index:04}.qcow2")),
        format: None,
        read_only: false,
    };
    let chain = disk::backing_chain(&spec(2)).unwrap();
    let expected = [2, 1, 0].map(|index| (spec(index).path, Format::Qcow2));
    assert_eq!(chain, expected);
    let mut data = [1; 512];
    let mut deepest = disk::open(spec(disk::BACKING_DEPTH_MAX - 1)).unwrap();
    deepest.read_at(0, &mut data).unwrap();
    assert_eq!(data, [0; 512]);
    drop(deepest);
    let too_deep = disk::open(spec(disk::BACKING_DEPTH_MAX)).err().unwrap();
    assert!(matches!(too_deep, DiskError::BackingTooDeep { .. }), "{too_deep}");
}

/// A qcow2 image with guest data, and that data.
fn sample(scratch: &Scratch, options: &str) -> (Vec<u8>, Vec<u8>) {
    let path = scratch.create("sample.qcow2", "qcow2", options, "4M");
    let mut model = vec![0; 4 << 20];
    exercise(open_rw(&path).as_mut(), &mut model, &mut Random(7), 200);
    (std::fs::read(path).unwrap(), model)
}

#[test]
fn every_truncation_is_refused_or_harmless() {
    let scratch = Scratch::new();
    let (image, model) = sample(&scratch, "cluster_size=4096");
    let path = scratch.path("cut.qcow2");
    let mut random = Random(8);
    let lens =
        (0..200).map(|len| len * 7).chain((0..200).map(|_| random.below(image.len() as u64)));
    for len in lens.collect::<Vec<_>>() {
        std::fs::write(&path, &image[..len as usize]).unwrap();
        // Only the last, partial cluster can be missing unnoticed.
        if let Ok(mut disk) = open_as(&path, None, false) {
            assert!(len + 4096 > image.len() as u64, "cut to {len} of {}", image.len());
            let mut data = vec![0; model.len()];
            disk.read_at(0, &mut data).unwrap();
        }
    }
}

/// Opens a damaged image both ways and uses it; an error is fine, a panic or a hang is not.
fn survive(path: &Path, random: &mut Random, label: &str) -> bool {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut opened = false;
        for read_only in [true, false] {
            let Ok(mut disk) = open_as(path, Some(Format::Qcow2), read_only) else { continue };
            opened = true;
            assert!(disk.size() <= 1 << 50);
            let sectors = disk.size() / 512;
            for _ in 0..30 {
                let start = random.below(sectors);
                let len = 512 * (1 + random.below((sectors - start).min(64)));
                let mut data = vec![0; len as usize];
                match random.below(5) {
                    0 => _ = disk.discard(start * 512, len),
                    1 => _ = disk.write_zeroes(start * 512, len),
                    2 => _ = disk.write_at(start * 512, &data),
                    3 => _ = disk.flush(),
                    _ => _ = disk.read_at(start * 512, &mut data),
                }
            }
        }
        opened
    }));
    assert!(started.elapsed() < Duration::from_secs(20), "{label} took {:?}", started.elapsed());
    outcome.unwrap_or_else(|_| panic!("{label} caused a panic"))
}

#[test]
fn header_mutations_never_panic() {
    let scratch = Scratch::new();
    let (image, _) = sample(&scratch, "cluster_size=4096");
    let path = scratch.path("mutant.qcow2");
    let interesting =
        [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x1000, 0x7fff_ffff, u32::MAX, 0x8000_0000, 512, 9, 21];
    let mut accepted = 0;
    for seed in 0..1500 {
        let mut random = Random(seed);
        let mut mutant = image.clone();
        for _ in 0..=random.below(3) {
            let at = 4 * (1 + random.below(40)) as usize;
            let value = if random.below(2) == 0 {
                interesting[random.below(interesting.len() as u64) as usize]
            } else {
                1 << random.below(32)
            };
            mutant[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        std::fs::write(&path, &mutant).unwrap();
        accepted += u32::from(survive(&path, &mut random, &format!("header seed {seed}")));
    }
    println!("{accepted} of 1500 mutants were accepted");
}

#[test]
fn table_bit_flips_never_panic() {
    for (base, options) in [(10_000, "cluster_size=4096"), (20_000, "compat=0.10")] {
        let scratch = Scratch::new();
        let (image, _) = sample(&scratch, options);
        let path = scratch.path("mutant.qcow2");
        let field = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
        let (l1, refcounts) = (field(40), field(48));
        let entry = |at: u64| field(at as usize) & 0x00ff_ffff_ffff_fe00;
        let regions = [l1, refcounts, entry(l1), entry(refcounts)];
        let mut accepted = 0;
        for seed in 0..600 {
            let mut random = Random(base + seed);
            let mut mutant = image.clone();
            for _ in 0..=random.below(4) {
                let at = regions[random.below(4) as usize] + random.below(64);
                mutant[at as usize] ^= 1 << random.below(8);
            }
            std::fs::write(&path, &mutant).unwrap();
            accepted += u32::from(survive(&path, &mut random, &format!("{options} seed {seed}")));
        }
        println!("{accepted} of 600 mutants of {options} were accepted");
    }
}

#[test]
fn contradictions_in_the_tables_are_found() {
    let scratch = Scratch::new();
    let (image, _) = sample(&scratch, "");
    let path = scratch.path("bad.qcow2");
    std::fs::write(&path, &image).unwrap();
    let read = |at: u64| {
        let mut field = [0; 8];
        std::fs::File::open(&path).unwrap().read_exact_at(&mut field, at).unwrap();
        u64::from_be_bytes(field)
    };
    let (l1, refcounts) = (read(40), read(48));
    let l2 = read(l1) & 0x00ff_ffff_ffff_fe00;
    let block = read(refcounts);
    let used = (0..64).find(|index| read(l2 + index * 8) >> 63 == 1).unwrap();
    let data = read(l2 + used * 8);
    let cases = [
        (l1, read(l1) | 1, "reserved bits"),
        (l1, l1 | 1 << 63, "both lie"),
        (l1, 1 << 40, "the file has"),
        (l1, l2 + 512, "the file has"),
        (l2 + used * 8, data | 2, "reserved bits"),
        (l2 + used * 8, (1 << 63) | (1 << 40), "past the end of the file"),
        (l2 + used * 8, (1 << 63) | l2, "table of the image itself"),
        (l2 + used * 8, data + 512, "no cluster begins"),
        (l2 + used * 8, (1 << 63) | (1 << 62) | 0x70000, "compressed"),
        (refcounts, l1, "both lie"),
        (refcounts, 0, "counted free"),
        (block, 0, "counted free"),
        (block + (data & !(1 << 63)) / 65536 * 2 / 8 * 8, 0x0002_0002_0002_0002, "used twice"),
        (24, 1 << 60, "L1 table has"),
        (24, 1000, "1000 bytes"),
        (72, 2, "marked corrupt"),
        (72, 1, "not closed cleanly"),
        (72, 1 << 50, "unknown qcow2 feature"),
        (8, 1 << 20, "backing file name"),
    ];
    for (at, value, words) in cases {
        let mut mutant = image.clone();
        mutant[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(&path, &mutant).unwrap();
        says(&refusal(&path, None, false), &["bad.qcow2", words]);
        assert!(std::fs::read(&path).unwrap() == mutant, "{words}: the image changed");
    }
}

#[test]
fn image_of_a_killed_writer_opens_again() {
    for options in ["", "cluster_size=4096,refcount_bits=1", "refcount_bits=64"] {
        let scratch = Scratch::new();
        let path = scratch.create("live.qcow2", "qcow2", options, "1G");
        let mut disk = open_as(&path, None, false).unwrap();
        // In the parts of many L2 tables; nothing is flushed.
        for part in 0..8u64 {
            disk.write_at(part << 27, &[part as u8 + 1; 4096]).unwrap();
        }
        let killed = scratch.path("killed.qcow2");
        std::fs::copy(&path, &killed).unwrap();
        drop(disk);
        let mut again = open_as(&killed, None, false).unwrap();
        let mut bytes = [0; 4096];
        for part in 0..8u64 {
            // What was not flushed may be lost, but nothing else is there.
            again.read_at(part << 27, &mut bytes).unwrap();
            assert!(bytes == [part as u8 + 1; 4096] || bytes == [0; 4096], "{options}");
            again.write_at((part << 27) + 8192, &[0x77; 4096]).unwrap();
        }
        again.flush().unwrap();
        drop(again);
        drop(open_as(&killed, None, false).unwrap());
        // 0: nothing is wrong; 3: clusters are leaked, which costs room alone.
        let check = std::process::Command::new("qemu-img").arg("check").arg(&killed).output();
        let check = check.unwrap();
        assert!(matches!(check.status.code(), Some(0 | 3)), "{options}: {check:?}");
    }
}
