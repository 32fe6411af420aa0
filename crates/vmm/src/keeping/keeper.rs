//! Who takes checkpoints of a VM: one at a time, each in a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use checkpoint::{Id, Manifest, Parent, Progress, Since};
use disk::{DiskHandle, Format};
use memory::{Epoch, Pages};

use super::cadence::Cadence;
use super::flight::{Flight, Lap};
use super::job::{self, Purpose};
use super::lap::LapPlan;
use super::status::{CheckpointRequest, CheckpointStatus, Phase, RecordRequest, RecordStatus};
use super::{KeepError, VmKept};
use crate::boot_files::BootSources;
use crate::inbox::{Inbox, Request, Verb};
use crate::recording::{LOG, LiveRecording, Recorded, folder};

/// Every so many checkpoints along a recording one stands alone, so that chains stay short.
const DEPTH: u32 = 32;

/// Niceness of the thread that saves.
const SAVER_NICENESS: i32 = 10;

/// A disk of the VM as it is now.
#[derive(Clone, Debug)]
pub(crate) struct LiveDisk {
    /// The image on top.
    pub path: PathBuf,
    pub format: Format,
    pub size: u64,
    pub read_only: bool,
    pub handle: DiskHandle,
}

/// A checkpoint that this machine was captured to or restored from.
#[derive(Clone, Debug)]
struct Kin {
    id: Id,
    epoch: Epoch,
}

/// Takes checkpoints.
pub(crate) struct Keeper {
    pub pages: Pages,
    pub inbox: Arc<Inbox>,
    pub kept: VmKept,
    pub boot: BootSources,
    state: Mutex<State>,
    /// Of a recording that began while the VM ran.
    cadence: Mutex<Option<Cadence>>,
    closing: AtomicBool,
}

struct State {
    disks: Vec<LiveDisk>,
    kin: Vec<Kin>,
    job: Option<Arc<Job>>,
    thread: Option<JoinHandle<()>>,
    recorded: Option<Recorded>,
    flight: Option<Flight>,
}

/// What a [`Keeper`] is made of.
pub(crate) struct KeeperParts {
    pub pages: Pages,
    pub inbox: Arc<Inbox>,
    pub kept: VmKept,
    pub boot: BootSources,
    pub disks: Vec<LiveDisk>,
    /// The checkpoint that the machine comes from, with the epoch that began then.
    pub restored: Option<(Id, Epoch)>,
    /// The recording that is being made of it from power-on.
    pub recorded: Option<Recorded>,
}

/// A checkpoint in the making, or the last one.
pub(crate) struct Job {
    pub request: CheckpointRequest,
    pub progress: Arc<Progress>,
    pub disk_bytes: AtomicU64,
    pub disk_bytes_done: AtomicU64,
    pub committed_bytes: AtomicU64,
    pub told: Mutex<Told>,
}

/// What is told of a job.
pub(crate) struct Told {
    pub phase: Phase,
    pub id: Option<Id>,
    pub stun_ns: Option<u64>,
    pub error: Option<String>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keeper")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where CPUs are scarce, the guest goes before the saver that runs beside it.
fn give_way() {
    // For this thread alone (setpriority(2), "C library/kernel differences"). Without it a save is
    // merely more felt.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), SAVER_NICENESS);
}

impl Job {
    pub fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }

    pub fn enter(&self, phase: Phase) {
        self.told().phase = phase;
    }
}

