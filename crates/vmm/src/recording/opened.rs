//! A recording's folder, opened: the machine at its beginning, with its disks and its log.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, RestoredMachine};
use disk::{BlockBackend, DiskIo, DiskSpec, Format, ScratchDisk};
use host::console::ConsoleSpec;
use journal::{DiskCompletion, DiskRequest, LogReader};
use machine::{Machine, MachineSpec};
use replay::{OutputDigest, Replayer};
use travel::{Arrival, Far};

use super::along::{self, Along};
use super::manifest::{DiskDesc, LOG, Manifest};
use super::recorder::overlay;
use super::{From, Place, RecordingError, ReplaySpec};
use crate::boot_files::BootFiles;
use crate::ports::DiskPort;
use crate::prepare::{Prepared, engine};
use crate::{DiskInfo, EngineKind, VmError, VmSpec};

/// A disk of the replay, and what to say of it.
type OpenDisk = (Box<dyn BlockBackend>, DiskInfo);

/// A recording's folder, its manifest read.
pub(super) struct Opened {
    pub dir: PathBuf,
    pub manifest: Manifest,
    pub spec: MachineSpec,
}

/// Where in a recording a replay begins.
pub(super) enum Origin {
    /// Where the recording does.
    Beginning,
    /// At a checkpoint along it.
    Along(Along, Box<Checkpoint>),
}

impl Origin {
    /// The digest of what had left the machine.
    pub fn digest(&self, recording: &Opened) -> OutputDigest {
        let begun = recording.manifest.digest;
        match self {
            Origin::Beginning => begun.map(OutputDigest::from_words).unwrap_or_default(),
            Origin::Along(along, _) => along.digest(),
        }
    }
}

/// A machine where its recording begins, and what it waits for there.
pub(super) struct Beginning {
    pub machine: Machine,
    /// Disk requests to be done again.
    pub requests: Vec<(u32, DiskRequest)>,
    /// Results of disk reads that were in flight.
    pub reads: Vec<(u32, DiskCompletion)>,
}

impl Opened {
    /// Opens the recording in `dir`, if this release's machine does what that of its maker did.
    pub fn open(dir: &Path) -> Result<Opened, RecordingError> {
        let opened = Opened::open_any(dir)?;
        opened.manifest.check_semantics()?;
        Ok(opened)
    }

    /// The same, whoever made it.
    pub fn open_any(dir: &Path) -> Result<Opened, RecordingError> {
        let manifest = Manifest::read(dir)?;
        let spec = manifest
            .machine_spec()
            .map_err(|problem| RecordingError::Manifest { path: dir.into(), problem })?;
        Ok(Opened { dir: dir.into(), manifest, spec })
    }

    /// Where a replay to `to` begins, and its replayer there.
    pub fn origin(&self, from: From, to: Place) -> Result<(Origin, Replayer), VmError> {
        let beginning = || Ok((Origin::Beginning, self.replayer(0)?));
        let list = along::list(&self.dir);
        match from {
            From::Beginning | From::Checkpoint(0) => beginning(),
            From::Checkpoint(number) => {
                let along = list.into_iter().find(|along| along.note.number == number);
                let along = along.ok_or(RecordingError::NoCheckpoint(number))?;
                self.origin_at(along)
            }
            From::Nearest => {
                for along in list.into_iter().rev().filter(|along| along.is_before(to)) {
                    let number = along.note.number;
                    match self.origin_at(along) {
                        Ok(origin) => return Ok(origin),
                        Err(error) => {
                            tracing::warn!("checkpoint {number} is passed over: {error}");
                        }
                    }
                }
                beginning()
            }
        }
    }

    fn origin_at(&self, along: Along) -> Result<(Origin, Replayer), VmError> {
        let checkpoint = Checkpoint::open(&along.folder)?;
        let replayer = self.replayer(along.note.entry)?;
        Ok((Origin::Along(along, Box::new(checkpoint)), replayer))
    }

    /// The checkpoints along the recording, for a traveller.
    pub fn far(dir: &Path) -> Vec<Far> {
        let far = |along: Along| {
            let (at, time, entry) = (along.position(), along.time, along.note.entry);
            let dir = dir.to_owned();
            let open = move || {
                let arrive = || Opened::open_any(&dir)?.arrive(along.clone());
                arrive().map_err(|error: VmError| {
                    format!("checkpoint {} is passed over: {error}", along.note.number)
                })
            };
            Far { at, time, entry, open: Box::new(open) }
        };
        along::list(dir).into_iter().map(far).collect()
    }

