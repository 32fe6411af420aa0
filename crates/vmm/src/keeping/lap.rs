//! One lap of the flight recorder, and the recording that is made of all of them.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use checkpoint::{Captured, DiskKept, DiskPolicy, DiskReads, SaveOptions, Saver};
use disk::{BeforeImages, DiskSpec, Format, Marker};
use journal::{DiskCompletion, Entry, LogReader, LogWriter, What};

use super::flight::Lap;
use super::job::{Covered, commit_all, cover, describe, describe_vm, image};
use super::keeper::{Job, Keeper, LiveDisk};
use super::overlays::Waiting;
use super::status::{COW_LIMIT_DEFAULT, Phase};
use super::{CaptureOrder, CapturedVm, KeepError, Mark, OpaqueGuest};
use crate::RecordingError;
use crate::recording::{LiveRecording, LogFile};

/// A lap to be begun.
pub(crate) struct LapPlan {
    pub checkpoint: PathBuf,
    pub log: PathBuf,
    pub file: Option<LogFile>,
    pub before: Vec<(usize, BeforeImages)>,
}

/// A lap that has begun.
struct Begun {
    captured: Captured,
    /// Disks that were covered, where they were to be.
    covered: Vec<Covered>,
}

/// Begins a lap.
pub(super) fn take(keeper: &Keeper, job: &Job, plan: LapPlan) -> Result<(), KeepError> {
    let begun = begin(keeper, job, plan, None).map(drop);
    keeper.forget_laps();
    begun
}

/// Begins a lap, whose disks are overlays over what they were, and makes a recording of all that
/// was kept up to there.
pub(super) fn save_recording(
    keeper: &Keeper,
    job: &Job,
    plan: LapPlan,
    mut live: LiveRecording,
) -> Result<(), KeepError> {
    if keeper.laps().is_empty() {
        return Err(KeepError::NothingYet);
    }
    let disks = keeper.disks();
    let begun = begin(keeper, job, plan, Some(Waiting::all(&disks, true)?))?;
    job.enter(Phase::Disks);
    let mut laps = keeper.laps();
    // The last one begins where the recording ends.
    laps.pop();
    let made = make(&laps, &begun, &disks, &mut live);
    keeper.forget_laps();
    let images = match made {
        Ok(images) => images,
        Err(error) => {
            drop(live);
            commit_all(keeper, job, &disks, begun.covered)?;
            return Err(error);
        }
    };
    for Covered { waiting, .. } in &begun.covered {
        keeper.set_disk(waiting.index, &waiting.path, Format::Qcow2);
    }
    let digest = Some(laps[0].note.digest);
    let recorded = live.complete(&begun.captured.spec, &keeper.boot, &images, digest);
    // Dropped at once, it waits for the disks to be read.
    recorded.map(drop).map_err(|error| KeepError::Vm(error.to_string()))
}

/// Begins a lap; with overlays for its disks if a recording ends there.
fn begin(
    keeper: &Keeper,
    job: &Job,
    mut plan: LapPlan,
    waiting: Option<Vec<Waiting>>,
) -> Result<Begun, KeepError> {
    let check = waiting.is_some();
    let mut waiting = waiting.unwrap_or_default();
    let copies_max = (COW_LIMIT_DEFAULT / 4096) as usize;
    let options = SaveOptions { copies_max, since: None, durable: false, packed: false };
    let progress = Arc::clone(&job.progress);
    let (saver, guest) = Saver::prepare(&plan.checkpoint, &keeper.pages, options, progress)?;
    job.told().id = Some(saver.id());
    let (reply, answer) = channel();
    keeper.inbox.order_capture(CaptureOrder {
        guest: Box::new(OpaqueGuest(guest)),
        overlays: waiting.iter_mut().filter_map(Waiting::take).collect(),
        before: plan.before.clone(),
        mark: plan.file.take().map(|log| Mark::Next { log, check }),
        reply,
    });
    let CapturedVm { captured, switched, stun_ns, marked, moments } =
        answer.recv().map_err(|_| KeepError::Ended)?;
    job.told().stun_ns = Some(stun_ns);
    job.enter(Phase::Saving);
    let (covered, failure) = cover(waiting, switched);
    let marked = match (marked, failure) {
        (Ok(marked), None) => marked,
        (marked, failure) => {
            commit_all(keeper, job, &keeper.disks(), covered)?;
            return Err(failure.map_or_else(
                || marked.err().map_or(KeepError::Ended, KeepError::from),
                KeepError::from,
            ));
        }
    };
    // Its log is complete when this returns.
    drop(marked.old);
    let note = marked.note.ok_or(KeepError::Ended)?;
    let LapPlan { checkpoint, log, before, .. } = plan;
    let mut lap = Lap { checkpoint: None, log, note, before, began: Instant::now() };
    let saved = save(keeper, saver, &captured, &covered, moments);
    if saved.is_ok() {
        lap.checkpoint = Some(checkpoint);
    }
    keeper.begin_lap(lap);
    match saved {
        Ok(()) => Ok(Begun { captured, covered }),
        Err(error) => {
            commit_all(keeper, job, &keeper.disks(), covered)?;
            Err(error)
        }
    }
}

