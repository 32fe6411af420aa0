//! Checkpoints of whole machines, in virtual time alone: what is restored is what was captured,
//! byte for byte, and goes on as the original does, on either engine (mechanisms C3 to C8).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use checkpoint::{
    Checkpoint, CheckpointError, DiskKept, DiskPolicy, DiskReads, Parent, Progress, Saver, Since,
    Summary, capture, save_now,
};
use disk::{DiskIo, DiskSpec, Format, Overlay, empty_overlay};
use whole::random::Random;
use whole::scratch::Scratch;
use whole::{Ended, Guest, images};

const MEMORY: u64 = 128 << 20;
/// Branches that original and restored machine run on before they are compared.
const ON: u64 = 400_000;

/// A machine whose one disk gets an overlay at every checkpoint.
struct Original {
    guest: Guest,
    scratch: Scratch,
    /// The image on top.
    top: PathBuf,
    format: Format,
    serial: u32,
}

fn open(path: &Path, format: Format) -> DiskIo {
    let spec = DiskSpec { path: path.into(), format: Some(format), read_only: false };
    DiskIo::spawn(disk::open(spec).unwrap())
}

impl Original {
    fn boot(engine: &str, cmdline: &str) -> Original {
        let scratch = Scratch::new();
        let top = images::create(&scratch, "base.raw", "raw", "16M");
        let disks = vec![open(&top, Format::Raw)];
        let mut guest = Guest::on(engine, MEMORY, disks).unwrap();
        guest.boot_mini("6.1", cmdline).unwrap();
        Original { guest, scratch, top, format: Format::Raw, serial: 0 }
    }

    /// Runs until the work begins.
    fn begin(&mut self) {
        while !self.guest.outside.console().contains("begins") {
            let next = self.guest.machine.branches() + 500_000;
            assert_eq!(self.guest.run(next), Ended::Reached, "{}", self.guest.outside.console());
        }
    }

    /// Runs until a disk request is in flight, or for long enough.
    fn seek_disk_request(&mut self) {
        for _ in 0..1000 {
            if !self.guest.machine.outstanding().is_empty() {
                return;
            }
            let next = self.guest.machine.branches() + 1500;
            self.guest.run(next);
        }
    }

    /// Takes a checkpoint while the machine runs on for `ON` branches.
    fn checkpoint(&mut self, name: &str, copies_max: usize, since: Option<Since>) -> Taken {
        let guest = &mut self.guest;
        let folder = self.scratch.path(name);
        self.serial += 1;
        let over = self.scratch.path(&format!("live{}.qcow2", self.serial));
        let size = guest.machine.spec().disks[0].size;
        let parent = disk::Parent { path: self.top.clone(), format: self.format, size };
        let overlay = Overlay::create(&over, &parent).unwrap();
        let (pages, progress) = (guest.machine.ram().pages(), Arc::new(Progress::default()));
        let (saver, cow) =
            Saver::prepare(&folder, &pages, copies_max, since, false, progress.clone()).unwrap();
        let start = Instant::now();
        let captured = capture(&mut guest.machine, &mut guest.outside, cow);
        let reads = captured.reads.get(&0).cloned().unwrap_or_default();
        let in_flight = guest.machine.outstanding().len();
        let switched = guest.outside.disks[0].switch(overlay, reads);
        let stop_us = start.elapsed().as_micros();
        let epoch = captured.epoch;
        let thread = std::thread::spawn(move || {
            let saved = saver.save_memory().unwrap();
            let (retained, completions) = switched.wait().unwrap();
            retained.share().unwrap();
            let reads = completions.into_iter();
            let reads = reads.map(|read| (read.id, read.result.ok().map(Into::into))).collect();
            let image = retained.parent();
            let disk = DiskKept {
                policy: DiskPolicy::Kept,
                path: image.path,
                format: image.format.name().into(),
                size_bytes: image.size,
                file_size: 0,
                modified_ns: 0,
            };
            saved.finish(&captured, &[DiskReads { reads }], vec![disk], serde_json::Value::Null)
        });
        let until = guest.machine.branches() + ON;
        let ended = guest.run(until);
        let summary = thread.join().unwrap().unwrap();
        (self.top, self.format) = (over, Format::Qcow2);
        Taken { folder, summary, stop_us, in_flight, epoch, ended }
    }
}

