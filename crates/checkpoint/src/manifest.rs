//! The manifest: what a checkpoint is, in JSON that people can read.
//!
//! `{"checksum": ..., "manifest": {...}}`, the checksum being that of the manifest's own JSON
//! written without spaces and with keys in alphabetical order.

use std::path::{Path, PathBuf};

use cpu::cpuid::Model;
use journal::WallClock;
use machine::{DiskSpec, MachineSpec, NicSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::ExecutionPoint;
use xxhash_rust::xxh3::xxh3_64;

use crate::CheckpointError;
use crate::store::{self, MANIFEST};

/// What the format is called in the manifest.
const FORMAT: &str = "doppel-checkpoint";
/// Newest version that this release reads; it reads those before it too.
const VERSION: u64 = 2;
/// What packed memory is compressed with.
const ZSTD: &str = "zstd";
/// Largest manifest, bytes.
const LEN_MAX: u64 = 4 << 20;
/// Most disks or network cards of a machine: more than a PCI bus takes.
const DEVICES_MAX: usize = 64;

/// Which checkpoint: 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub [u8; 16]);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Id {
    /// The id of this text, if it is one's.
    pub fn parse(text: &str) -> Option<Id> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        if text.len() != 32 || digits.len() != 32 {
            return None;
        }
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Id(id))
    }

    /// A new one.
    pub(crate) fn random() -> Result<Id, CheckpointError> {
        use std::io::Read;
        let path = Path::new("/dev/urandom");
        let mut id = [0; 16];
        std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut id))
            .map_err(store::failed("read", path))?;
        Ok(Id(id))
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        let text = String::deserialize(deserializer)?;
        Id::parse(&text).ok_or_else(|| serde::de::Error::custom("an id has 32 hexadecimal digits"))
    }
}

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `doppel-checkpoint`.
    pub format: String,
    /// Version of the format.
    pub version: u64,
    /// Which checkpoint.
    pub id: Id,
    /// The checkpoint whose memory this one's is on top of.
    pub parent: Option<Parent>,
    /// The release that made it.
    pub release: String,
    /// The machine.
    pub machine: MachineKept,
    /// Where it was.
    pub point: PointKept,
    /// Its virtual time, nanoseconds.
    pub virtual_time_ns: u64,
    /// Its memory.
    pub memory: MemoryKept,
    /// Its other state.
    pub sections: FileKept,
    /// A digest of memory and state: the same for the same machine at the same point, whoever
    /// saved it and however, unless it is on top of a parent.
    pub content: String,
    /// Its disks, as it saw them.
    pub disks: Vec<DiskKept>,
    /// What whoever ran the machine wants back: opaque here.
    pub vm: Value,
}

/// A checkpoint below another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Which.
    pub id: Id,
    /// Its folder, absolute or relative to the folder that the upper one is in.
    pub path: PathBuf,
}

/// A `machine::MachineSpec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineKept {
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// CPU model.
    pub cpu: String,
    /// Disks: bytes, and whether they are read-only.
    pub disks: Vec<(u64, bool)>,
    /// Ethernet addresses of network cards.
    pub nics: Vec<[u8; 6]>,
    /// Whether there is a virtio console.
    pub console: bool,
    /// Port of the debug-exit device.
    pub debug_exit: Option<u16>,
    /// Seed of the entropy device.
    pub seed: u64,
    /// Nanoseconds since 1970 at virtual time zero.
    pub wall_clock_ns: u64,
    /// Rate of virtual time at power-on, thousandths of a nanosecond per branch.
    pub nominal_rate: u64,
}

/// An execution point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointKept {
    /// vCPU.
    pub vcpu: u32,
    /// Retired branches.
    pub branches: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Iterations of a repeated string instruction.
    pub iterations: u64,
}

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryKept {
    /// Pages that are in the file, 4096 bytes each.
    pub pages: u64,
    /// The file of the index.
    pub index: FileKept,
    /// How pages are packed, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<PackedKept>,
}

/// Packed guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedKept {
    /// Always `zstd`.
    pub compression: String,
    /// Bytes of the file without its last page.
    pub size: u64,
}

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileKept {
    /// Its length, bytes.
    pub size: u64,
    /// XXH3-64 of its bytes, hexadecimal.
    pub checksum: String,
}

/// How a disk is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskPolicy {
    /// The image itself, which nobody writes any more.
    Kept,
    /// A copy in the checkpoint's folder.
    Copied,
    /// The guest cannot write it.
    ReadOnly,
}

/// A disk of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskKept {
    /// How it is kept.
    pub policy: DiskPolicy,
    /// The image: absolute, or relative to the checkpoint's folder.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Length of the image's file, bytes.
    pub file_size: u64,
    /// When it was last written, nanoseconds since 1970.
    pub modified_ns: u64,
}

impl PackedKept {
    pub(crate) fn zstd(size: u64) -> PackedKept {
        PackedKept { compression: ZSTD.into(), size }
    }
}

impl MemoryKept {
    /// The version of the format that can say this: the lowest, so that releases before this one
    /// read what they can.
    pub(crate) fn version(&self) -> u64 {
        if self.packed.is_some() { 2 } else { 1 }
    }
}

