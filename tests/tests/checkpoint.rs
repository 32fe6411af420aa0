//! Checkpoints of whole machines, in virtual time alone: what is restored is what was captured,
//! byte for byte, and goes on as the original does, on either engine (mechanisms C3 to C8).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use checkpoint::{
    Checkpoint, CheckpointError, Parent, Progress, SaveOptions, Saver, Since, capture,
};
use machine::Stop;
use whole::kept::{ON, Original, WORK, compare, random_points};

/// As many copies as are needed.
const MANY: usize = 1 << 20;

fn plain() -> SaveOptions {
    SaveOptions { copies_max: MANY, ..SaveOptions::default() }
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn restored_machine_goes_on_as_the_original_from_the_translator() {
    random_points("translate", "interp", 0x9e37_79b9, 30);
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
    let mut taken = vec![original.checkpoint("c0", plain())];
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
        // Plain and packed ones may stand on each other.
        let packed = number % 2 == 1;
        let options = SaveOptions { copies_max: 16, since: Some(since), packed, durable: false };
        let one = original.checkpoint(&format!("c{number}"), options);
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
    let one = original.checkpoint("one", plain());
    let other = original.checkpoint("other", plain());
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
fn packed_checkpoint_is_smaller_and_the_same_and_damage_is_found() {
    let mut original = Original::boot("translate", "quiet doppel.end=shell");
    original.guest.run(8_000_000);
    let one = original.checkpoint("plain", plain());
    compare(&mut original, &one, "translate", false);
    let packed = original.checkpoint("packed", SaveOptions { packed: true, ..plain() });
    compare(&mut original, &packed, "translate", false);
    assert_eq!(one.summary.manifest.version, 1, "releases before packing read plain ones");
    let manifest = &packed.summary.manifest;
    assert_eq!(manifest.version, 2);
    let size = manifest.memory.packed.as_ref().unwrap().size;
    assert!(size * 3 < manifest.memory.pages * 4096 * 2, "{size} bytes");
    let path = packed.folder.join("memory.pack");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, size + 4096);
    for at in [0, 5, bytes.len() / 2, size as usize - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 0x11;
        std::fs::write(&path, &changed).unwrap();
        let checkpoint = Checkpoint::open(&packed.folder).unwrap();
        let refused = checkpoint.restore().map(drop).unwrap_err();
        assert!(matches!(refused, CheckpointError::Damaged { .. }), "{at}: {refused}");
        assert!(checkpoint.verify(&mut || ()).is_err());
    }
    for wrong in [&bytes[..bytes.len() - 1], &bytes[1..]] {
        std::fs::write(&path, wrong).unwrap();
        let refused = Checkpoint::open(&packed.folder).map(drop).unwrap_err();
        assert!(matches!(refused, CheckpointError::Damaged { .. }), "{refused}");
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
    let (saver, cow) = Saver::prepare(&folder, &pages, plain(), progress.clone()).unwrap();
    capture(&mut guest.machine, &mut guest.outside, cow);
    progress.cancelled.store(true, Ordering::Relaxed);
    assert!(matches!(saver.save_memory().err(), Some(CheckpointError::Cancelled)));
    let names = std::fs::read_dir(folder.parent().unwrap()).unwrap();
    assert!(names.into_iter().all(|entry| !entry.unwrap().path().starts_with(&folder)));
    let until = guest.machine.branches() + ON;
    guest.run(until);
    assert_eq!(progress.copied.load(Ordering::Relaxed), 0);
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn slices_full_of_first_writes_are_short_and_lead_to_the_same_state() {
    let (mut plain_run, mut original) =
        (Original::boot("translate", WORK), Original::boot("translate", WORK));
    for machine in [&mut plain_run, &mut original] {
        machine.begin();
    }
    let until = original.guest.machine.branches() + 2_000_000;
    let guest = &mut original.guest;
    let (pages, progress) = (guest.machine.ram().pages(), Arc::new(Progress::default()));
    let folder = original.scratch.path("c");
    let (_saver, cow) = Saver::prepare(&folder, &pages, plain(), progress).unwrap();
    capture(&mut guest.machine, &mut guest.outside, cow);
    let (mut short, mut in_short) = (0, 0);
    loop {
        let before = guest.machine.branches();
        match guest.machine.run_slice(&mut *guest.engine, &mut guest.outside, until) {
            Stop::Reached if guest.machine.branches() == until => break,
            Stop::Reached => {
                short += 1;
                in_short += guest.machine.branches() - before;
            }
            Stop::Idle { .. } => guest.machine.skip_idle(&mut guest.outside),
            stop => assert_eq!(stop, Stop::Yielded),
        }
    }
    println!("{short} slices of {} branches in the middle ended early", in_short / short.max(1));
    assert!(short > 2, "{short} slices ended early");
    plain_run.guest.run(until);
    assert_eq!(plain_run.guest.machine.section_hashes(), guest.machine.section_hashes());
    assert_eq!(plain_run.guest.machine.state_hash(), guest.machine.state_hash());
    assert_eq!(plain_run.guest.outside.console(), guest.outside.console());
}
