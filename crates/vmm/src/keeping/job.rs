//! One checkpoint, from its overlays to their commit, in the order of C2 to C9.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::{Duration, UNIX_EPOCH};

use checkpoint::{Captured, CheckpointError, DiskKept, DiskPolicy, DiskReads, SaveOptions, Saver};
use disk::{CommitState, DiskError, DiskSpec, Format, Marker, Retained};
use machine::MachineSpec;

use super::cadence::Cadence;
use super::keeper::{Job, Keeper, LiveDisk};
use super::lap::{self, LapPlan};
use super::overlays::Waiting;
use super::status::{COW_LIMIT_DEFAULT, Phase};
use super::{CaptureOrder, CapturedVm, KeepError, Mark, OpaqueGuest};
use crate::VmError;
use crate::recording::{LiveRecording, NOTE, Note};

/// How often a commit is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A disk whose image is below an overlay now.
pub(super) struct Covered {
    pub waiting: Waiting,
    pub retained: Retained,
    pub reads: DiskReads,
}

/// What a checkpoint is taken for.
pub(super) enum Purpose {
    /// For itself.
    Checkpoint,
    /// A recording begins with it; checkpoints along it are to be taken so often.
    Begin(LiveRecording, Option<Duration>),
    /// It is the one of this number along the recording.
    Along(u32),
    /// It is the flight recorder's next lap.
    Lap(LapPlan),
    /// Likewise, and what came before becomes a recording.
    Save(LapPlan, LiveRecording),
}

/// Takes the checkpoint, and tells how it went.
pub(super) fn run(keeper: &Arc<Keeper>, job: &Job, purpose: Purpose) {
    let ended = match purpose {
        Purpose::Checkpoint => take(keeper, job, None).map(drop),
        Purpose::Begin(live, every) => record(keeper, job, live, every),
        Purpose::Along(number) => take(keeper, job, Some(Mark::Along(number)))
            .map(|_| keeper.add_along(number, &job.request.folder)),
        Purpose::Lap(plan) => lap::take(keeper, job, plan),
        Purpose::Save(plan, live) => lap::save_recording(keeper, job, plan, live),
    };
    let mut told = job.told();
    match ended {
        Ok(()) => told.phase = Phase::Done,
        Err(KeepError::Checkpoint(CheckpointError::Cancelled)) => told.phase = Phase::Cancelled,
        Err(error) => {
            told.phase = Phase::Failed;
            told.error = Some(error.to_string());
        }
    }
}

/// Begins a recording. If that fails the VM is not recorded.
fn record(
    keeper: &Arc<Keeper>,
    job: &Job,
    mut live: LiveRecording,
    every: Option<Duration>,
) -> Result<(), KeepError> {
    let begin = live.take_log().map(Mark::Begin);
    let failed = |error: VmError| KeepError::Vm(error.to_string());
    let complete = |Taken { spec, disks }: Taken| {
        let recorded = live.complete(&spec, &keeper.boot, &disks, None).map_err(failed)?;
        let cadence = every.map(|every| Cadence::start(keeper, every)).transpose();
        keeper.set_recorded(Some(recorded));
        keeper.set_cadence(cadence.map_err(failed)?);
        Ok(())
    };
    let recorded = take(keeper, job, begin).and_then(complete);
    if recorded.is_err() {
        keeper.end_recording();
    }
    recorded
}

/// What was kept.
struct Taken {
    spec: MachineSpec,
    /// The images as they are below what the VM writes now.
    disks: Vec<DiskSpec>,
}

