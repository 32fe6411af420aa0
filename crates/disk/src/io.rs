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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use journal::{DiskCompletion, DiskFailed, DiskOperation, DiskRequest};

use crate::backend::check_range;
use crate::{BlockBackend, DiskError, SECTOR_SIZE};

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

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<DiskRequest>,
    queued_bytes: usize,
    /// Submitted and not yet fetched.
    in_flight: BTreeSet<u64>,
    done: BTreeMap<u64, DiskCompletion>,
    done_bytes: usize,
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
        state.queue.push_back(request);
        self.shared.changed.notify_all();
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
    loop {
        let held_back = state.done_bytes > PENDING_BYTES_MAX && state.waiters == 0;
        let next = if held_back && !state.stopping { None } else { state.queue.pop_front() };
        let Some(request) = next else {
            if state.stopping {
                return backend;
            }
            state = shared.wait(state);
            continue;
        };
        drop(state);
        let (id, bytes) = (request.id, request_bytes(&request));
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
