//! Making a recording while a VM runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use disk::{DiskSpec, Format, Parent};
use host::clock::monotonic_ns;
use machine::Machine;
use replay::Recorder;

use super::RecordingError;
use super::identity::Identity;
use super::log_file::LogFile;
use super::manifest::{BootDesc, DiskDesc, LOG, Manifest};
use crate::{VmError, VmSpec};

/// How long an entry may wait in memory, ns.
const FLUSH_NS: u64 = 500_000_000;
/// Checks are this far apart at least, ns...
const CHECK_NS: u64 = 5_000_000_000;
/// ...and so many times what the last one took, so that they cost a hundredth...
const CHECK_COST_FACTOR: u64 = 100;
/// ...but no farther than this, ns.
const CHECK_NS_MAX: u64 = 20_000_000_000;

/// How long the end of a VM waits for its disks' images to be read.
const HASH_PATIENCE: Duration = Duration::from_secs(5);

/// A folder with everything in it but the log.
pub(crate) struct NewRecording {
    dir: PathBuf,
    boot: BootDesc,
    disks: Vec<DiskDesc>,
    no_reboot: bool,
    /// Remove the folder again unless the recording starts.
    armed: bool,
}

/// A recording in progress, as the machine's thread sees it.
pub(crate) struct Recording {
    recorder: Option<Recorder<LogFile>>,
    flush_at_ns: u64,
    check_at_ns: u64,
    last_check_branches: u64,
}

/// A recording in progress, as everybody else sees it.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Its folder.
    pub dir: PathBuf,
    /// The last checkpoint in it, and how many there are along the way.
    pub last: Option<PathBuf>,
    pub count: u32,
    _hashes: Option<HashThread>,
}

/// Makes the folder and copies what the machine boots from; the VM that is to run instead of
/// `spec`, which writes to overlays.
pub(crate) fn set_up(spec: &VmSpec, dir: &Path) -> Result<(VmSpec, NewRecording), VmError> {
    let disks = spec.disks.iter().enumerate().map(|(index, disk)| describe(index, disk));
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    make_dir(dir)?;
    let kernel = "kernel".to_owned();
    let initrd = spec.initrd.is_some().then(|| "initrd".to_owned());
    let boot = BootDesc { kernel, initrd, cmdline: spec.cmdline.clone() };
    let no_reboot = spec.no_reboot;
    let new = NewRecording { dir: dir.into(), boot, disks, no_reboot, armed: true };
    let mut spec = spec.clone();
    spec.kernel = copy(&spec.kernel, &dir.join(&new.boot.kernel))?;
    if let (Some(from), Some(to)) = (&mut spec.initrd, &new.boot.initrd) {
        *from = copy(from, &dir.join(to))?;
    }
    for (index, disk) in spec.disks.iter_mut().enumerate() {
        if !disk.read_only {
            *disk = overlay(index, disk, dir)?;
        }
    }
    Ok((spec, new))
}