    fn arrive(&self, along: Along) -> Result<Arrival, VmError> {
        let checkpoint = Box::new(Checkpoint::open(&along.folder)?);
        let RestoredMachine { machine, requests, reads } = checkpoint.restore()?;
        let (digest, origin) = (along.digest(), Origin::Along(along, checkpoint));
        let disks = (0..).zip(&self.manifest.disks);
        let disks = disks.map(|(index, desc)| self.open_base(index, desc, &origin));
        let disks = disks.collect::<Result<_, _>>()?;
        Ok(Arrival { machine, requests, reads, digest, disks })
    }

    /// The machine as it was where the replay begins.
    pub fn begin(&self, origin: &Origin, boot: &mut BootFiles) -> Result<Beginning, VmError> {
        if let Origin::Along(_, checkpoint) = origin {
            let RestoredMachine { machine, requests, reads } = checkpoint.restore()?;
            return Ok(Beginning { machine, requests, reads });
        }
        let Some(start) = &self.manifest.start else {
            let mut machine = Machine::new(self.spec.clone())?;
            boot.boot(&mut machine)?;
            return Ok(Beginning { machine, requests: Vec::new(), reads: Vec::new() });
        };
        let restored = Checkpoint::open(&self.dir.join(start))?.restore()?;
        let RestoredMachine { machine, requests, reads } = restored;
        Ok(Beginning { machine, requests, reads })
    }

    /// What it boots from: at its beginning, or when it is reset.
    pub fn boot_files(&self, vm: &VmSpec) -> Result<BootFiles, VmError> {
        match self.manifest.start {
            Some(_) => Ok(BootFiles::later(vm)),
            None => BootFiles::open(vm),
        }
    }

    /// A replayer at entry `number` of the log.
    pub fn replayer(&self, number: u64) -> Result<Replayer, RecordingError> {
        let path = self.dir.join(LOG);
        let file = File::open(&path).map_err(RecordingError::file("read", &path))?;
        let log = LogReader::new(BufReader::new(file));
        let failed = |source| RecordingError::Log { path: path.clone(), source };
        let mut log = log.map_err(failed)?;
        for _ in 0..number {
            let entry = log.next_entry().map_err(failed)?;
            entry.ok_or_else(|| RecordingError::Beyond(format!("event {number}")))?;
        }
        Ok(Replayer::from_entry(log, number)?)
    }

    /// What it booted from.
    pub fn boot_spec(&self) -> VmSpec {
        let (kernel, initrd) = self.manifest.boot_files(&self.dir);
        VmSpec {
            initrd,
            cmdline: self.manifest.boot.cmdline.clone(),
            memory_size: self.spec.memory_size,
            ..VmSpec::new(kernel)
        }
    }

    /// The VM as `inspect` shows it.
    pub fn vm_spec(&self, replay: &ReplaySpec) -> Result<VmSpec, VmError> {
        if replay.nets.len() > self.spec.nics.len() {
            let (given, has) = (replay.nets.len(), self.spec.nics.len());
            let message =
                format!("--net given {given} times; the recorded machine has {has} cards");
            return Err(VmError::Flags(message));
        }
        Ok(VmSpec {
            name: replay.name.clone(),
            model: self.spec.model,
            engine: replay.engine,
            nets: replay.nets.clone(),
            console: replay.console.clone(),
            hvc: self.spec.console.then_some(ConsoleSpec::None),
            debug_exit: self.spec.debug_exit,
            no_reboot: self.manifest.no_reboot,
            ..self.boot_spec()
        })
    }

    pub fn prepare(
        &self,
        origin: &Origin,
        kind: EngineKind,
        vm: &VmSpec,
        disks: Vec<OpenDisk>,
    ) -> Result<Prepared, VmError> {
        let mut boot = self.boot_files(vm)?;
        let engine = engine(kind, None)?;
        let Beginning { machine, requests, reads } = self.begin(origin, &mut boot)?;
        let disks = (0..).zip(disks).map(|(index, (disk, info))| {
            let mut port = DiskPort::new(DiskIo::spawn(disk));
            let mine = reads.iter().filter(|(disk, _)| *disk == index);
            port.brings(mine.map(|(_, read)| read.clone()));
            (port, info)
        });
        let (disks, disk_infos) = disks.unzip();
        let macs = self.spec.nics.iter().map(|nic| nic.mac).collect();
        Ok(Prepared {
            machine,
            engine,
            boot,
            disks,
            disk_infos,
            macs,
            requests,
            restored_from: None,
            generation: None,
            discard: crate::keeping::Discard::default(),
        })
    }

