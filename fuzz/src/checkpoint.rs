//! Checkpoint folders changed by somebody else: `Checkpoint::open`, lazy and eager restores,
//! verification, and the machine that comes of it.
//!
//! Input: which file, whether checksums are made right again (bit 0) and memory is packed (bit 1),
//! the number of changes, the changes, and bytes that take the file's place if there are any.
//! Whatever happens, there is no panic; what is refused is refused with words, and the folder is as
//! it was.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Checkpoint, DiskKept, DiskPolicy, RestoredMachine, SaveOptions, Saver, capture};
use interp::Interp;
use journal::{DiskCompletion, DiskFailed, Output};
use machine::{Machine, Outside};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::input::Input;
use crate::rig;

/// Names of files, where memory is plain and where it is packed.
const FILES: [[&str; 4]; 2] = [
    ["manifest.json", "pages.idx", "sections.bin", "memory.img"],
    ["manifest.json", "pages.idx", "sections.bin", "memory.pack"],
];
const CHANGES_MAX: u8 = 24;
/// Branches that a restored machine runs.
const BRANCHES: u64 = 1_000;

/// Throws everything away.
struct Nowhere;

impl Outside for Nowhere {
    fn output(&mut self, _: Output) {}

    fn disk_wait(&mut self, _: u32, id: u64) -> DiskCompletion {
        DiskCompletion { id, result: Err(DiskFailed) }
    }
}

/// Two whole checkpoints of a machine, plain and packed, and a folder for changed ones.
struct Lab {
    root: PathBuf,
    files: [Vec<Vec<u8>>; 2],
}

impl Lab {
    fn new() -> Lab {
        let name = format!("doppel-fuzz-c{}-{:?}", std::process::id(), std::thread::current().id());
        let root = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).expect("a folder for temporary files");
        let files = [false, true].map(|packed| {
            let whole = root.join(if packed { "packed" } else { "plain" });
            save(&whole, packed);
            let read = |file: &&str| std::fs::read(whole.join(file)).expect("its file");
            FILES[usize::from(packed)].iter().map(read).collect()
        });
        Lab { files, root }
    }
}

fn save(folder: &Path, packed: bool) {
    let disk = DiskKept {
        policy: DiskPolicy::Kept,
        path: "/nowhere".into(),
        format: "raw".into(),
        size_bytes: 1 << 20,
        file_size: 1 << 20,
        modified_ns: 0,
    };
    let (mut machine, progress) = (machine(), Arc::default());
    let options = SaveOptions { packed, ..SaveOptions::default() };
    let saver = Saver::prepare(folder, &machine.ram().pages(), options, progress);
    let (saver, guest) = saver.expect("a folder");
    let captured = capture(&mut machine, &mut Nowhere, guest);
    let saved = saver.save_memory().expect("room for it");
    saved.finish(&captured, &[], vec![disk], Value::Null).expect("a checkpoint");
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A machine in the middle of a loop, with a few pages of its own.
fn machine() -> Machine {
    let mut machine = rig::machine();
    rig::boot(&mut machine, &rig::flat_image(&[0xeb, 0xfe]));
    let mut engine = Interp::new().expect("an engine");
    machine.run(&mut engine, &mut Nowhere, 1_000);
    machine
}

thread_local! {
    static LAB: OnceCell<Lab> = const { OnceCell::new() };
}

/// Runs one input.
pub fn run(data: &[u8]) {
    LAB.with(|lab| run_in(lab.get_or_init(Lab::new), data));
}

fn run_in(lab: &Lab, data: &[u8]) {
    let mut input = Input(data);
    let which = usize::from(input.u8()) % FILES[0].len();
    let flags = input.u8();
    let (repairs, packed) = (flags & 1 != 0, usize::from(flags >> 1 & 1));
    let mut files = lab.files[packed].clone();
    for _ in 0..input.u8() % (CHANGES_MAX + 1) {
        change(&mut files[which], &mut input);
    }
    let rest = input.rest();
    if !rest.is_empty() {
        files[which] = rest.to_vec();
    }
    if repairs {
        repair(&mut files);
    }
    let folder = lab.root.join("changed");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, bytes) in FILES[packed].iter().zip(&files) {
        std::fs::write(folder.join(name), bytes).expect("room for a temporary file");
    }
    use_it(&folder);
    for (name, bytes) in FILES[packed].iter().zip(&files) {
        assert!(std::fs::read(folder.join(name)).is_ok_and(|now| now == *bytes), "{name} changed");
    }
}

fn change(file: &mut Vec<u8>, input: &mut Input<'_>) {
    let (at, kind, value) = (usize::from(input.u16()), input.u8(), input.u8());
    // From the start, or from the end.
    let at = if kind & 0x80 == 0 { at } else { file.len().saturating_sub(at) };
    match kind % 4 {
        0 => file.truncate(at),
        1 if at < file.len() => file[at] = value,
        2 if at < file.len() => file[at] ^= 1 << (value % 8),
        3 => file.insert(at.min(file.len()), value),
        _ => {}
    }
}

/// Makes the checksums of changed files right, so that what is behind them is reached.
fn repair(files: &mut [Vec<u8>]) {
    for file in &mut files[1..3] {
        if let Some(body) = file.len().checked_sub(8) {
            let sum = xxh3_64(&file[..body]);
            file[body..].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let Ok(mut whole) = serde_json::from_slice::<Value>(&files[0]) else { return };
    let kept = |bytes: &[u8]| {
        let checksum = format!("{:016x}", xxh3_64(bytes));
        serde_json::json!({ "size": bytes.len(), "checksum": checksum })
    };
    let Some(manifest) = whole.get_mut("manifest").and_then(Value::as_object_mut) else { return };
    manifest.insert("sections".into(), kept(&files[2]));
    if let Some(memory) = manifest.get_mut("memory").and_then(Value::as_object_mut) {
        memory.insert("index".into(), kept(&files[1]));
    }
    let text = serde_json::to_string(&whole["manifest"]).unwrap_or_default();
    whole["checksum"] = format!("{:016x}", xxh3_64(text.as_bytes())).into();
    files[0] = format!("{whole:#}\n").into_bytes();
}

fn use_it(folder: &Path) {
    let checkpoint = match Checkpoint::open(folder) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    // More memory than a fuzzer has is no defect.
    if checkpoint.spec().memory_size > 64 << 20 {
        return;
    }
    let verified = checkpoint.verify(&mut || ());
    for restored in [checkpoint.restore(), checkpoint.restore_eagerly()] {
        match restored {
            Ok(RestoredMachine { mut machine, .. }) => {
                let mut engine = Interp::new().expect("an engine");
                let until = machine.branches().saturating_add(BRANCHES);
                machine.run(&mut engine, &mut Nowhere, until);
            }
            Err(error) => assert!(verified.is_err() && !error.to_string().is_empty(), "{error}"),
        }
    }
}
