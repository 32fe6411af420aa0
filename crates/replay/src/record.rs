//! Recording: every input of a machine goes to a log, and now and then its hashes.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal::{Entry, LogError, LogWriter};
use machine::Machine;

/// A recording in progress. The machine holds its other end, so it outlives no run.
pub struct Recorder<W: Write + Send + 'static> {
    shared: Arc<Mutex<Shared<W>>>,
}

struct Shared<W: Write> {
    writer: LogWriter<W>,
    failure: Option<LogError>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write> Shared<W> {
    /// The first failure is kept for [`Recorder::check`]; the guest goes on.
    fn append(&mut self, entry: &Entry) {
        if self.failure.is_none() {
            self.failure = self.writer.append(entry).err();
        }
    }
}

impl<W: Write + Send + 'static> Recorder<W> {
    /// From now on everything that enters `machine` goes to a log on `to`.
    ///
    /// # Errors
    /// When the log's header cannot be written.
    pub fn start(machine: &mut Machine, to: W) -> Result<Recorder<W>, LogError> {
        let shared = Shared { writer: LogWriter::new(to)?, failure: None };
        let shared = Arc::new(Mutex::new(shared));
        let other = Arc::clone(&shared);
        machine.observe(Some(Box::new(move |point, input| {
            lock(&other).append(&Entry::Input { point, input: input.clone() });
        })));
        Ok(Recorder { shared })
    }

    /// Writes the machine's hashes as of now, for the replay to check.
    pub fn checkpoint_hashes(&self, machine: &mut Machine) {
        let entry = Entry::Hashes { point: machine.point(), hashes: hashes(machine) };
        lock(&self.shared).append(&entry);
    }

    /// Writes what was gathered to the log.
    ///
    /// # Errors
    /// The first failure since the start: the log is incomplete from there.
    pub fn check(&self) -> Result<(), LogError> {
        let mut shared = lock(&self.shared);
        if let Some(failure) = shared.failure.take() {
            return Err(failure);
        }
        shared.writer.flush()
    }

    /// Bytes of log so far.
    pub fn size(&self) -> u64 {
        lock(&self.shared).writer.size()
    }

    /// Ends the recording in good order, with the final hashes.
    ///
    /// # Errors
    /// As [`Recorder::check`].
    pub fn stop(self, machine: &mut Machine) -> Result<(), LogError> {
        self.checkpoint_hashes(machine);
        machine.observe(None);
        lock(&self.shared).append(&Entry::End { point: machine.point() });
        self.check()
    }
}

/// Low 64 bits of every hash, RAM first.
pub(crate) fn hashes(machine: &mut Machine) -> Vec<u64> {
    machine.section_hashes().into_iter().map(|(_, hash)| hash as u64).collect()
}