struct Taken {
    folder: PathBuf,
    summary: Summary,
    stop_us: u128,
    in_flight: usize,
    epoch: memory::Epoch,
    ended: Ended,
}

impl Taken {
    /// The machine as it was, with a disk of its own.
    fn restore(&self, scratch: &Scratch, engine: &str, eagerly: bool) -> Guest {
        let checkpoint = Checkpoint::open(&self.folder).unwrap();
        let kept = &checkpoint.manifest().disks[0];
        let format = Format::named(&kept.format).unwrap();
        let parent = disk::Parent { path: kept.path.clone(), format, size: kept.size_bytes };
        let own = scratch.path("restored.qcow2");
        let _ = std::fs::remove_file(&own);
        empty_overlay(&own, &parent, &kept.path).unwrap();
        let restored =
            if eagerly { checkpoint.restore_eagerly() } else { checkpoint.restore() }.unwrap();
        Guest::restored(restored, vec![open(&own, Format::Qcow2)], engine).unwrap()
    }
}

const WORK: &str = "quiet doppel.run=echo%20begins;while%20:;do%20\
    dd%20if=/dev/urandom%20of=/dev/vda%20bs=64k%20count=64%20oflag=direct%20conv=fsync;\
    dd%20if=/dev/vda%20of=/dev/null%20bs=16k%20iflag=direct;ls%20-lR%20/sys%20|%20md5sum;done";

/// Restores a checkpoint, saves it again, runs on, and compares with the original.
fn compare(original: &mut Original, taken: &Taken, engine: &str, eagerly: bool) {
    let mut guest = taken.restore(&original.scratch, engine, eagerly);
    let point = guest.machine.point();
    assert_eq!(point, taken.summary.manifest.point.into());
    // Save, restore, save: the same bytes.
    let again = original.scratch.path("again");
    let _ = std::fs::remove_dir_all(&again);
    let disks = taken.summary.manifest.disks.clone();
    let summary = save_now(&mut guest.machine, &mut guest.outside, &again, disks).unwrap();
    if guest.outside.reads.is_empty() && taken.summary.manifest.parent.is_none() {
        assert_eq!(summary.manifest.content, taken.summary.manifest.content, "at {point}");
    }
    let until = taken.summary.manifest.point.branches + ON;
    assert_eq!(guest.run(until), taken.ended, "at {point}");
    let mine = guest.machine.section_hashes();
    let theirs = original.guest.machine.section_hashes();
    let differ: Vec<_> = mine.iter().zip(&theirs).filter(|(a, b)| a != b).collect();
    assert!(mine == theirs, "{engine}, from {point}, on to {until}: {differ:?}");
}