fn take(keeper: &Keeper, job: &Job, mark: Option<Mark>) -> Result<Taken, KeepError> {
    let request = &job.request;
    let from = request.incremental_from.as_deref();
    let since = from.map(|from| keeper.since(from, &request.folder)).transpose()?;
    let copies_max = request.cow_limit.unwrap_or(COW_LIMIT_DEFAULT) / 4096;
    let options = SaveOptions {
        copies_max: usize::try_from(copies_max).unwrap_or(usize::MAX),
        since,
        durable: request.durable,
        packed: request.compress.is_some(),
    };
    let progress = std::sync::Arc::clone(&job.progress);
    let (saver, guest) = Saver::prepare(&request.folder, &keeper.pages, options, progress)?;
    let disks = keeper.disks();
    let mut waiting = Waiting::all(&disks, request.keep_parent)?;
    job.told().id = Some(saver.id());
    job.progress.check()?;
    let (reply, answer) = channel();
    let overlays = waiting.iter_mut().filter_map(Waiting::take).collect();
    keeper.inbox.order_capture(CaptureOrder {
        guest: Box::new(OpaqueGuest(guest)),
        overlays,
        before: Vec::new(),
        mark,
        reply,
    });
    let CapturedVm { captured, switched, stun_ns, marked, .. } =
        answer.recv().map_err(|_| KeepError::Ended)?;
    job.told().stun_ns = Some(stun_ns);
    job.enter(Phase::Saving);
    let (covered, failure) = cover(waiting, switched);
    let id = saver.id();
    let saved = match (failure, marked) {
        (None, Ok(marked)) => {
            let vm = describe_vm(keeper, marked.note);
            save(job, saver, &captured, &covered, &disks, vm)
        }
        (Some(error), _) => Err(error.into()),
        (None, Err(error)) => Err(error.into()),
    };
    let taken = Taken { spec: captured.spec.clone(), disks: disks.iter().map(image).collect() };
    if saved.is_ok() {
        keeper.add_kin(id, captured.epoch);
        job.enter(Phase::Committing);
        if request.keep_parent {
            for Covered { waiting, .. } in &covered {
                keeper.set_disk(waiting.index, &waiting.path, Format::Qcow2);
            }
            return Ok(taken);
        }
    }
    let committed = commit_all(keeper, job, &disks, covered);
    saved.and(committed).map(|()| taken)
}

/// What the manifest says of the VM, with what the checkpoint is to a recording.
pub(super) fn describe_vm(keeper: &Keeper, note: Option<Note>) -> serde_json::Value {
    let mut vm = serde_json::to_value(&keeper.kept).unwrap_or_default();
    if let (Some(note), Some(fields)) = (note, vm.as_object_mut()) {
        fields.insert(NOTE.into(), serde_json::to_value(note).unwrap_or_default());
    }
    vm
}

pub(super) fn image(disk: &LiveDisk) -> DiskSpec {
    let LiveDisk { path, format, read_only, .. } = disk;
    DiskSpec { path: path.clone(), format: Some(*format), read_only: *read_only }
}

