//! A whole machine in virtual time alone that is kept at many points, and what was kept compared
//! with it, byte for byte and in what it goes on to do, on either engine (mechanisms C3 to C8).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use checkpoint::{
    Checkpoint, DiskKept, DiskPolicy, DiskReads, Manifest, Progress, SaveOptions, Saver, Summary,
    capture, save_now,
};
use disk::{DiskIo, DiskSpec, Format, Overlay, empty_overlay};
use types::Gpa;

use crate::random::Random;
use crate::scratch::Scratch;
use crate::{Ended, Guest, images};

const MEMORY: u64 = 128 << 20;
/// Branches that original and restored machine run on before they are compared.
pub const ON: u64 = 400_000;

/// A machine whose one disk gets an overlay at every checkpoint.
pub struct Original {
    /// The machine.
    pub guest: Guest,
    /// Where its checkpoints are.
    pub scratch: Scratch,
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
    /// Boots a mini guest.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn boot(engine: &str, cmdline: &str) -> Original {
        let scratch = Scratch::new();
        let top = images::create(&scratch, "base.raw", "raw", "16M");
        let disks = vec![open(&top, Format::Raw)];
        let mut guest = Guest::on(engine, MEMORY, disks).unwrap();
        guest.boot_mini("6.1", cmdline).unwrap();
        Original { guest, scratch, top, format: Format::Raw, serial: 0 }
    }

    /// Runs until the work begins.
    ///
    /// # Panics
    /// When the guest ends.
    pub fn begin(&mut self) {
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

    /// Takes a checkpoint while the machine runs on for [`ON`] branches.
    ///
    /// # Panics
    /// When that fails.
    pub fn checkpoint(&mut self, name: &str, options: SaveOptions) -> Taken {
        let guest = &mut self.guest;
        let folder = self.scratch.path(name);
        self.serial += 1;
        let over = self.scratch.path(&format!("live{}.qcow2", self.serial));
        let size = guest.machine.spec().disks[0].size;
        let parent = disk::Parent { path: self.top.clone(), format: self.format, size };
        let overlay = Overlay::create(&over, &parent).unwrap();
        let (pages, progress) = (guest.machine.ram().pages(), Arc::new(Progress::default()));
        let (saver, cow) = Saver::prepare(&folder, &pages, options, progress).unwrap();
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

/// A checkpoint that was taken.
pub struct Taken {
    /// Its folder.
    pub folder: PathBuf,
    /// What was saved.
    pub summary: Summary,
    /// The epoch that began then.
    pub epoch: memory::Epoch,
    stop_us: u128,
    in_flight: usize,
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

/// Kernel command line of a guest that computes and uses its disk.
pub const WORK: &str = "quiet doppel.run=echo%20begins;while%20:;do%20\
    dd%20if=/dev/urandom%20of=/dev/vda%20bs=64k%20count=64%20oflag=direct%20conv=fsync;\
    dd%20if=/dev/vda%20of=/dev/null%20bs=16k%20iflag=direct;ls%20-lR%20/sys%20|%20md5sum;done";

/// Restores a checkpoint, saves it again, runs on, and compares with the original.
///
/// # Panics
/// When they differ.
pub fn compare(original: &mut Original, taken: &Taken, engine: &str, eagerly: bool) {
    let mut guest = taken.restore(&original.scratch, engine, eagerly);
    let point = guest.machine.point();
    let manifest = &taken.summary.manifest;
    assert_eq!(point, manifest.point.into());
    // Save, restore, save: the same bytes.
    let again = original.scratch.path("again");
    let _ = std::fs::remove_dir_all(&again);
    let disks = manifest.disks.clone();
    save_now(&mut guest.machine, &mut guest.outside, &again, disks).unwrap();
    if guest.outside.reads.is_empty() && manifest.parent.is_none() {
        assert_same(&taken.folder, &again);
    }
    let until = manifest.point.branches + ON;
    assert_eq!(guest.run(until), taken.ended, "at {point}");
    let mine = guest.machine.section_hashes();
    let theirs = original.guest.machine.section_hashes();
    for (whose, outside) in [("restored", &guest.outside), ("original", &original.guest.outside)] {
        let (failures, why) = outside.disks[0].failures();
        assert_eq!(failures, 0, "the host failed the {whose} machine's disk: {why:?}");
    }
    let differ: Vec<_> = mine.iter().zip(&theirs).filter(|(a, b)| a != b).collect();
    assert!(
        mine == theirs,
        "{engine}, from {point}, on to {until}: {differ:?}; {}",
        differences(&guest, &original.guest)
    );
}

/// Where two machines are, and which of their pages differ first, for who has to find out why.
fn differences(mine: &Guest, theirs: &Guest) -> String {
    let [one, other] = [mine, theirs].map(|guest| guest.machine.ram());
    let pages = (0..MEMORY / 4096).filter(|page| {
        let mut bytes = [[0; 4096]; 2];
        for (ram, bytes) in [one, other].iter().zip(&mut bytes) {
            ram.read(Gpa(page * 4096), bytes).expect("in RAM");
        }
        bytes[0] != bytes[1]
    });
    let pages: Vec<u64> = pages.take(20).collect();
    format!("{} and {}, pages {pages:x?}", mine.machine.point(), theirs.machine.point())
}

/// Two checkpoints are of the same machine: all bytes but their ids are the same, as are their
/// checksums of each page where memory is not packed alike.
///
/// # Panics
/// When they are not.
pub fn assert_same(one: &Path, other: &Path) {
    let manifests = [one, other].map(|folder| Manifest::read(folder).unwrap());
    assert_eq!(manifests[0].content, manifests[1].content, "{one:?}");
    let [one_id, other_id] = manifests.each_ref().map(|manifest| manifest.id);
    let files: &[&str] = match manifests.each_ref().map(|manifest| &manifest.memory.packed) {
        [None, None] => &["sections.bin", "pages.idx"],
        _ => &["sections.bin"],
    };
    for name in files {
        let bytes = [(one, one_id), (other, other_id)].map(|(folder, id)| {
            let mut bytes = std::fs::read(folder.join(name)).unwrap();
            assert_eq!(bytes[16..32], id.0);
            bytes[16..32].fill(0);
            // The checksum at the end is of the id too.
            bytes.truncate(bytes.len() - 8);
            bytes
        });
        assert!(bytes[0] == bytes[1], "{one:?}/{name} is not as in {other:?}");
    }
}

/// Checkpoints at `count` random points of a run, each compared.
///
/// # Panics
/// When one is not what it is to be.
pub fn random_points(engine: &str, other: &str, seed: u64, count: u32) {
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
        let packed = random.below(3) == 0;
        let options = SaveOptions { copies_max, packed, ..SaveOptions::default() };
        let taken = original.checkpoint(&format!("c{number}"), options);
        let on = if random.below(2) == 0 { engine } else { other };
        compare(&mut original, &taken, on, random.below(4) == 0);
        in_flight += taken.in_flight;
        worst_us = worst_us.max(taken.stop_us);
        std::fs::remove_dir_all(&taken.folder).unwrap();
    }
    println!(
        "{engine}, {other}: {count} points, {in_flight} requests in flight, longest stop \
         {worst_us} us"
    );
    assert!(in_flight > 0, "no checkpoint had a disk request in flight");
}
