//! The bounded buffer between the machine thread and a console's own thread.
//!
//! What the peer of a pseudo-terminal or socket takes at once does not go through it: where CPUs
//! are scarce the console's thread is milliseconds late.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::ConsoleError;
use crate::wake::Wake;

/// Bytes kept for a pseudo-terminal or socket while nobody reads.
pub const KEPT_BYTES_MAX: usize = 256 << 10;

/// Bytes a console that loses nothing buffers before its writer waits.
const BUFFERED_BYTES_MAX: usize = 1 << 20;

/// Most bytes handed to a write call at once.
const CHUNK: usize = 16 << 10;

/// The output side of a console. Clones write to the same console.
#[derive(Clone, Debug)]
pub struct ConsoleWriter(Arc<Shared>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// Wait for room.
    KeepAll,
    /// Drop the oldest.
    KeepLatest,
    /// Drop everything.
    Discard,
}

#[derive(Debug)]
struct Shared {
    policy: Policy,
    state: Mutex<State>,
    changed: Condvar,
    wake: Wake,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Bytes taken by the console's thread and not yet written.
    in_hand: usize,
    dropped: u64,
    /// Who is attached; never blocks.
    peer: Option<Arc<OwnedFd>>,
    closing: bool,
    /// Nobody will ever read: abandoned, or the write failed.
    dead: bool,
}

impl State {
    /// Gives `bytes` to the peer unless older ones wait; what it does not take.
    fn write_through<'a>(&self, mut bytes: &'a [u8]) -> &'a [u8] {
        let Some(peer) = self.peer.as_ref().filter(|_| self.bytes.is_empty()) else { return bytes };
        while !bytes.is_empty() {
            match rustix::io::write(peer, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                // The console's thread finds out what is wrong.
                Err(_) => break,
            }
        }
        bytes
    }
}

impl ConsoleWriter {
    fn new(policy: Policy) -> Result<ConsoleWriter, ConsoleError> {
        let wake = Wake::new().map_err(ConsoleError::system("make an eventfd"))?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        Ok(ConsoleWriter(Arc::new(Shared { policy, state, changed, wake })))
    }

    pub(super) fn keep_all() -> Result<ConsoleWriter, ConsoleError> {
        ConsoleWriter::new(Policy::KeepAll)
    }

    pub(super) fn keep_latest() -> Result<ConsoleWriter, ConsoleError> {
        ConsoleWriter::new(Policy::KeepLatest)
    }

    pub(super) fn discard() -> Result<ConsoleWriter, ConsoleError> {
        ConsoleWriter::new(Policy::Discard)
    }

    /// Hands output over; see the module's table for what happens when nobody reads.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.dead || self.0.policy == Policy::Discard {
            state.dropped += bytes.len() as u64;
            return;
        }
        if self.0.policy == Policy::KeepLatest {
            let bytes = state.write_through(bytes);
            if bytes.is_empty() {
                return;
            }
            state.bytes.extend(bytes);
            let excess = state.bytes.len().saturating_sub(KEPT_BYTES_MAX);
            state.bytes.drain(..excess);
            state.dropped += excess as u64;
            self.0.changed.notify_all();
            return self.0.wake.wake();
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            while !state.dead && state.bytes.len() >= BUFFERED_BYTES_MAX {
                state = self.wait(state);
            }
            if state.dead {
                state.dropped += rest.len() as u64;
                return;
            }
            let room = BUFFERED_BYTES_MAX - state.bytes.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            state.bytes.extend(now);
            rest = later;
            self.0.changed.notify_all();
        }
    }

    /// From now on `peer`, which does not block, gets the output.
    pub(super) fn attach(&self, peer: Option<Arc<OwnedFd>>) {
        self.lock().peer = peer;
    }

    /// Ends every wait in [`ConsoleWriter::write`], now and later; what is not written is lost.
    /// For ending a VM whose terminal or pipe does not move.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.dead = true;
        state.dropped += state.bytes.len() as u64;
        state.bytes.clear();
        self.0.changed.notify_all();
        self.0.wake.wake();
    }

    /// Bytes lost so far.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Waits for bytes to write; `None` when the console closes and all is written.
    pub(super) fn next_chunk(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.in_hand = 0;
        self.0.changed.notify_all();
        while state.bytes.is_empty() {
            if state.closing || state.dead {
                return None;
            }
            state = self.wait(state);
        }
        let count = state.bytes.len().min(CHUNK);
        state.in_hand = count;
        let chunk = state.bytes.drain(..count).collect();
        self.0.changed.notify_all();
        Some(chunk)
    }

    /// Calls `write` with the oldest bytes and removes as many as it says it wrote.
    pub(super) fn write_some<E>(
        &self,
        write: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<bool, E> {
        let mut state = self.lock();
        let (oldest, _) = state.bytes.as_slices();
        let oldest = &oldest[..oldest.len().min(CHUNK)];
        if oldest.is_empty() {
            return Ok(false);
        }
        let count = write(oldest)?;
        state.bytes.drain(..count);
        self.0.changed.notify_all();
        Ok(true)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// What the console's thread polls to learn of output and of the end.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    pub(super) fn clear_wake(&self) {
        self.0.wake.clear();
    }

    /// Tells the console's threads to end; waits for what is left to be written as long as some
    /// is written every `patience`. False if it gave up.
    pub(super) fn close(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        state.closing = true;
        self.0.wake.wake();
        self.0.changed.notify_all();
        let mut left = state.bytes.len() + state.in_hand;
        let mut deadline = Instant::now() + patience;
        while left > 0 && !state.dead {
            let Some(time) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            let waited = self.0.changed.wait_timeout(state, time);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let now = state.bytes.len() + state.in_hand;
            if now < left {
                deadline = Instant::now() + patience;
            }
            left = now;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}
