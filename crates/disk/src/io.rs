//! One thread per disk: takes the machine's requests, does them in the order of submission, and
//! keeps each completion until it is asked for.
//!
//! Concurrency: everything shared is in one mutex (`State`); the backend belongs to the thread
//! alone. The machine side never waits for the host except in [`DiskIo::wait`] and, when more than
//! [`PENDING_BYTES_MAX`] are under way, in [`DiskIo::submit`]. Completions nobody has asked for
//! hold the thread back at the same limit, unless somebody waits: so memory is bounded by two such
//! amounts plus what one waiter makes the thread pass over, and nothing can deadlock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use journal::{DiskCompletion, DiskFailed, DiskOperation, DiskRequest};

use crate::backend::check_range;
use crate::before::BeforeImages;
use crate::commit::{CommitWatch, Committing};
use crate::overlay::{Overlay, Retained};
use crate::{BlockBackend, DiskError, SECTOR_SIZE};

/// Requests after which background work gets a turn in between.
const REQUESTS_PER_WORK: u64 = 2;

/// Largest read or write in bytes; a larger request fails.
pub const REQUEST_LEN_MAX: usize = 32 << 20;

/// Bytes of write data queued, and of read data not yet fetched, above which the other side waits.
pub const PENDING_BYTES_MAX: usize = 64 << 20;

