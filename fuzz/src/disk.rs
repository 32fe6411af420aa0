//! Disk images: `disk::open` of a hostile qcow2 or raw file, then a few requests.
//!
//! Input: format, read-only, number of requests, the requests, the file. Whatever happens, there
//! is no panic, the file does not grow past reason, and a refused file is as it was.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use disk::{BlockBackend, DiskSpec, Format, open};

use crate::input::Input;

const REQUESTS_MAX: u8 = 16;
const REQUEST_SIZE: u64 = 1 << 17;
/// A request may allocate a table besides its clusters, of 2 MiB at most.
const GROWTH_MAX: u64 = 256 << 20;

/// A folder for this process and thread, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let name = format!("doppel-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

thread_local! {
    static SCRATCH: OnceCell<Scratch> = const { OnceCell::new() };
}

/// Runs one input.
pub fn run(data: &[u8]) {
    SCRATCH.with(|scratch| run_in(&scratch.get_or_init(Scratch::new).0, data));
}

fn run_in(folder: &Path, data: &[u8]) {
    let mut input = Input(data);
    let (name, format) = input.pick(&[
        ("disk.qcow2", Some(Format::Qcow2)),
        ("disk.qcow2", None),
        ("disk.img", None),
        ("disk.img", Some(Format::Raw)),
    ]);
    let read_only = input.u8() & 1 != 0;
    let count = usize::from(input.u8() % (REQUESTS_MAX + 1));
    let requests = input.take(count * 5);
    let image = input.rest();
    let path = folder.join(name);
    std::fs::write(&path, image).expect("room for a temporary file");
    let spec = DiskSpec { path: path.clone(), format, read_only };
    match open(spec) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(std::fs::read(&path).is_ok_and(|now| now == image), "a refused file changed");
        }
        Ok(mut disk) => {
            requests.chunks(5).for_each(|request| serve(disk.as_mut(), Input(request)));
            let _ = disk.flush();
        }
    }
    let len = std::fs::metadata(&path).map_or(0, |file| file.len());
    assert!(len <= image.len() as u64 + GROWTH_MAX, "the file grew to {len}");
    let _ = std::fs::remove_file(&path);
}

/// One request; errors are the disk's good right.
fn serve(disk: &mut dyn BlockBackend, mut request: Input<'_>) {
    let kind = request.u8();
    let size = disk.size();
    assert_eq!(size % 512, 0);
    let at = u64::from(request.u16()) << 9;
    // Near the start, near the end, or anywhere.
    let offset = match kind >> 6 {
        0 => at,
        1 => size.saturating_sub(at),
        _ => ((u128::from(at) * u128::from(size)) >> 25) as u64 & !511,
    };
    let len = (u64::from(request.u16()) << 9) % REQUEST_SIZE;
    let mut buffer = vec![0x5a; len as usize];
    let _ = match kind % 5 {
        0 => disk.read_at(offset, &mut buffer),
        1 => disk.write_at(offset, &buffer),
        2 => disk.discard(offset, len),
        3 => disk.write_zeroes(offset, len),
        _ => disk.flush(),
    };
}