/// Waits until the disks have switched. Those that could not go on as they were; the first failure
/// is told.
pub(super) fn cover(
    waiting: Vec<Waiting>,
    switched: Vec<(usize, disk::Switched)>,
) -> (Vec<Covered>, Option<DiskError>) {
    let (mut covered, mut failure) = (Vec::new(), None);
    for (mut waiting, (_, switched)) in waiting.into_iter().zip(switched) {
        match switched.wait() {
            Ok((retained, reads)) => {
                waiting.has_switched();
                let reads = reads.into_iter();
                let reads = reads.map(|read| (read.id, read.result.ok().map(Into::into)));
                let reads = DiskReads { reads: reads.collect() };
                covered.push(Covered { waiting, retained, reads });
            }
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    (covered, failure)
}

/// Saves memory and disks, and gives the checkpoint its name.
fn save(
    job: &Job,
    saver: Saver,
    captured: &Captured,
    covered: &[Covered],
    disks: &[LiveDisk],
    vm: serde_json::Value,
) -> Result<(), KeepError> {
    for Covered { retained, .. } in covered {
        retained.share()?;
    }
    let saved = saver.save_memory()?;
    job.enter(Phase::Disks);
    let keep = job.request.keep_parent;
    let to_copy = if keep { 0 } else { covered.iter().map(|c| c.retained.parent().size).sum() };
    job.disk_bytes.store(to_copy, Ordering::Relaxed);
    let mut kept = Vec::new();
    let mut reads = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let below = covered.iter().find(|covered| covered.waiting.index == index);
        reads.push(below.map(|covered| covered.reads.clone()).unwrap_or_default());
        kept.push(match below {
            None => describe(DiskPolicy::ReadOnly, &disk.path, disk.format, disk.size, None)?,
            Some(Covered { retained, .. }) if keep => {
                let image = retained.parent();
                describe(DiskPolicy::Kept, &image.path, image.format, image.size, None)?
            }
            Some(Covered { retained, .. }) => {
                let name = format!("disk{index}.qcow2");
                let to = saved.path(&name);
                let before = job.disk_bytes_done.load(Ordering::Relaxed);
                disk::copy_disk(retained, &to, &mut |done| {
                    job.disk_bytes_done.store(before + done, Ordering::Relaxed);
                    job.progress.check().is_ok()
                })
                .map_err(|error| {
                    job.progress.check().err().map_or(error.into(), KeepError::from)
                })?;
                let size = retained.parent().size;
                describe(DiskPolicy::Copied, &to, Format::Qcow2, size, Some(&name))?
            }
        });
    }
    if keep {
        // Before the checkpoint is there: from then on nobody may write its disks.
        for Covered { waiting, .. } in covered {
            let marker = Marker { overlay: waiting.path.clone(), keep: true };
            marker.write(&waiting.parent.path)?;
        }
    }
    saved.finish(captured, &reads, kept, vm)?;
    Ok(())
}

pub(super) fn describe(
    policy: DiskPolicy,
    path: &Path,
    format: Format,
    size_bytes: u64,
    name: Option<&str>,
) -> Result<DiskKept, KeepError> {
    let failed = |source| CheckpointError::Io { action: "examine", path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let modified = metadata.modified().map_err(failed)?.duration_since(UNIX_EPOCH);
    let path = match name {
        Some(name) => name.into(),
        None => std::path::absolute(path).map_err(failed)?,
    };
    Ok(DiskKept {
        policy,
        path,
        format: format.name().into(),
        size_bytes,
        file_size: metadata.len(),
        modified_ns: modified.map_or(0, |time| time.as_nanos() as u64),
    })
}

/// Commits overlays back into their images. One that cannot be is what the VM goes on with; its
/// marker has it committed when the image is opened next.
pub(super) fn commit_all(
    keeper: &Keeper,
    job: &Job,
    disks: &[LiveDisk],
    covered: Vec<Covered>,
) -> Result<(), KeepError> {
    let mut result = Ok(());
    for covered in covered {
        let index = covered.waiting.index;
        let committed = commit(keeper, job, &disks[index], &covered);
        result = result.and(committed.map_err(|error| {
            let overlay = covered.waiting.path.clone();
            keeper.set_disk(index, &overlay, Format::Qcow2);
            KeepError::NotCommitted { overlay, source: Box::new(error) }
        }));
    }
    result
}

fn commit(keeper: &Keeper, job: &Job, disk: &LiveDisk, covered: &Covered) -> Result<(), KeepError> {
    let Covered { waiting, retained, .. } = covered;
    let marker = Marker { overlay: waiting.path.clone(), keep: false };
    marker.write(&waiting.parent.path)?;
    let parent = retained.reclaim()?;
    let before = job.committed_bytes.load(Ordering::Relaxed);
    let watch = disk.handle.commit(waiting.path.clone(), parent, waiting.parent.path.clone());
    let mut synced = false;
    loop {
        job.committed_bytes.store(before + watch.copied(), Ordering::Relaxed);
        match watch.state() {
            CommitState::Done => return Ok(()),
            CommitState::Failed => {
                let failure = watch.take_failure();
                return Err(failure.map_or(KeepError::Ended, KeepError::from));
            }
            CommitState::CaughtUp if !synced => {
                // What takes long is done here, so that the disk's thread need not.
                retained.sync()?;
                watch.may_finish();
                disk.handle.wake();
                synced = true;
            }
            _ if keeper.is_closing() => return Err(KeepError::Ended),
            _ => std::thread::sleep(LOOK),
        }
    }
}
