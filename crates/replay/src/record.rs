//! Recording: every input of a machine goes to a log, and now and then a check of its state.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal::{Check, Entry, LogError, LogWriter, What};
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
    /// The first failure is kept for [`Recorder::flush`]; the guest goes on.
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
        machine.observe(Some(Box::new(move |point, at, input| {
            let what = What::Input(input.clone());
            lock(&other).append(&Entry { point, at: Entry::time(at), what });
        })));
        Ok(Recorder { shared })
    }

    /// Writes what the machine is as of now, for the replay to compare; `output` is the digest of
    /// what left it. Costs a pass over the RAM written since the last one.
    pub fn check(&self, machine: &mut Machine, output: u64) {
        let check = check_of(machine, output);
        self.append(machine, What::Check(check));
    }

    /// Notes that the checkpoint of this number was taken here.
    pub fn note_checkpoint(&self, machine: &Machine, number: u32) {
        self.append(machine, What::Checkpoint(number));
    }

    fn append(&self, machine: &Machine, what: What) {
        let (point, at) = (machine.point(), Entry::time(machine.now()));
        lock(&self.shared).append(&Entry { point, at, what });
    }

    /// Writes what was gathered to the log.
    ///
    /// # Errors
    /// The first failure since the start: the log is incomplete from there.
    pub fn flush(&self) -> Result<(), LogError> {
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

    /// Entries in the log so far: the number of the next one.
    pub fn entries(&self) -> u64 {
        lock(&self.shared).writer.entries()
    }

    /// Ends the recording in good order, with a last check. What is left is to drop it.
    ///
    /// # Errors
    /// As [`Recorder::flush`].
    pub fn stop(&self, machine: &mut Machine, output: u64) -> Result<(), LogError> {
        machine.observe(None);
        self.check(machine, output);
        self.append(machine, What::End);
        self.flush()
    }
}

/// What a machine is, with the digest of what left it.
pub fn check_of(machine: &mut Machine, output: u64) -> Check {
    let sections = machine.section_hashes().into_iter().map(|(_, hash)| hash as u64).collect();
    Check { sections, output }
}