fn save(
    keeper: &Keeper,
    saver: Saver,
    captured: &Captured,
    covered: &[Covered],
    moments: Vec<(usize, disk::Moment)>,
) -> Result<(), KeepError> {
    let saved = saver.save_memory()?;
    let disks = keeper.disks();
    let mut reads = vec![DiskReads::default(); disks.len()];
    for (index, moment) in moments {
        reads[index] = kept_reads(moment.wait()?);
    }
    for Covered { waiting, reads: read, .. } in covered {
        reads[waiting.index] = read.clone();
    }
    // Whose disks are those of the moment, a recording says that is made of it.
    let kept = disks.iter().map(|LiveDisk { path, format, size, .. }| {
        describe(DiskPolicy::ReadOnly, path, *format, *size, None)
    });
    let kept = kept.collect::<Result<Vec<_>, _>>()?;
    saved.finish(captured, &reads, kept, describe_vm(keeper, None))?;
    Ok(())
}

fn kept_reads(reads: Vec<DiskCompletion>) -> DiskReads {
    let reads = reads.into_iter().map(|read| (read.id, read.result.ok().map(Into::into)));
    DiskReads { reads: reads.collect() }
}

/// Everything of the recording but its manifest; its disks.
fn make(
    laps: &[Lap],
    begun: &Begun,
    disks: &[LiveDisk],
    live: &mut LiveRecording,
) -> Result<Vec<DiskSpec>, KeepError> {
    let (mut images, mut kept): (Vec<DiskSpec>, Vec<DiskKept>) = (Vec::new(), Vec::new());
    for (index, disk) in disks.iter().enumerate() {
        let Some(covered) = begun.covered.iter().find(|it| it.waiting.index == index) else {
            kept.push(describe(DiskPolicy::ReadOnly, &disk.path, disk.format, disk.size, None)?);
            images.push(image(disk));
            continue;
        };
        let Covered { waiting, retained, .. } = covered;
        retained.share()?;
        let path = live.disk(index);
        let before = laps.iter().flat_map(|lap| &lap.before);
        let before = before.filter(|(disk, _)| *disk == index).map(|(_, before)| before.clone());
        disk::image_of_before(&path, &retained.parent(), &before.collect::<Vec<_>>())?;
        kept.push(describe(DiskPolicy::Kept, &path, Format::Qcow2, disk.size, None)?);
        images.push(DiskSpec { path, format: Some(Format::Qcow2), read_only: false });
        let marker = Marker { overlay: waiting.path.clone(), keep: true };
        marker.write(&waiting.parent.path)?;
    }
    let first = laps.first().and_then(|lap| lap.checkpoint.as_ref());
    let first = first.ok_or(KeepError::NothingYet)?;
    checkpoint::adopt(first, &live.start_folder(), kept)?;
    let log = live.take_log().ok_or(KeepError::Ended)?;
    join(laps, &begun.captured, log)?;
    Ok(images)
}

/// Writes all pieces of the log as one, with an end where the last lap ended.
fn join(laps: &[Lap], end: &Captured, to: LogFile) -> Result<(), RecordingError> {
    let path = to.path().to_owned();
    let failed = |source| RecordingError::Log { path: path.clone(), source };
    let mut writer = LogWriter::new(to).map_err(failed)?;
    for lap in laps {
        let file = File::open(&lap.log).map_err(RecordingError::file("read", &lap.log))?;
        let failed = |source| RecordingError::Log { path: lap.log.clone(), source };
        let mut reader = LogReader::new(BufReader::new(file)).map_err(failed)?;
        while let Some(entry) = reader.next_entry().map_err(failed)? {
            writer.append(&entry).map_err(failed)?;
        }
    }
    let (point, at) = (end.point, Entry::time(end.virtual_time));
    writer.append(&Entry { point, at, what: What::End }).map_err(failed)?;
    writer.flush().map_err(failed)
}
