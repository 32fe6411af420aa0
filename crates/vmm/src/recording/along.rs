//! Checkpoints along a recording: folders beside its log, each with a note of its place in it.

use std::path::{Path, PathBuf};

use checkpoint::Manifest;
use replay::OutputDigest;
use serde::{Deserialize, Serialize};
use travel::Position;
use types::{ExecutionPoint, VirtualTime};

use super::player::Place;

/// What the folders' names begin with; their numbers follow.
const NAME: &str = "checkpoint-";
/// The note's name in what a checkpoint's manifest says of the VM.
pub(crate) const NOTE: &str = "recording";

/// What a checkpoint is to its recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Its number, from 1.
    pub number: u32,
    /// Number of the log's entry that comes next.
    pub entry: u64,
    /// [`OutputDigest`] of what had left the machine.
    pub digest: [u64; 5],
}

/// A checkpoint along a recording, nothing of it checked but its manifest.
#[derive(Clone, Debug)]
pub(crate) struct Along {
    pub folder: PathBuf,
    pub note: Note,
    pub point: ExecutionPoint,
    pub time: VirtualTime,
}

/// Where the checkpoint of this number goes, in the recording's folder `dir`.
pub(crate) fn folder(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{NAME}{number}"))
}

/// The checkpoints of the recording in `dir`, in order. What is none is passed over.
pub(crate) fn list(dir: &Path) -> Vec<Along> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME));
    let mut list: Vec<Along> = named.filter_map(|entry| Along::read(&entry.path())).collect();
    list.sort_by_key(|along| along.note.number);
    list
}

impl Along {
    fn read(path: &Path) -> Option<Along> {
        let manifest = Manifest::read(path).ok()?;
        let note: Note = serde_json::from_value(manifest.vm.get(NOTE)?.clone()).ok()?;
        if path.file_name()?.to_str()? != format!("{NAME}{}", note.number) {
            return None;
        }
        let (point, time) = (manifest.point.into(), VirtualTime(manifest.virtual_time_ns));
        Some(Along { folder: path.into(), note, point, time })
    }

    /// Its place among points.
    pub fn position(&self) -> Position {
        self.point.into()
    }

    /// The digest of what had left the machine.
    pub fn digest(&self) -> OutputDigest {
        OutputDigest::from_words(self.note.digest)
    }

    /// Whether whoever wants to come to `place` passes it.
    pub fn is_before(&self, place: Place) -> bool {
        match place {
            Place::End => true,
            Place::Branches(branches) => self.point.branches < branches,
            Place::Time(time) => self.time < time,
            Place::Event(number) => self.note.entry <= number,
        }
    }
}