/// Checkpoints at `count` random points of a run, each compared.
fn random_points(engine: &str, other: &str, seed: u64, count: u32) {
    let mut random = Random(seed);
    let mut original = Original::boot(engine, WORK);
    let (mut in_flight, mut worst_us) = (0, 0);
    original.begin();
    for number in 0..count {
        let next = original.guest.machine.branches() + random.below(900_000);
        original.guest.run(next);
        if number % 2 == 0 {
            original.seek_disk_request();
        }
        let copies_max = [0, 3, 1 << 20][random.below(3) as usize];
        let taken = original.checkpoint(&format!("c{number}"), copies_max, None);
        let on = if random.below(2) == 0 { engine } else { other };
        compare(&mut original, &taken, on, random.below(4) == 0);
        in_flight += taken.in_flight;
        worst_us = worst_us.max(taken.stop_us);
        std::fs::remove_dir_all(&taken.folder).unwrap();
    }
    eprintln!("{engine}, {other}: {in_flight} requests in flight, longest stop {worst_us} us");
    assert!(in_flight > 0, "no checkpoint had a disk request in flight");
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn restored_machine_goes_on_as_the_original_from_the_translator() {
    random_points("translate", "interp", 0x9e37_79b9, 40);
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn restored_machine_goes_on_as_the_original_from_the_interpreter() {
    random_points("interp", "translate", 0x1234_5678, 12);
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn chain_of_changes_restores_as_each_of_its_checkpoints() {
    let mut original = Original::boot("translate", WORK);
    original.begin();
    let mut taken = vec![original.checkpoint("c0", 1 << 20, None)];
    compare(&mut original, &taken[0], "translate", false);
    for number in 1..5 {
        let next = original.guest.machine.branches() + 2_000_000;
        original.guest.run(next);
        let below = &taken[number - 1];
        let parent = Parent {
            id: below.summary.manifest.id,
            path: below.folder.file_name().unwrap().into(),
        };
        let since = Since { epoch: below.epoch, parent };
        let one = original.checkpoint(&format!("c{number}"), 16, Some(since));
        assert!(one.summary.manifest.memory.pages < taken[0].summary.manifest.memory.pages);
        for eagerly in [false, true] {
            compare(&mut original, &one, "translate", eagerly);
        }
        taken.push(one);
    }
    let last = taken.last().unwrap();
    Checkpoint::open(&last.folder).unwrap().verify(&mut || ()).unwrap();
    let removed = checkpoint::prune(&last.folder, &mut || ()).unwrap();
    assert_eq!(removed.len(), 4);
    assert!(!taken[0].folder.exists());
    compare(&mut original, last, "interp", false);
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn damaged_and_swapped_checkpoints_are_refused_by_name() {
    let mut original = Original::boot("translate", "quiet doppel.end=shell");
    original.guest.run(8_000_000);
    let one = original.checkpoint("one", 1 << 20, None);
    let other = original.checkpoint("other", 1 << 20, None);
    let refusal = |what: &str| {
        let opened = Checkpoint::open(&one.folder).and_then(|c| c.restore().map(drop));
        match opened {
            Err(CheckpointError::Damaged { path, .. }) => assert!(
                path.ends_with(what) || path.ends_with("manifest.json"),
                "{path:?} for {what}"
            ),
            other => panic!("{what}: {:?}", other.err()),
        }
    };
    for file in ["sections.bin", "pages.idx", "memory.img", "manifest.json"] {
        let path = one.folder.join(file);
        let kept = std::fs::read(&path).unwrap();
        std::fs::copy(other.folder.join(file), &path).unwrap();
        if file == "manifest.json" {
            refusal("pages.idx")
        } else {
            refusal(file)
        }
        std::fs::write(&path, &kept[..kept.len() - 1]).unwrap();
        refusal(file);
        std::fs::write(&path, &kept).unwrap();
    }
    Checkpoint::open(&one.folder).unwrap().verify(&mut || ()).unwrap();
    // A flipped bit of memory is found where memory is read through.
    let path = one.folder.join("memory.img");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[at] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let checkpoint = Checkpoint::open(&one.folder).unwrap();
    for result in [checkpoint.verify(&mut || ()), checkpoint.restore_eagerly().map(drop)] {
        assert!(matches!(result, Err(CheckpointError::Damaged { .. })));
    }
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn cancelled_checkpoint_leaves_nothing_and_costs_no_copies() {
    let mut original = Original::boot("translate", "quiet doppel.end=shell");
    original.guest.run(8_000_000);
    let guest = &mut original.guest;
    let folder = original.scratch.path("c");
    let (pages, progress) = (guest.machine.ram().pages(), Arc::new(Progress::default()));
    let (saver, cow) =
        Saver::prepare(&folder, &pages, 1 << 20, None, false, progress.clone()).unwrap();
    capture(&mut guest.machine, &mut guest.outside, cow);
    progress.cancelled.store(true, Ordering::Relaxed);
    assert!(matches!(saver.save_memory().err(), Some(CheckpointError::Cancelled)));
    let names = std::fs::read_dir(folder.parent().unwrap()).unwrap();
    assert!(names.into_iter().all(|entry| !entry.unwrap().path().starts_with(&folder)));
    let until = guest.machine.branches() + ON;
    guest.run(until);
    assert_eq!(progress.copied.load(Ordering::Relaxed), 0);
}
