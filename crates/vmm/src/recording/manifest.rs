//! `recording.json`: what the machine was, and which files it came from.

use std::path::{Path, PathBuf};

use cpu::cpuid::Model;
use journal::WallClock;
use machine::{MachineSpec, NicSpec};
use serde::{Deserialize, Serialize};

use super::RecordingError;
use super::identity::Identity;
use crate::prepare::mac_text;

/// Name of the file in a recording's folder.
pub(crate) const FILE: &str = "recording.json";
/// Name of the log in a recording's folder.
pub(crate) const LOG: &str = "events.log";
/// Version this release writes; it reads this one and those before it.
const VERSION: u32 = 2;
/// What recordings of version 1 were made by.
const SEMANTICS_UNSAID: u32 = 1;
/// Largest manifest, bytes.
const SIZE_MAX: u64 = 1 << 20;

/// What the machine was, and which files it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Release that made it.
    pub doppel: String,
    /// The commit that release was built from, if that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What its machine does: [`machine::SEMANTICS`] of that release.
    #[serde(default = "semantics_unsaid")]
    pub semantics: u32,
    /// CPU it was made on: what differs between makes of CPU is as on this one.
    pub host_cpu: String,
    /// The machine at the recording's beginning.
    pub machine: MachineDesc,
    /// Folder name of the checkpoint that the recording begins with; without one it begins with
    /// power-on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// What the digest of outputs goes on from, if it does not begin with the recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<[u64; 5]>,
    /// What it booted from.
    pub boot: BootDesc,
    /// The images of its disks.
    pub disks: Vec<DiskDesc>,
    /// Whether a reset ended it.
    pub no_reboot: bool,
}

fn semantics_unsaid() -> u32 {
    SEMANTICS_UNSAID
}

/// [`MachineSpec`] in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineDesc {
    memory_bytes: u64,
    cpu: String,
    nics: Vec<String>,
    console: bool,
    debug_exit: Option<u16>,
    seed: u64,
    wall_clock_ns: u64,
    nominal_rate_millins: u64,
}

/// What a machine booted from; the copies are beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootDesc {
    /// File name of the copy.
    pub kernel: String,
    /// File name of the copy.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
}

/// A disk and the files its image is made of, topmost first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskDesc {
    /// `raw` or `qcow2`.
    pub format: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// The image and its backing files.
    pub files: Vec<Identity>,
}

impl MachineDesc {
    pub fn of(spec: &MachineSpec) -> MachineDesc {
        let MachineSpec {
            memory_size,
            model,
            disks: _,
            nics,
            console,
            debug_exit,
            seed,
            wall_clock,
            nominal_rate,
        } = spec;
        MachineDesc {
            memory_bytes: *memory_size,
            cpu: model.name().into(),
            nics: nics.iter().map(|nic| mac_text(nic.mac)).collect(),
            console: *console,
            debug_exit: *debug_exit,
            seed: *seed,
            wall_clock_ns: wall_clock.0,
            nominal_rate_millins: *nominal_rate,
        }
    }
}

impl Manifest {
    /// The machine at the recording's beginning.
    ///
    /// Fails with what is wrong.
    pub fn machine_spec(&self) -> Result<MachineSpec, String> {
        let desc = &self.machine;
        let model = [Model::V2, Model::V3].into_iter().find(|model| model.name() == desc.cpu);
        let nic = |text: &String| Some(NicSpec { mac: parse_mac(text)? });
        let nics: Option<Vec<NicSpec>> = desc.nics.iter().map(nic).collect();
        let disk = |disk: &DiskDesc| machine::DiskSpec {
            size: disk.size_bytes,
            read_only: disk.read_only,
        };
        Ok(MachineSpec {
            memory_size: desc.memory_bytes,
            model: model.ok_or_else(|| format!("a CPU model {:?}", desc.cpu))?,
            disks: self.disks.iter().map(disk).collect(),
            nics: nics.ok_or("a network card's address that is none")?,
            console: desc.console,
            debug_exit: desc.debug_exit,
            seed: desc.seed,
            wall_clock: WallClock(desc.wall_clock_ns),
            nominal_rate: desc.nominal_rate_millins,
        })
    }

    /// A manifest of this release and host.
    pub fn new(spec: &MachineSpec, boot: BootDesc, disks: Vec<DiskDesc>) -> Manifest {
        Manifest {
            version: VERSION,
            doppel: env!("CARGO_PKG_VERSION").into(),
            commit: commit(),
            semantics: machine::SEMANTICS,
            host_cpu: host_cpu(),
            machine: MachineDesc::of(spec),
            start: None,
            digest: None,
            boot,
            disks,
            no_reboot: false,
        }
    }

    /// Writes it into the folder `dir`: whole, or not at all.
    pub fn write(&self, dir: &Path) -> Result<(), RecordingError> {
        let (path, new) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        std::fs::write(&new, text)
            .and_then(|()| std::fs::File::open(&new)?.sync_all())
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(RecordingError::file("write", &path))
    }

    /// Reads the one in the folder `dir`.
    pub fn read(dir: &Path) -> Result<Manifest, RecordingError> {
        let path = dir.join(FILE);
        let Ok(is) = path.metadata() else { return Err(RecordingError::NotOne(dir.into())) };
        let problem = |problem: String| RecordingError::Manifest { path: path.clone(), problem };
        if is.len() > SIZE_MAX {
            return Err(problem(format!("has {} bytes, too many to be one", is.len())));
        }
        let text = std::fs::read(&path).map_err(RecordingError::file("read", &path))?;
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| problem(error.to_string()))?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if !version.is_some_and(|version| (1..=u64::from(VERSION)).contains(&version)) {
            let found = version.map_or("no version".into(), |version| format!("version {version}"));
            let known = format!("this release reads versions up to {VERSION}");
            return Err(problem(format!("has {found}; {known}")));
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|error| problem(error.to_string()))?;
        manifest.machine_spec().map_err(|what| problem(format!("names {what}")))?;
        let names = [Some(&manifest.boot.kernel), manifest.boot.initrd.as_ref()];
        for name in names.into_iter().chain([manifest.start.as_ref()]) {
            if name.is_some_and(|name| name.contains('/') || name.starts_with('.')) {
                return Err(problem("names a file outside its folder".into()));
            }
        }
        Ok(manifest)
    }

    /// Refuses a recording whose machine was another function of its inputs than this release's.
    pub fn check_semantics(&self) -> Result<(), RecordingError> {
        if self.semantics == machine::SEMANTICS {
            return Ok(());
        }
        Err(RecordingError::Semantics {
            maker: release(&self.doppel, self.commit.as_deref()),
            found: self.semantics,
            this: release(env!("CARGO_PKG_VERSION"), commit().as_deref()),
            known: machine::SEMANTICS,
        })
    }

    /// Paths of the copies of kernel and initrd.
    pub fn boot_files(&self, dir: &Path) -> (PathBuf, Option<PathBuf>) {
        (dir.join(&self.boot.kernel), self.boot.initrd.as_ref().map(|name| dir.join(name)))
    }
}

/// The commit this was built from, if that is known.
fn commit() -> Option<String> {
    Some(env!("DOPPEL_COMMIT").to_owned()).filter(|commit| !commit.is_empty())
}

/// A release as people name it.
fn release(version: &str, commit: Option<&str>) -> String {
    let commit = commit.map_or(String::new(), |commit| format!(" ({commit})"));
    format!("doppel {version}{commit}")
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// Make and model of the host's CPU.
fn host_cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or("unknown", |rest| rest.trim_start_matches(['\t', ' ', ':'])).into()
}
