//! The log's file, written by a thread of its own, so that the guest never waits for storage.
//!
//! What is handed over is written in order and made durable about once a second. At the first
//! failure the file is cut back to its last whole piece and nothing more is written: what came
//! before stays readable.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pieces that may wait to be written; beyond that the guest does wait.
const PIECES_MAX: usize = 256;
/// How long what was written may be lost in a power cut.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The log's file. Dropping it writes what was handed over.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    sender: Option<SyncSender<Vec<u8>>>,
    failure: Arc<Mutex<Option<io::Error>>>,
    thread: Option<JoinHandle<()>>,
}

impl LogFile {
    /// Makes the file at `path`, where none may be.
    pub fn create(path: &Path) -> io::Result<LogFile> {
        let file = File::create_new(path)?;
        let (sender, receiver) = sync_channel(PIECES_MAX);
        let failure = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&failure);
        let thread = std::thread::Builder::new().name("recording".into()).spawn(move || {
            if let Err(error) = write_all(&file, &receiver) {
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        })?;
        Ok(LogFile { path: path.into(), sender: Some(sender), failure, thread: Some(thread) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn take_failure(&self) -> io::Error {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.unwrap_or_else(|| io::Error::other("the recording ended already"))
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.sender.as_ref().map(|sender| sender.send(bytes.to_vec()));
        match sent {
            Some(Ok(())) => Ok(bytes.len()),
            _ => Err(self.take_failure()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tracing::error!("the recording is incomplete: its log cannot be written: {error}");
        }
    }
}

/// Writes until nobody sends any more.
fn write_all(mut file: &File, pieces: &Receiver<Vec<u8>>) -> io::Result<()> {
    let (mut size, mut synced, mut sync_at) = (0, 0, Instant::now() + SYNC_EVERY);
    loop {
        match pieces.recv_timeout(sync_at.saturating_duration_since(Instant::now())) {
            Ok(piece) => {
                if let Err(error) = file.write_all(&piece) {
                    // What cannot be cut off is a piece of a frame at the end, which readers skip.
                    let _ = file.set_len(size);
                    return Err(error);
                }
                size += piece.len() as u64;
            }
            Err(RecvTimeoutError::Disconnected) => return file.sync_data(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= sync_at {
            if synced != size {
                file.sync_data()?;
                synced = size;
            }
            sync_at = Instant::now() + SYNC_EVERY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_arrives_in_order() {
        let path = std::env::temp_dir().join(format!("doppel-log-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut log = LogFile::create(&path).unwrap();
        for n in 0..1000u32 {
            log.write_all(&n.to_le_bytes()).unwrap();
        }
        drop(log);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 4000);
        assert!(bytes.chunks(4).zip(0u32..).all(|(chunk, n)| chunk == n.to_le_bytes()));
        assert!(LogFile::create(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn full_disk_is_an_error_for_the_writer() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let (sender, receiver) = sync_channel(4);
        sender.send(vec![1]).unwrap();
        let error = write_all(&file, &receiver).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