    /// The image a disk was where the replay begins, found to be what it was.
    fn base(
        &self,
        index: usize,
        desc: &DiskDesc,
        origin: &Origin,
    ) -> Result<DiskSpec, RecordingError> {
        if let Origin::Along(along, checkpoint) = origin
            && let Some(kept) = checkpoint.manifest().disks.get(index)
        {
            let path = along.folder.join(&kept.path);
            let asked = |error: VmError| RecordingError::Asked(error.to_string());
            crate::keeping::check_unchanged(&path, kept).map_err(asked)?;
            return Ok(DiskSpec { path, format: Format::named(&kept.format), read_only: true });
        }
        let problem = || RecordingError::Manifest {
            path: self.dir.clone(),
            problem: format!("disk {index} has no image, or one of a format that is none"),
        };
        desc.files.iter().try_for_each(super::identity::Identity::check)?;
        let format = match desc.format.as_str() {
            "raw" => Format::Raw,
            "qcow2" => Format::Qcow2,
            _ => return Err(problem()),
        };
        let path = desc.files.first().ok_or_else(problem)?.path.clone();
        Ok(DiskSpec { path, format: Some(format), read_only: true })
    }

    /// Disks whose changes are forgotten.
    pub fn scratch_disks(&self, origin: &Origin) -> Result<Vec<OpenDisk>, RecordingError> {
        let disks = self.scratch(origin)?.into_iter().zip(&self.manifest.disks);
        let with_info = disks.map(|(disk, desc)| {
            let path = desc.files.first().map(|file| file.path.clone()).unwrap_or_default();
            (Box::new(disk) as Box<dyn BlockBackend>, info(path, "scratch", desc))
        });
        Ok(with_info.collect())
    }

    /// The same, to go back in.
    pub fn scratch(&self, origin: &Origin) -> Result<Vec<ScratchDisk>, RecordingError> {
        let folder = std::env::temp_dir();
        let open = |(index, desc): (usize, &DiskDesc)| {
            let failed = |source| RecordingError::Disk { index, source };
            let base = self.open_base(index, desc, origin)?;
            ScratchDisk::new(base, &folder, desc.read_only).map_err(failed)
        };
        self.manifest.disks.iter().enumerate().map(open).collect()
    }

    fn open_base(
        &self,
        index: usize,
        desc: &DiskDesc,
        origin: &Origin,
    ) -> Result<Box<dyn BlockBackend>, RecordingError> {
        let base = disk::open(self.base(index, desc, origin)?);
        let base = base.map_err(|source| RecordingError::Disk { index, source })?;
        self.check_size(index, base.size(), desc)?;
        Ok(base)
    }

    /// Disks that stay: overlays in a new folder of the recording.
    pub fn live_disks(&self, origin: &Origin) -> Result<Vec<OpenDisk>, RecordingError> {
        if self.manifest.disks.is_empty() {
            return Ok(Vec::new());
        }
        let dir = (1u32..).map(|n| self.dir.join(format!("live-{n}"))).find(|dir| !dir.exists());
        let dir = dir.unwrap_or_else(|| self.dir.join("live"));
        std::fs::create_dir(&dir).map_err(RecordingError::file("make", &dir))?;
        let open = |(index, desc): (usize, &DiskDesc)| {
            let failed = |source| RecordingError::Disk { index, source };
            let base = self.base(index, desc, origin)?;
            let (spec, format) = if desc.read_only {
                (base, desc.format.as_str())
            } else {
                (overlay(index, &base, &dir)?, "qcow2")
            };
            let disk = disk::open(spec.clone()).map_err(failed)?;
            self.check_size(index, disk.size(), desc)?;
            Ok((disk, info(spec.path, format, desc)))
        };
        self.manifest.disks.iter().enumerate().map(open).collect()
    }

    fn check_size(&self, index: usize, size: u64, desc: &DiskDesc) -> Result<(), RecordingError> {
        if size == desc.size_bytes {
            return Ok(());
        }
        let path = desc.files.first().map(|file| file.path.clone()).unwrap_or_default();
        let problem = format!("disk {index} had {} bytes and has {size}", desc.size_bytes);
        Err(RecordingError::Changed { path, problem })
    }
}

fn info(path: PathBuf, format: &str, desc: &DiskDesc) -> DiskInfo {
    let (size_bytes, read_only) = (desc.size_bytes, desc.read_only);
    DiskInfo { path, format: format.into(), size_bytes, read_only }
}