pub(super) fn make_dir(dir: &Path) -> Result<(), RecordingError> {
    match std::fs::create_dir_all(dir) {
        Ok(()) => {}
        Err(source) => return Err(RecordingError::file("make", dir)(source)),
    }
    let mut entries = dir.read_dir().map_err(RecordingError::file("read", dir))?;
    if entries.next().is_some() {
        return Err(RecordingError::Occupied(dir.into()));
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<PathBuf, RecordingError> {
    std::fs::copy(from, to).map_err(RecordingError::file("copy", from))?;
    Ok(to.into())
}

/// An overlay in `dir` over `base`, which stays as it is.
pub(super) fn overlay(
    index: usize,
    base: &DiskSpec,
    dir: &Path,
) -> Result<DiskSpec, RecordingError> {
    let path = dir.join(format!("disk{index}.qcow2"));
    let failed = |source| RecordingError::Disk { index, source };
    let base = DiskSpec { read_only: true, ..base.clone() };
    let format = disk::backing_chain(&base).map_err(failed)?[0].1;
    let size = disk::open(base.clone()).map_err(failed)?.size();
    let name = base.path.canonicalize().map_err(RecordingError::file("find", &base.path))?;
    let parent = Parent { path: name.clone(), format, size };
    disk::empty_overlay(&path, &parent, &name).map_err(failed)?;
    Ok(DiskSpec { path, format: Some(Format::Qcow2), read_only: false })
}

/// What the image of a disk is made of.
pub(super) fn describe(index: usize, spec: &DiskSpec) -> Result<DiskDesc, RecordingError> {
    let failed = |source| RecordingError::Disk { index, source };
    let base = DiskSpec { read_only: true, ..spec.clone() };
    let chain = disk::backing_chain(&base).map_err(failed)?;
    let size_bytes = disk::open(base).map_err(failed)?.size();
    let files = chain.iter().map(|(path, _)| Identity::of(path)).collect::<Result<_, _>>()?;
    let format = match chain[0].1 {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    Ok(DiskDesc { format: format.into(), size_bytes, read_only: spec.read_only, files })
}

impl NewRecording {
    /// Begins: from now on everything that enters `machine` is in the recording.
    pub fn start(mut self, machine: &mut Machine) -> Result<(Recording, Recorded), RecordingError> {
        let mut manifest =
            Manifest::new(machine.spec(), self.boot.clone(), std::mem::take(&mut self.disks));
        manifest.no_reboot = self.no_reboot;
        let path = self.dir.join(LOG);
        let file = LogFile::create(&path).map_err(RecordingError::file("make", &path))?;
        let recording = Recording::begin(machine, file)?;
        manifest.write(&self.dir)?;
        self.armed = false;
        Ok((recording, Recorded::new(manifest, self.dir.clone())))
    }
}

impl Drop for NewRecording {
    fn drop(&mut self) {
        if self.armed {
            // It was empty when we came.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recording")
    }
}

impl Recorded {
    /// The recording in `dir`, whose `manifest` was written and is to be completed.
    pub fn new(manifest: Manifest, dir: PathBuf) -> Recorded {
        let last = manifest.start.as_ref().map(|start| dir.join(start));
        let _hashes = HashThread::start(manifest, dir.clone());
        Recorded { dir, last, count: 0, _hashes }
    }
}

impl Recording {
    /// Begins: from now on everything that enters `machine` goes to `file`.
    pub fn begin(machine: &mut Machine, file: LogFile) -> Result<Recording, RecordingError> {
        let path = file.path().to_owned();
        let recorder = Recorder::start(machine, file)
            .map_err(|source| RecordingError::Log { path, source })?;
        let now = monotonic_ns();
        Ok(Recording {
            recorder: Some(recorder),
            flush_at_ns: now + FLUSH_NS,
            check_at_ns: now + FLUSH_NS,
            last_check_branches: 0,
        })
    }

    /// Does what is due; the machine is between two quanta, at a point of its execution.
    pub fn look(&mut self, machine: &mut Machine, output: impl FnOnce() -> u64) {
        let now = monotonic_ns();
        if now >= self.check_at_ns && machine.branches() != self.last_check_branches {
            self.last_check_branches = machine.branches();
            if let Some(recorder) = &self.recorder {
                recorder.check(machine, output());
            }
            let done = monotonic_ns();
            let cost = (done - now).saturating_mul(CHECK_COST_FACTOR);
            self.check_at_ns = done + cost.clamp(CHECK_NS, CHECK_NS_MAX);
        }
        if now >= self.flush_at_ns {
            self.flush(machine);
            self.flush_at_ns = now + FLUSH_NS;
        }
    }

    /// Notes that the checkpoint of this number is taken here; the number of the entry after that.
    pub fn note(&mut self, machine: &mut Machine, number: u32) -> Result<u64, RecordingError> {
        let ended = || RecordingError::Asked("the recording could not be written any more".into());
        let recorder = self.recorder.as_ref().ok_or_else(ended)?;
        recorder.note_checkpoint(machine, number);
        let entry = recorder.entries();
        self.flush(machine);
        Ok(entry)
    }

    /// Hands over all of a log that ends here, with a check if there is a digest for it.
    pub fn end_log(&mut self, machine: &mut Machine, output: Option<u64>) {
        if let (Some(recorder), Some(output)) = (&self.recorder, output) {
            recorder.check(machine, output);
        }
        self.flush(machine);
    }

    /// Makes checks when `before`, whose log went before, would have made them.
    pub fn follow(&mut self, before: &Recording) {
        self.check_at_ns = before.check_at_ns;
        self.last_check_branches = before.last_check_branches;
    }

    /// Hands over what is waiting in memory, because the guest will be idle.
    pub fn flush(&mut self, machine: &mut Machine) {
        let Some(Err(error)) = self.recorder.as_ref().map(Recorder::flush) else { return };
        tracing::error!("the recording ends here: {error}; the VM goes on");
        machine.observe(None);
        self.recorder = None;
    }

    /// Ends it in good order. Dropping it then waits until its log is durable.
    pub fn finish(&mut self, machine: &mut Machine, output: u64) {
        if let Some(Err(error)) = self.recorder.as_ref().map(|it| it.stop(machine, output)) {
            tracing::error!("the recording lacks its end: {error}");
        }
    }
}

/// Reads the disks' images, which nobody may write meanwhile, and completes the manifest.
#[derive(Debug)]
struct HashThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HashThread {
    fn start(mut manifest: Manifest, dir: PathBuf) -> Option<HashThread> {
        if manifest.disks.is_empty() {
            return None;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("hash".into()).spawn(move || {
            let files = manifest.disks.iter_mut().flat_map(|disk| &mut disk.files);
            let mut filled = files.map(|file| file.fill_hash(&stopped));
            let filled = filled.try_for_each(|filled| filled);
            if let Err(error) = filled.and_then(|()| manifest.write(&dir)) {
                tracing::warn!("the recording knows its disks by time of change alone: {error}");
            }
        });
        Some(HashThread { stop, thread: thread.ok() })
    }
}

impl Drop for HashThread {
    fn drop(&mut self) {
        let patience = Instant::now() + HASH_PATIENCE;
        let working = |thread: &JoinHandle<()>| !thread.is_finished();
        while self.thread.as_ref().is_some_and(working) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