impl FileKept {
    pub(crate) fn of(bytes: &[u8]) -> FileKept {
        FileKept { size: bytes.len() as u64, checksum: format!("{:016x}", xxh3_64(bytes)) }
    }
}

impl From<ExecutionPoint> for PointKept {
    fn from(point: ExecutionPoint) -> PointKept {
        let ExecutionPoint { vcpu, branches, rip, iterations } = point;
        PointKept { vcpu, branches, rip, iterations }
    }
}

impl From<PointKept> for ExecutionPoint {
    fn from(point: PointKept) -> ExecutionPoint {
        let PointKept { vcpu, branches, rip, iterations } = point;
        ExecutionPoint { vcpu, branches, rip, iterations }
    }
}

impl MachineKept {
    /// Of a specification.
    pub fn of(spec: &MachineSpec) -> MachineKept {
        let MachineSpec {
            memory_size,
            model,
            disks,
            nics,
            console,
            debug_exit,
            seed,
            wall_clock,
            nominal_rate,
        } = spec;
        MachineKept {
            memory_bytes: *memory_size,
            cpu: model.name().into(),
            disks: disks.iter().map(|disk| (disk.size, disk.read_only)).collect(),
            nics: nics.iter().map(|nic| nic.mac).collect(),
            console: *console,
            debug_exit: *debug_exit,
            seed: *seed,
            wall_clock_ns: wall_clock.0,
            nominal_rate: *nominal_rate,
        }
    }

    /// The specification; in words why there is none.
    pub fn spec(&self) -> Result<MachineSpec, String> {
        let models = [Model::V2, Model::V3];
        let model = models.into_iter().find(|model| model.name() == self.cpu);
        let model = model.ok_or_else(|| format!("no release has the CPU model {:?}", self.cpu))?;
        if self.disks.len() > DEVICES_MAX || self.nics.len() > DEVICES_MAX {
            return Err(format!("no machine has more than {DEVICES_MAX} disks or network cards"));
        }
        let disk = |&(size, read_only): &(u64, bool)| DiskSpec { size, read_only };
        Ok(MachineSpec {
            memory_size: self.memory_bytes,
            model,
            disks: self.disks.iter().map(disk).collect(),
            nics: self.nics.iter().map(|&mac| NicSpec { mac }).collect(),
            console: self.console,
            debug_exit: self.debug_exit,
            seed: self.seed,
            wall_clock: WallClock(self.wall_clock_ns),
            nominal_rate: self.nominal_rate,
        })
    }
}

impl Manifest {
    pub(crate) fn format() -> String {
        FORMAT.into()
    }

    /// The file's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let manifest = serde_json::to_value(self).unwrap_or(Value::Null);
        let checksum = checksum(&manifest);
        let whole = serde_json::json!({ "checksum": checksum, "manifest": manifest });
        let mut text = serde_json::to_string_pretty(&whole).unwrap_or_default();
        text.push('\n');
        text.into()
    }

    /// Reads the manifest of the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`CheckpointError::NotACheckpoint`], [`CheckpointError::Newer`] or
    /// [`CheckpointError::Damaged`].
    pub fn read(folder: &Path) -> Result<Manifest, CheckpointError> {
        let path = folder.join(MANIFEST);
        let bytes = store::read(&path, LEN_MAX).map_err(|error| {
            if store::is_missing(&error) && folder.is_dir() {
                return CheckpointError::NotACheckpoint { path: folder.into() };
            }
            error
        })?;
        Manifest::decode(folder, &bytes)
    }

    pub(crate) fn decode(folder: &Path, bytes: &[u8]) -> Result<Manifest, CheckpointError> {
        let path = folder.join(MANIFEST);
        let damaged = |what: String| CheckpointError::Damaged { path: path.clone(), what };
        if !bytes.ends_with(b"}\n") {
            return Err(damaged("it is cut short".into()));
        }
        let whole: Value =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        let manifest = &whole["manifest"];
        if manifest["format"].as_str() != Some(FORMAT) {
            return Err(damaged("it is not the manifest of a checkpoint".into()));
        }
        let version = manifest["version"].as_u64().unwrap_or(0);
        if version > VERSION {
            let path = folder.into();
            return Err(CheckpointError::Newer { path, found: version, known: VERSION });
        }
        if whole["checksum"].as_str() != Some(&checksum(manifest)) {
            return Err(damaged("its checksum is not that of its contents".into()));
        }
        let manifest: Manifest =
            serde_json::from_value(manifest.clone()).map_err(|error| damaged(error.to_string()))?;
        let least = manifest.memory.version();
        if version < least || manifest.disks.len() != manifest.machine.disks.len() {
            return Err(damaged("it contradicts itself about its disks or its version".into()));
        }
        if let Some(packed) = manifest.memory.packed.as_ref().filter(|p| p.compression != ZSTD) {
            return Err(damaged(format!("it has an unknown compression {:?}", packed.compression)));
        }
        Ok(manifest)
    }
}

/// Keys of `Value` are in alphabetical order.
fn checksum(manifest: &Value) -> String {
    let text = serde_json::to_string(manifest).unwrap_or_default();
    format!("{:016x}", xxh3_64(text.as_bytes()))
}
