//! Moments of a disk in use, found again afterwards.

use std::path::{Path, PathBuf};

use disk::{BeforeImages, DiskIo, DiskSpec, Format, Parent, image_of_before};
use journal::{DiskOperation, DiskRequest};

const SIZE: u64 = (1 << 20) + 512;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("doppel-before-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    path
}

fn open(path: &Path, format: Format, read_only: bool) -> Box<dyn disk::BlockBackend> {
    disk::open(DiskSpec { path: path.into(), format: Some(format), read_only }).unwrap()
}

fn whole(path: &Path, format: Format) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    open(path, format, true).read_at(0, &mut bytes).unwrap();
    bytes
}

fn submit(io: &DiskIo, id: u64, operation: DiskOperation) {
    io.submit(DiskRequest { id, operation });
}

/// Changes here and there, of all kinds, the last bytes of the disk included.
fn change(io: &DiskIo, round: u64) {
    let mut random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for n in 0..30 {
        let offset = next() % (SIZE / 512) * 512;
        let len = (512 * (1 + next() % 200)).min(SIZE - offset);
        let operation = match next() % 4 {
            0 => DiskOperation::Discard { offset, len },
            1 => DiskOperation::WriteZeroes { offset, len },
            _ => DiskOperation::Write { offset, data: vec![next() as u8; len as usize] },
        };
        submit(io, round * 1000 + n, operation);
    }
    let data = vec![round as u8; 512];
    submit(io, round * 1000 + 999, DiskOperation::Write { offset: SIZE - 512, data });
    for n in (0..30).chain([999]) {
        io.wait(round * 1000 + n).result.unwrap();
    }
}

#[test]
fn each_moment_is_what_the_disk_was_and_old_ones_can_be_forgotten() {
    let dir = folder("moments");
    let path = dir.join("d.raw");
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 512) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let io = DiskIo::spawn(open(&path, Format::Raw, false));
    let (mut moments, mut kept) = (Vec::new(), Vec::new());
    for round in 1..=4 {
        io.drain();
        moments.push(std::fs::read(&path).unwrap());
        let before = BeforeImages::new(&dir).unwrap();
        // What is in flight is in the disk of the moment.
        kept.push(before.clone());
        assert!(io.preserve(before, Vec::new()).wait().unwrap().is_empty());
        change(&io, round);
        assert!(kept.last().unwrap().size() > 0);
    }
    io.shutdown().unwrap();
    let parent = Parent { path: path.clone(), format: Format::Raw, size: SIZE };
    for (first, moment) in moments.iter().enumerate() {
        let image = dir.join(format!("m{first}.qcow2"));
        image_of_before(&image, &parent, &kept[first..]).unwrap();
        assert!(whole(&image, Format::Qcow2) == *moment, "moment {first}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn reads_in_flight_at_a_moment_are_told_with_what_they_read() {
    let dir = folder("reads");
    let path = dir.join("d.raw");
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let io = DiskIo::spawn(open(&path, Format::Raw, false));
    submit(&io, 1, DiskOperation::Read { offset: 0, len: 512 });
    submit(&io, 2, DiskOperation::Write { offset: 0, data: vec![8; 512] });
    let before = BeforeImages::new(&dir).unwrap();
    let moment = io.preserve(before.clone(), vec![1]);
    submit(&io, 3, DiskOperation::Write { offset: 0, data: vec![9; 512] });
    assert_eq!(io.wait(1).result.unwrap(), vec![7; 512]);
    let reads = moment.wait().unwrap();
    assert_eq!((reads.len(), reads[0].id), (1, 1));
    assert_eq!(reads[0].result, Ok(vec![7; 512]));
    io.wait(2).result.unwrap();
    io.wait(3).result.unwrap();
    io.shutdown().unwrap();
    let (image, parent) = (dir.join("m"), Parent { path, format: Format::Raw, size: SIZE });
    image_of_before(&image, &parent, &[before]).unwrap();
    assert_eq!(whole(&image, Format::Qcow2)[..513], [vec![8; 512], vec![7]].concat());
    std::fs::remove_dir_all(dir).unwrap();
}
