//! Overlays under a disk in use: the switch, the copy, the commit, and commits cut short
//! (mechanisms C2, C3, C7, C8, C9); qemu-img is the judge.

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Random, Scratch, exercise, open_as, open_rw};
use disk::{
    CommitState, DiskError, DiskIo, Format, Marker, Overlay, Parent, Retained, copy_disk,
    empty_overlay,
};
use journal::{DiskOperation, DiskRequest};

const SIZE: usize = 8 << 20;

/// One test at a time: a tool that another test starts holds every lock from its fork to its exec.
static TURN: Mutex<()> = Mutex::new(());

/// A disk of random contents.
struct Lab {
    scratch: Scratch,
    parent: Parent,
    model: Vec<u8>,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    fn new(seed: u64, format: Format, options: &str) -> Lab {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = Scratch::new();
        let path = scratch.create("p.img", format.name(), options, "8M");
        let mut model = vec![0; SIZE];
        let mut disk = open_as(&path, Some(format), false).unwrap();
        exercise(disk.as_mut(), &mut model, &mut Random(seed), 200);
        let parent = Parent { path, format, size: SIZE as u64 };
        Lab { scratch, parent, model, _turn }
    }

    fn open(&self) -> DiskIo {
        DiskIo::spawn(open_as(&self.parent.path, Some(self.parent.format), false).unwrap())
    }