/// The machine's side of a disk's thread. Dropping it finishes what was submitted, flushes, and
/// closes the image.
pub struct DiskIo {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Box<dyn BlockBackend>>>,
    size: u64,
    read_only: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the thread does, in the order of submission.
enum Job {
    Request(DiskRequest),
    /// Put an overlay on top.
    Switch(Box<Overlay>, Sender<Result<Retained, DiskError>>),
    /// From here, keep what was there before.
    Preserve(BeforeImages, Sender<()>),
    /// Commit the overlay at a path into its parent.
    Commit {
        overlay: PathBuf,
        parent: Box<dyn BlockBackend>,
        path: PathBuf,
        watch: CommitWatch,
    },
}

/// The outcome of [`DiskIo::switch`], when there is one.
#[derive(Debug)]
pub struct Switched {
    shared: Arc<Shared>,
    retained: Receiver<Result<Retained, DiskError>>,
    witnessed: Vec<u64>,
}

/// The outcome of [`DiskIo::preserve`], when there is one.
#[derive(Debug)]
pub struct Moment {
    shared: Arc<Shared>,
    passed: Receiver<()>,
    witnessed: Vec<u64>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    queued_bytes: usize,
    /// Submitted and not yet fetched.
    in_flight: BTreeSet<u64>,
    done: BTreeMap<u64, DiskCompletion>,
    done_bytes: usize,
    /// Requests whose completion a checkpoint wants too, and those that were fetched meanwhile.
    witnessed: BTreeMap<u64, Option<DiskCompletion>>,
    waiters: usize,
    stopping: bool,
    /// Requests the host failed to do, and why the last one failed.
    failures: u64,
    last_failure: Option<String>,
}

impl DiskIo {
    /// Starts a thread that owns `backend`.
    ///
    /// # Panics
    /// If the host cannot create a thread.
    pub fn spawn(backend: Box<dyn BlockBackend>) -> DiskIo {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let (size, read_only) = (backend.size(), backend.read_only());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("disk".into())
            .spawn(move || serve(&for_thread, backend))
            .expect("the host has no room for another thread");
        DiskIo { shared, thread: Some(thread), size, read_only }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the disk refuses changes.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Queues a request. Waits only while more than [`PENDING_BYTES_MAX`] of write data are queued.
    ///
    /// # Panics
    /// If the id is in flight already, that is submitted and its completion not yet fetched.
    pub fn submit(&self, request: DiskRequest) {
        let bytes = request_bytes(&request);
        let mut state = self.shared.lock();
        state.waiters += 1;
        while state.queued_bytes > 0 && state.queued_bytes + bytes > PENDING_BYTES_MAX {
            self.shared.changed.notify_all();
            state = self.shared.wait(state);
        }
        state.waiters -= 1;
        assert!(state.in_flight.insert(request.id), "disk request {} twice", request.id);
        state.queued_bytes += bytes;
        state.queue.push_back(Job::Request(request));
        self.shared.changed.notify_all();
    }

    /// From now on requests go to `overlay`, which comes on top of the disk: those submitted
    /// before are in what is below it, and so in both (mechanism C8). Waits for nothing.
    ///
    /// `reads` are requests in flight whose results a checkpoint needs as well as the machine
    /// (mechanism C7); the outcome gives them.
    pub fn switch(&self, overlay: Overlay, reads: Vec<u64>) -> Switched {
        let (outcome, retained) = channel();
        let mut state = self.shared.lock();
        state.witnessed = reads.iter().map(|id| (*id, None)).collect();
        state.queue.push_back(Job::Switch(Box::new(overlay), outcome));
        self.shared.changed.notify_all();
        Switched { shared: Arc::clone(&self.shared), retained, witnessed: reads }
    }

    /// From now on `before` keeps what the disk has, as it is changed: those requests that were
    /// submitted before are in the disk of this moment. Waits for nothing. `reads` as in
    /// [`DiskIo::switch`].
    pub fn preserve(&self, before: BeforeImages, reads: Vec<u64>) -> Moment {
        let (outcome, passed) = channel();
        let mut state = self.shared.lock();
        state.witnessed.extend(reads.iter().map(|id| (*id, None)));
        state.queue.push_back(Job::Preserve(before, outcome));
        self.shared.changed.notify_all();
        Moment { shared: Arc::clone(&self.shared), passed, witnessed: reads }
    }

    /// A second handle to order things by, for another thread.
    pub fn handle(&self) -> DiskHandle {
        DiskHandle { shared: Arc::clone(&self.shared) }
    }

    /// The completion of request `id`; blocks until there is one. Completions of other requests
    /// are kept. An id that is not in flight gives a failed completion at once.
    pub fn wait(&self, id: u64) -> DiskCompletion {
        let mut state = self.shared.lock();
        state.waiters += 1;
        self.shared.changed.notify_all();
        while state.in_flight.contains(&id) && !state.done.contains_key(&id) {
            state = self.shared.wait(state);
        }
        state.waiters -= 1;
        self.take(&mut state, id).unwrap_or(DiskCompletion { id, result: Err(DiskFailed) })
    }

    /// The completion of request `id` if it is there already.
    pub fn try_wait(&self, id: u64) -> Option<DiskCompletion> {
        self.take(&mut self.shared.lock(), id)
    }

    /// Blocks until everything submitted has been done; completions are kept.
    pub fn drain(&self) {
        let mut state = self.shared.lock();
        state.waiters += 1;
        self.shared.changed.notify_all();
        while state.in_flight.len() > state.done.len() {
            state = self.shared.wait(state);
        }
        state.waiters -= 1;
    }

    /// How many requests the host failed to do, and why the last one failed.
    pub fn failures(&self) -> (u64, Option<String>) {
        let state = self.shared.lock();
        (state.failures, state.last_failure.clone())
    }

    /// Finishes what was submitted, flushes, ends the thread, and gives the backend back.
    ///
    /// Fails with the flush's error; the image is closed then.
    pub fn shutdown(mut self) -> Result<Box<dyn BlockBackend>, DiskError> {
        let mut backend = self.stop().expect("a thread that was not stopped before");
        backend.flush()?;
        Ok(backend)
    }

    fn take(&self, state: &mut State, id: u64) -> Option<DiskCompletion> {
        let completion = state.done.remove(&id)?;
        if let Some(witness) = state.witnessed.get_mut(&id) {
            *witness = Some(completion.clone());
        }
        state.in_flight.remove(&id);
        state.done_bytes -= completion_bytes(&completion);
        self.shared.changed.notify_all();
        Some(completion)
    }

    fn stop(&mut self) -> Option<Box<dyn BlockBackend>> {
        let thread = self.thread.take()?;
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        match thread.join() {
            Ok(backend) => Some(backend),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for DiskIo {
    fn drop(&mut self) {
        let flushed = self.stop().map(|mut backend| backend.flush());
        if let Some(Err(error)) = flushed {
            tracing::error!("{error}");
        }
    }
}

/// Orders a disk's images about from another thread.
#[derive(Clone, Debug)]
pub struct DiskHandle {
    shared: Arc<Shared>,
}

impl DiskHandle {
    /// Commits the overlay at `overlay`, which is on top, into its parent at `path` while the disk
    /// is used; the parent then takes over (mechanism C9).
    pub fn commit(
        &self,
        overlay: PathBuf,
        parent: Box<dyn BlockBackend>,
        path: PathBuf,
    ) -> CommitWatch {
        let watch = CommitWatch::default();
        let job = Job::Commit { overlay, parent, path, watch: watch.clone() };
        self.shared.lock().queue.push_back(job);
        self.shared.changed.notify_all();
        watch
    }

    /// Has the thread look for work again, after [`CommitWatch::may_finish`].
    pub fn wake(&self) {
        // Under the lock, so that a thread about to wait does not miss it.
        let _state = self.shared.lock();
        self.shared.changed.notify_all();
    }
}

impl Switched {
    /// Waits for the disk's thread to do what was submitted before, and to switch. Gives what is
    /// below the overlay now, and the results of the reads asked for.
    ///
    /// Fails with the [`DiskError`] for which the disk goes on as it was.
    pub fn wait(self) -> Result<(Retained, Vec<DiskCompletion>), DiskError> {
        let gone = || DiskError::NoOverlay { why: "the VM ended meanwhile" };
        let retained = self.retained.recv().map_err(|_| gone())??;
        let completions = witnessed(&self.shared, &self.witnessed);
        Ok((retained, completions))
    }
}

impl Moment {
    /// Waits for the disk's thread to do what was submitted before. Gives the results of the reads
    /// asked for.
    ///
    /// Fails with [`DiskError::NoOverlay`] if the VM ended meanwhile.
    pub fn wait(self) -> Result<Vec<DiskCompletion>, DiskError> {
        let gone = |_| DiskError::NoOverlay { why: "the VM ended meanwhile" };
        self.passed.recv().map_err(gone)?;
        Ok(witnessed(&self.shared, &self.witnessed))
    }
}

/// The results of the reads that a checkpoint asked for.
fn witnessed(shared: &Shared, ids: &[u64]) -> Vec<DiskCompletion> {
    let mut state = shared.lock();
    let witnessed = std::mem::take(&mut state.witnessed);
    let of = |id: &u64| {
        let fetched = witnessed.get(id).cloned().flatten();
        fetched.or_else(|| state.done.get(id).cloned())
    };
    ids.iter().filter_map(of).collect()
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Job::Request(_) => "Request",
            Job::Switch(..) => "Switch",
            Job::Preserve(..) => "Preserve",
            Job::Commit { .. } => "Commit",
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // State is valid between any two statements; a panic elsewhere must not hide a disk.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: requests in order until told to stop and nothing is left.
fn serve(shared: &Shared, mut backend: Box<dyn BlockBackend>) -> Box<dyn BlockBackend> {
    let mut state = shared.lock();
    let mut served = 0u64;
    let mut before: Option<BeforeImages> = None;
    loop {
        let held_back = state.done_bytes > PENDING_BYTES_MAX && state.waiters == 0;
        let next = if held_back && !state.stopping { None } else { state.queue.pop_front() };
        let Some(job) = next else {
            if state.stopping {
                return backend;
            }
            if backend.has_work() {
                drop(state);
                work(backend.as_mut());
                state = shared.lock();
            } else {
                state = shared.wait(state);
            }
            continue;
        };
        drop(state);
        served += 1;
        if served.is_multiple_of(REQUESTS_PER_WORK) && backend.has_work() {
            work(backend.as_mut());
        }
        let request = match job {
            Job::Request(request) => request,
            Job::Preserve(images, outcome) => {
                before = Some(images);
                // Whoever asked may have gone.
                let _ = outcome.send(());
                state = shared.lock();
                continue;
            }
            other => {
                backend = control(other, backend);
                state = shared.lock();
                continue;
            }
        };
        let (id, bytes) = (request.id, request_bytes(&request));
        if let Some(before) = &before {
            keep_before(before, backend.as_mut(), &request.operation);
        }
        let result = perform(backend.as_mut(), request.operation);
        state = shared.lock();
        state.queued_bytes -= bytes;
        let result = result.map_err(|reason| note_failure(&mut state, reason));
        let completion = DiskCompletion { id, result };
        state.done_bytes += completion_bytes(&completion);
        state.done.insert(id, completion);
        shared.changed.notify_all();
    }
}

/// Does a little background work; a panic in it is as good as an error.
fn work(backend: &mut dyn BlockBackend) {
    if catch_unwind(AssertUnwindSafe(|| backend.work())).is_err() {
        tracing::error!("a disk's background work failed; see the panic message");
    }
}

/// Changes the images that make the disk.
fn control(job: Job, mut backend: Box<dyn BlockBackend>) -> Box<dyn BlockBackend> {
    match job {
        Job::Request(_) | Job::Preserve(..) => backend,
        Job::Switch(overlay, outcome) => match overlay.cover(backend.as_mut()) {
            Ok((on_top, retained)) => {
                // Whoever asked may have gone.
                let _ = outcome.send(Ok(retained));
                on_top
            }
            Err(error) => {
                let _ = outcome.send(Err(error));
                backend
            }
        },
        Job::Commit { overlay, parent, path, watch } => {
            Box::new(Committing::new(backend, overlay, parent, path, watch))
        }
    }
}

/// Keeps what a request is about to change; a panic of a backend is as good as an error of the
/// request, which comes next.
fn keep_before(before: &BeforeImages, disk: &mut dyn BlockBackend, operation: &DiskOperation) {
    let (offset, len) = match operation {
        DiskOperation::Read { .. } | DiskOperation::Flush => return,
        DiskOperation::Write { offset, data } => (*offset, data.len() as u64),
        DiskOperation::Discard { offset, len } | DiskOperation::WriteZeroes { offset, len } => {
            (*offset, *len)
        }
    };
    if catch_unwind(AssertUnwindSafe(|| before.keep(disk, offset, len))).is_err() {
        tracing::error!("a disk's code failed; see the panic message");
    }
}

fn note_failure(state: &mut State, reason: String) -> DiskFailed {
    // A guest can make any number of requests fail; only the first few are worth a line.
    if state.failures < 10 {
        tracing::warn!("disk request failed: {reason}");
    }
    state.failures += 1;
    state.last_failure = Some(reason);
    DiskFailed
}

/// Does one operation; a panic of a backend fails the request, not the thread.
fn perform(backend: &mut dyn BlockBackend, operation: DiskOperation) -> Result<Vec<u8>, String> {
    match catch_unwind(AssertUnwindSafe(|| try_perform(backend, operation))) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the disk's code failed; see the panic message".into()),
    }
}

fn try_perform(
    backend: &mut dyn BlockBackend,
    operation: DiskOperation,
) -> Result<Vec<u8>, DiskError> {
    let size = backend.size();
    let check = |offset: u64, len: u64, len_max: u64| {
        let whole = offset.is_multiple_of(SECTOR_SIZE) && len.is_multiple_of(SECTOR_SIZE);
        if !whole || len > len_max {
            return Err(DiskError::OutOfRange { offset, len, size });
        }
        check_range(offset, len, size)
    };
    match operation {
        DiskOperation::Read { offset, len } => {
            check(offset, len.into(), REQUEST_LEN_MAX as u64)?;
            let mut data = vec![0; len as usize];
            backend.read_at(offset, &mut data)?;
            return Ok(data);
        }
        DiskOperation::Write { offset, data } => {
            check(offset, data.len() as u64, REQUEST_LEN_MAX as u64)?;
            backend.write_at(offset, &data)?;
        }
        DiskOperation::Flush => backend.flush()?,
        DiskOperation::Discard { offset, len } => {
            check(offset, len, u64::MAX)?;
            backend.discard(offset, len)?;
        }
        DiskOperation::WriteZeroes { offset, len } => {
            check(offset, len, u64::MAX)?;
            backend.write_zeroes(offset, len)?;
        }
    }
    Ok(Vec::new())
}

fn request_bytes(request: &DiskRequest) -> usize {
    match &request.operation {
        DiskOperation::Write { data, .. } => data.len(),
        _ => 0,
    }
}

fn completion_bytes(completion: &DiskCompletion) -> usize {
    completion.result.as_ref().map_or(0, Vec::len)
}

#[cfg(test)]
mod tests;
