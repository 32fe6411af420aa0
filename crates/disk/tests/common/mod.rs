//! What the tests share: a scratch folder, qemu-img, a seeded generator, a model of a disk.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use disk::{BlockBackend, DiskError, DiskSpec, Format};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A folder that is removed with its value.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let folder = format!("doppel-disk-{}-{serial}", std::process::id());
        let path = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs a qemu tool in the folder; panics, with its words, if it fails.
    pub fn qemu(&self, tool: &str, arguments: &[&str]) -> String {
        let output = self.try_qemu(tool, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments:?}: {text}{errors}");
        text
    }

    pub fn try_qemu(&self, tool: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(tool);
        command.current_dir(&self.0).args(arguments);
        command.output().unwrap_or_else(|error| {
            panic!("this test needs {tool} ({error}): apt-get install qemu-utils")
        })
    }

    /// Creates an image, overlay on `backing` (name, format) if given.
    pub fn create(&self, name: &str, format: &str, options: &str, size: &str) -> PathBuf {
        let mut arguments = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.push(name);
        arguments.extend((!size.is_empty()).then_some(size));
        self.qemu("qemu-img", &arguments);
        self.path(name)
    }

    /// `qemu-img check` finds neither errors nor leaks.
    pub fn check_clean(&self, name: &str) {
        self.qemu("qemu-img", &["check", "-f", "qcow2", name]);
    }

    /// The image's contents according to qemu-img.
    pub fn contents(&self, name: &str, format: &str) -> Vec<u8> {
        self.qemu("qemu-img", &["convert", "-f", format, "-O", "raw", name, "contents.raw"]);
        std::fs::read(self.path("contents.raw")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn open_as(
    path: &Path,
    format: Option<Format>,
    read_only: bool,
) -> Result<Box<dyn BlockBackend>, DiskError> {
    disk::open(DiskSpec { path: path.into(), format, read_only })
}

/// Opens for writing, format by the rules.
pub fn open_rw(path: &Path) -> Box<dyn BlockBackend> {
    open_as(path, None, false).unwrap()
}

/// The error of an open that must fail.
pub fn refusal(path: &Path, format: Option<Format>, read_only: bool) -> DiskError {
    match open_as(path, format, read_only) {
        Ok(_) => panic!("{path:?} opened, though it must be refused"),
        Err(error) => error,
    }
}

/// SplitMix64 (Steele et al. 2014): small, seeded, good enough for tests.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

/// Does `count` random operations on a disk and on `model`; every read must agree.
pub fn exercise(disk: &mut dyn BlockBackend, model: &mut [u8], random: &mut Random, count: usize) {
    let sectors = model.len() as u64 / 512;
    for step in 0..count {
        let start = random.below(sectors);
        let room = sectors - start;
        let span = if random.below(20) == 0 { 4096 } else { 64 };
        let len = (1 + random.below(room.min(span))) as usize * 512;
        let offset = start * 512;
        let range = start as usize * 512..start as usize * 512 + len;
        match random.below(10) {
            0..=4 => {
                let data = random.bytes(len);
                disk.write_at(offset, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
            5..=7 => {
                let mut data = vec![0xaa; len];
                disk.read_at(offset, &mut data).unwrap();
                assert!(data == model[range], "step {step}: read of {len} at {offset}");
            }
            8 if random.below(2) == 0 => {
                disk.discard(offset, len as u64).unwrap();
                model[range].fill(0);
            }
            8 => {
                disk.write_zeroes(offset, len as u64).unwrap();
                model[range].fill(0);
            }
            _ => disk.flush().unwrap(),
        }
    }
    disk.flush().unwrap();
}