    fn overlay(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    fn contents(&self, name: &str, format: Format) -> Vec<u8> {
        self.scratch.contents(name, format.name())
    }
}

fn write(io: &DiskIo, id: u64, offset: usize, data: &[u8], model: &mut [u8]) {
    model[offset..offset + data.len()].copy_from_slice(data);
    let operation = DiskOperation::Write { offset: offset as u64, data: data.to_vec() };
    io.submit(DiskRequest { id, operation });
}

fn scribble(io: &DiskIo, random: &mut Random, ids: &mut u64, count: u64, model: &mut [u8]) {
    for _ in 0..count {
        let len = 512 * (1 + random.below(64) as usize);
        let offset = 512 * random.below(((SIZE - len) / 512) as u64) as usize;
        write(io, *ids, offset, &random.bytes(len), model);
        io.wait(*ids).result.unwrap();
        *ids += 1;
    }
}

fn commit(io: &DiskIo, retained: &Retained, overlay: &Path) -> disk::CommitWatch {
    let parent = retained.reclaim().unwrap();
    io.handle().commit(overlay.into(), parent, retained.parent().path)
}

fn finish(io: &DiskIo, retained: &Retained, watch: &disk::CommitWatch) {
    let end = Instant::now() + Duration::from_secs(20);
    while watch.state() == CommitState::Copying {
        assert!(Instant::now() < end, "the commit does not come to its end");
        std::thread::sleep(Duration::from_millis(1));
    }
    retained.sync().unwrap();
    watch.may_finish();
    io.handle().wake();
    while watch.state() == CommitState::CaughtUp {
        assert!(Instant::now() < end, "the commit does not finish");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(watch.state(), CommitState::Done, "{:?}", watch.take_failure());
}

const KINDS: [(Format, &str); 4] = [
    (Format::Raw, ""),
    (Format::Qcow2, ""),
    (Format::Qcow2, "cluster_size=4096"),
    (Format::Qcow2, "cluster_size=2M"),
];

#[test]
fn switch_keeps_the_parent_and_the_disk_goes_on_in_the_overlay() {
    for (seed, (format, options)) in (0..).zip(KINDS) {
        let mut lab = Lab::new(seed, format, options);
        let (io, path) = (lab.open(), lab.overlay("o.qcow2"));
        let overlay = Overlay::create(&path, &lab.parent).unwrap();
        let before = Random(7).bytes(4096);
        write(&io, 1, 8192, &before, &mut lab.model);
        let switched = io.switch(overlay, vec![]);
        let kept = lab.model.clone();
        write(&io, 2, 8192 + 1024, &[9; 512], &mut lab.model);
        let (retained, _) = switched.wait().unwrap();
        retained.share().unwrap();
        let mut ids = 3;
        scribble(&io, &mut Random(seed + 100), &mut ids, 100, &mut lab.model);
        assert!(lab.contents("p.img", format) == kept, "{format:?} {options}");
        io.shutdown().unwrap();
        lab.scratch.check_clean("o.qcow2");
        assert!(lab.contents("o.qcow2", Format::Qcow2) == lab.model, "{format:?} {options}");
    }
}

#[test]
fn reads_in_flight_are_given_to_the_checkpoint_as_well() {
    let mut lab = Lab::new(3, Format::Qcow2, "");
    let (io, path) = (lab.open(), lab.overlay("o.qcow2"));
    write(&io, 1, 0, &[1; 512], &mut lab.model);
    for id in [2, 3] {
        io.submit(DiskRequest { id, operation: DiskOperation::Read { offset: 0, len: 512 } });
    }
    let fetched = io.wait(2).result.unwrap();
    let overlay = Overlay::create(&path, &lab.parent).unwrap();
    let switched = io.switch(overlay, vec![3]);
    write(&io, 4, 0, &[4; 512], &mut lab.model);
    let machine = io.wait(3).result.unwrap();
    let (_, witnessed) = switched.wait().unwrap();
    assert_eq!(witnessed.len(), 1);
    assert_eq!((witnessed[0].id, witnessed[0].result.clone()), (3, Ok(machine.clone())));
    assert_eq!((fetched, machine), (vec![1; 512], vec![1; 512]));
}

#[test]
fn commit_while_the_disk_is_used_loses_nothing() {
    for (seed, (format, options)) in (10..).zip(KINDS) {
        let mut lab = Lab::new(seed, format, options);
        let (io, mut ids, mut random) = (lab.open(), 1, Random(seed));
        for round in 0..4 {
            let path = lab.overlay("o.qcow2");
            Marker { overlay: path.clone(), keep: false }.write(&lab.parent.path).unwrap();
            let overlay = Overlay::create(&path, &lab.parent).unwrap();
            let switched = io.switch(overlay, vec![]);
            let kept = lab.model.clone();
            scribble(&io, &mut random, &mut ids, 40, &mut lab.model);
            let (retained, _) = switched.wait().unwrap();
            retained.share().unwrap();
            let copy = format!("c{round}.qcow2");
            copy_disk(&retained, &lab.scratch.path(&copy), &mut |_| true).unwrap();
            lab.scratch.check_clean(&copy);
            assert!(lab.contents(&copy, Format::Qcow2) == kept);
            let watch = commit(&io, &retained, &path);
            scribble(&io, &mut random, &mut ids, 60, &mut lab.model);
            let zeroes = DiskOperation::WriteZeroes { offset: 70_144, len: 200_192 };
            io.submit(DiskRequest { id: ids, operation: zeroes });
            lab.model[70_144..270_336].fill(0);
            io.wait(ids).result.unwrap();
            ids += 1;
            finish(&io, &retained, &watch);
            assert!(!path.exists() && Marker::read(&lab.parent.path).unwrap().is_none());
            scribble(&io, &mut random, &mut ids, 10, &mut lab.model);
        }
        io.shutdown().unwrap();
        if format == Format::Qcow2 {
            lab.scratch.check_clean("p.img");
        }
        assert!(lab.contents("p.img", format) == lab.model, "{format:?} {options}");
    }
}

#[test]
fn commit_cut_short_is_finished_by_whoever_opens_the_image_next() {
    for at in 0..6u64 {
        let mut lab = Lab::new(20 + at, Format::Qcow2, "");
        let (io, path) = (lab.open(), lab.overlay("o.qcow2"));
        Marker { overlay: path.clone(), keep: false }.write(&lab.parent.path).unwrap();
        let switched = io.switch(Overlay::create(&path, &lab.parent).unwrap(), vec![]);
        let (retained, _) = switched.wait().unwrap();
        let mut ids = 1;
        scribble(&io, &mut Random(at), &mut ids, 50, &mut lab.model);
        let watch = (at > 0).then(|| commit(&io, &retained, &path));
        scribble(&io, &mut Random(at + 9), &mut ids, 10 * at, &mut lab.model);
        drop(watch);
        io.shutdown().unwrap();
        drop(retained);
        assert!(path.exists());
        // For reading, the overlay answers; for writing, the commit is finished first.
        let read = open_as(&lab.parent.path, Some(Format::Qcow2), true).unwrap();
        drop(read);
        drop(open_as(&lab.parent.path, Some(Format::Qcow2), false).unwrap());
        assert!(!path.exists() && Marker::read(&lab.parent.path).unwrap().is_none());
        assert!(lab.contents("p.img", Format::Qcow2) == lab.model, "{at}");
        lab.scratch.check_clean("p.img");
    }
}

#[test]
fn overlay_that_was_never_whole_is_forgotten() {
    let lab = Lab::new(31, Format::Qcow2, "");
    let (overlay, draft) = (lab.overlay("o.qcow2"), lab.overlay("o.qcow2.new"));
    // As a crash leaves it while the overlay is made: its own name is not there yet.
    Marker { overlay: overlay.clone(), keep: false }.write(&lab.parent.path).unwrap();
    std::fs::write(&draft, b"QFI\xfb").unwrap();
    drop(open_as(&lab.parent.path, Some(Format::Qcow2), false).unwrap());
    assert!(!draft.exists() && Marker::read(&lab.parent.path).unwrap().is_none());
    // One that is in the way is replaced; a whole one is not.
    std::fs::write(&draft, b"QFI\xfb").unwrap();
    let made = Overlay::create(&overlay, &lab.parent).unwrap();
    assert!(!draft.exists() && overlay.exists());
    assert!(Overlay::create(&overlay, &lab.parent).is_err());
    assert!(!draft.exists() && overlay.exists());
    drop(made);
}

#[test]
fn kept_parent_is_not_written_without_being_told() {
    let lab = Lab::new(30, Format::Qcow2, "");
    let overlay = lab.overlay("o.qcow2");
    Marker { overlay: overlay.clone(), keep: true }.write(&lab.parent.path).unwrap();
    let error = open_as(&lab.parent.path, Some(Format::Qcow2), false).err().unwrap();
    assert!(matches!(&error, DiskError::Kept { overlay: named, .. } if *named == overlay));
    drop(open_as(&lab.parent.path, Some(Format::Qcow2), true).unwrap());
    let marker = Marker::path_for(&lab.parent.path);
    for damage in ["", "doppel-parent 1\nkeep\n", "doppel-parent 2\nkeep\nx\n", "\u{1}\n"] {
        std::fs::write(&marker, damage).unwrap();
        let error = open_as(&lab.parent.path, Some(Format::Qcow2), false).err().unwrap();
        assert!(matches!(error, DiskError::Marker { .. }), "{damage:?}: {error}");
    }
}

#[test]
fn locks_are_right_at_each_step() {
    let lab = Lab::new(40, Format::Qcow2, "");
    let (io, path) = (lab.open(), lab.overlay("o.qcow2"));
    let may = |path: &Path, read_only| open_as(path, Some(Format::Qcow2), read_only).is_ok();
    assert!(!may(&lab.parent.path, true) && !may(&lab.parent.path, false));
    let switched = io.switch(Overlay::create(&path, &lab.parent).unwrap(), vec![]);
    let (retained, _) = switched.wait().unwrap();
    assert!(!may(&lab.parent.path, true), "not shared yet");
    retained.share().unwrap();
    assert!(may(&lab.parent.path, true) && !may(&lab.parent.path, false));
    assert!(!may(&path, true) && !may(&path, false));
    let reader = open_as(&lab.parent.path, Some(Format::Qcow2), true).unwrap();
    assert!(matches!(retained.reclaim(), Err(DiskError::InUse { .. })));
    assert!(may(&lab.parent.path, true), "a reader's lock again");
    drop(reader);
    let watch = commit(&io, &retained, &path);
    assert!(!may(&lab.parent.path, true));
    finish(&io, &retained, &watch);
    drop(retained);
    assert!(!may(&lab.parent.path, true) && !may(&lab.parent.path, false));
    io.shutdown().unwrap();
    assert!(may(&lab.parent.path, false));
}

#[test]
fn overlay_for_a_restore_reads_as_its_parent() {
    let mut lab = Lab::new(50, Format::Raw, "");
    let path = lab.overlay("r.qcow2");
    empty_overlay(&path, &lab.parent, Path::new("p.img")).unwrap();
    assert!(lab.contents("r.qcow2", Format::Qcow2) == lab.model);
    let mut disk = open_rw(&path);
    disk.write_at(512, &[5; 1024]).unwrap();
    lab.model[512..1536].fill(5);
    drop(disk);
    lab.scratch.check_clean("r.qcow2");
    assert!(lab.contents("r.qcow2", Format::Qcow2) == lab.model);
    assert!(empty_overlay(&path, &lab.parent, Path::new("p.img")).is_err(), "there already");
}