impl Keeper {
    pub fn new(parts: KeeperParts) -> Keeper {
        let KeeperParts { pages, inbox, kept, boot, disks, restored, recorded } = parts;
        let kin = restored.into_iter().map(|(id, epoch)| Kin { id, epoch }).collect();
        let state =
            Mutex::new(State { disks, kin, job: None, thread: None, recorded, flight: None });
        Keeper {
            pages,
            inbox,
            kept,
            boot,
            state,
            cadence: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Starts a checkpoint.
    pub fn start(self: &Arc<Self>, request: CheckpointRequest) -> Result<(), KeepError> {
        if !request.folder.is_absolute() {
            return Err(KeepError::Relative(request.folder));
        }
        let mut state = lock(&self.state);
        self.check_free(&state)?;
        self.start_job(&mut state, request, Purpose::Checkpoint).map(drop)
    }

    /// Starts a recording, which begins with a checkpoint.
    pub fn record(self: &Arc<Self>, request: &RecordRequest) -> Result<(), KeepError> {
        let dir = &request.folder;
        let every = request.checkpoint_every_ms.map(|ms| Duration::from_millis(ms.get()));
        if !dir.is_absolute() {
            return Err(KeepError::Relative(dir.into()));
        }
        let mut state = lock(&self.state);
        self.check_free(&state)?;
        if state.flight.is_some() {
            return Err(KeepError::Flight);
        }
        if let Some(recorded) = &state.recorded {
            return Err(KeepError::Recorded(recorded.dir.clone()));
        }
        let live = LiveRecording::make(dir)?;
        let request = CheckpointRequest {
            folder: live.start_folder(),
            keep_parent: true,
            incremental_from: None,
            compress: None,
            cow_limit: None,
            durable: true,
        };
        self.start_job(&mut state, request, Purpose::Begin(live, every)).map(drop)
    }

    /// Starts a checkpoint along the recording that is being made.
    pub fn checkpoint_along(self: &Arc<Self>) -> Result<Arc<Job>, KeepError> {
        let mut state = lock(&self.state);
        self.check_free(&state)?;
        let recorded = state.recorded.as_ref().ok_or(KeepError::NotRecorded)?;
        let number = recorded.count + 1;
        let stands_alone = number.is_multiple_of(DEPTH);
        let folder = folder(&recorded.dir, number);
        let request = CheckpointRequest {
            folder: std::path::absolute(&folder).unwrap_or(folder),
            keep_parent: true,
            incremental_from: recorded.last.clone().filter(|_| !stands_alone),
            compress: None,
            cow_limit: None,
            // One that a power cut spoils is passed over by those who replay.
            durable: false,
        };
        self.start_job(&mut state, request, Purpose::Along(number))
    }

    /// From now on a flight recorder goes along.
    pub fn set_flight(&self, flight: Flight) {
        lock(&self.state).flight = Some(flight);
    }

    /// Starts the flight recorder's next lap.
    pub fn next_lap(self: &Arc<Self>) -> Result<Arc<Job>, KeepError> {
        let mut state = lock(&self.state);
        self.check_free(&state)?;
        let (plan, request) = self.plan_lap(&mut state)?;
        self.start_job(&mut state, request, Purpose::Lap(plan))
    }

    /// Starts to make a recording into `dir` of what the flight recorder has.
    pub fn save_recording(self: &Arc<Self>, dir: &Path) -> Result<(), KeepError> {
        if !dir.is_absolute() {
            return Err(KeepError::Relative(dir.into()));
        }
        let mut state = lock(&self.state);
        self.check_free(&state)?;
        if state.flight.is_none() {
            return Err(KeepError::NoFlight);
        }
        let live = LiveRecording::make(dir)?;
        let (plan, request) = self.plan_lap(&mut state)?;
        self.start_job(&mut state, request, Purpose::Save(plan, live)).map(drop)
    }

    fn plan_lap(&self, state: &mut State) -> Result<(LapPlan, CheckpointRequest), KeepError> {
        let disks = state.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
        let disks: Vec<usize> = disks.map(|(index, _)| index).collect();
        let plan = state.flight.as_mut().ok_or(KeepError::NoFlight)?.plan(&disks)?;
        let request = CheckpointRequest {
            folder: plan.checkpoint.clone(),
            keep_parent: true,
            incremental_from: None,
            cow_limit: None,
            durable: false,
            compress: None,
        };
        Ok((plan, request))
    }

    /// A lap has begun.
    pub fn begin_lap(&self, lap: Lap) {
        if let Some(flight) = &mut lock(&self.state).flight {
            flight.begin(lap);
        }
    }

    /// Has the flight recorder forget what it need not keep.
    pub fn forget_laps(&self) {
        if let Some(flight) = &mut lock(&self.state).flight {
            flight.forget();
        }
    }

    /// The flight recorder's laps that a recording can be made of.
    pub fn laps(&self) -> Vec<Lap> {
        lock(&self.state).flight.as_ref().map(Flight::laps).unwrap_or_default()
    }

    /// Whether the flight recorder keeps more than it may.
    pub fn flight_is_full(&self) -> bool {
        lock(&self.state).flight.as_ref().is_some_and(Flight::is_full)
    }

    /// The checkpoint of this number along the recording is there.
    pub fn add_along(&self, number: u32, folder: &Path) {
        if let Some(recorded) = &mut lock(&self.state).recorded {
            (recorded.count, recorded.last) = (number, Some(folder.into()));
        }
    }

    /// Checkpoints along the recording that is being made so far; `None` if none is made.
    pub fn along_count(&self) -> Option<u32> {
        lock(&self.state).recorded.as_ref().map(|recorded| recorded.count)
    }

    fn check_free(&self, state: &State) -> Result<(), KeepError> {
        if self.is_closing() {
            return Err(KeepError::Ended);
        }
        match &state.job {
            Some(job) if !job.told().phase.is_over() => Err(KeepError::Busy),
            _ => Ok(()),
        }
    }

    fn start_job(
        self: &Arc<Self>,
        state: &mut State,
        request: CheckpointRequest,
        purpose: Purpose,
    ) -> Result<Arc<Job>, KeepError> {
        let told = Told { phase: Phase::Preparing, id: None, stun_ns: None, error: None };
        let job = Arc::new(Job {
            request,
            progress: Arc::default(),
            disk_bytes: AtomicU64::new(0),
            disk_bytes_done: AtomicU64::new(0),
            committed_bytes: AtomicU64::new(0),
            told: Mutex::new(told),
        });
        let (keeper, for_thread) = (Arc::clone(self), Arc::clone(&job));
        let work = move || {
            give_way();
            job::run(&keeper, &for_thread, purpose);
        };
        let thread = std::thread::Builder::new().name("saver".into()).spawn(work);
        state.thread = Some(thread.map_err(KeepError::Thread)?);
        state.job = Some(Arc::clone(&job));
        Ok(job)
    }

    /// The recording that is being made, if there is one.
    pub fn record_status(&self) -> Option<RecordStatus> {
        let state = lock(&self.state);
        let folder = state.recorded.as_ref()?.dir.clone();
        let log_bytes = folder.join(LOG).metadata().map_or(0, |log| log.len());
        Some(RecordStatus { folder, log_bytes })
    }

    /// A recording is being made now, or none any more.
    pub fn set_recorded(&self, recorded: Option<Recorded>) {
        self.set_cadence(None);
        let before = std::mem::replace(&mut lock(&self.state).recorded, recorded);
        // Not under the lock: it may wait for disks to be read.
        drop(before);
    }

    /// Who takes checkpoints along the recording that is being made, until it ends.
    pub fn set_cadence(&self, cadence: Option<Cadence>) {
        let before = std::mem::replace(&mut *lock(&self.cadence), cadence);
        // Not under a lock: it waits for its thread, which takes them.
        drop(before);
    }

    /// Has the machine's thread end its recording, and waits for that.
    pub fn end_recording(&self) {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.inbox.request(Request { verb: Verb::EndRecording, reply });
        // None was begun, or the VM has ended.
        let _ = answer.blocking_recv();
    }

    /// The last checkpoint, if there was one.
    pub fn status(&self) -> Option<CheckpointStatus> {
        let state = lock(&self.state);
        let job = state.job.as_ref()?;
        let told = job.told();
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let progress = &job.progress;
        Some(CheckpointStatus {
            phase: told.phase,
            folder: job.request.folder.clone(),
            id: told.id.map(|id| id.to_string()),
            pages: count(&progress.pages),
            pages_done: count(&progress.pages_done),
            bytes: count(&progress.bytes),
            stored_bytes: count(&progress.stored),
            copied: count(&progress.copied),
            overflowed: count(&progress.overflowed),
            stun_ns: told.stun_ns,
            disk_bytes: count(&job.disk_bytes),
            disk_bytes_done: count(&job.disk_bytes_done),
            committed_bytes: count(&job.committed_bytes),
            error: told.error.clone(),
            disks: state.disks.iter().map(|disk| disk.path.clone()).collect(),
        })
    }

    /// Gives the checkpoint up that is being taken; whether there was one.
    pub fn cancel(&self) -> bool {
        let state = lock(&self.state);
        let Some(job) = &state.job else { return false };
        let phase = job.told().phase;
        job.progress.cancelled.store(true, Ordering::Relaxed);
        !phase.is_over() && !phase.is_there()
    }

    /// The VM has ended: gives up what is being done, and waits for that.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.cancel();
        let thread = lock(&self.state).thread.take();
        if let Some(thread) = thread {
            // A panic of it was printed.
            let _ = thread.join();
        }
        self.set_recorded(None);
        drop(lock(&self.state).flight.take());
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    pub fn disks(&self) -> Vec<LiveDisk> {
        lock(&self.state).disks.clone()
    }

    /// From now on the top image of disk `index` is at `path`.
    pub fn set_disk(&self, index: usize, path: &Path, format: Format) {
        let mut state = lock(&self.state);
        if let Some(disk) = state.disks.get_mut(index) {
            (disk.path, disk.format) = (path.into(), format);
        }
    }

    pub fn add_kin(&self, id: Id, epoch: Epoch) {
        lock(&self.state).kin.push(Kin { id, epoch });
    }

    /// Since when an incremental checkpoint on top of the one in `folder` is to save.
    pub fn since(&self, folder: &Path, target: &Path) -> Result<Since, KeepError> {
        let id = Manifest::read(folder)?.id;
        let kin = lock(&self.state).kin.iter().find(|kin| kin.id == id).cloned();
        let Kin { id, epoch } = kin.ok_or_else(|| KeepError::NotKin(folder.into()))?;
        // Beside each other they may be moved together.
        let beside = folder.parent() == target.parent();
        let path = match folder.file_name() {
            Some(name) if beside => name.into(),
            _ => folder.to_owned(),
        };
        Ok(Since { epoch, parent: Parent { id, path } })
    }
}
