//! The one queue between everybody and the machine thread.
//!
//! Concurrency: everything is in one mutex; the condition variable is signalled on every change.
//! Everything has a limit, and what happens at it depends on what it is:
//!
//! | what | limit | at the limit |
//! |---|---|---|
//! | typed bytes, per console | [`CONSOLE_BYTES_MAX`] | the console's thread waits |
//! | frames, per card | [`FRAMES_MAX`], [`FRAME_BYTES_MAX`] | the network's thread waits |
//! | requests | [`REQUESTS_MAX`] | refused |
//! | a debugger's orders | it waits for the answer | |
//! | kill | 1 | the first one counts |
//!
//! Nobody waits once the inbox is closed.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::debugging::Order;
use crate::keeping::CaptureOrder;
use crate::{End, State};

/// Typed bytes kept per console.
pub(crate) const CONSOLE_BYTES_MAX: usize = 256 << 10;
/// Frames kept per card.
pub(crate) const FRAMES_MAX: usize = 16_384;
/// Bytes of frames kept per card: more than the largest TCP window of a Linux guest. passt throws
/// away what it cannot hand over at once, and finds out late.
pub(crate) const FRAME_BYTES_MAX: usize = 8 << 20;
/// Requests kept.
pub(crate) const REQUESTS_MAX: usize = 64;
/// Console ports: first and second serial port, virtio console.
pub(crate) const PORTS: usize = 3;

/// What somebody wants of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// The guest is to stand still.
    Pause,
    /// The guest is to go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Press the power button, and mean it.
    Stop,
    /// End the recording that is being made.
    EndRecording,
}

/// Why a verb was not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the VM is {}; it cannot be {what}", .state.name())]
    State { state: State, what: &'static str },
    #[error("the VM is not being recorded")]
    NotRecorded,
    #[error("the VM has ended")]
    Ended,
    #[error("{REQUESTS_MAX} requests wait already; try again later")]
    Busy,
}

/// A verb and who waits for the answer.
#[derive(Debug)]
pub(crate) struct Request {
    pub verb: Verb,
    pub reply: oneshot::Sender<Result<State, Refusal>>,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Inbox {
    contents: Mutex<Contents>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Contents {
    typed: [VecDeque<u8>; PORTS],
    cards: Vec<Card>,
    requests: VecDeque<Request>,
    capture: Option<CaptureOrder>,
    debug: VecDeque<Order>,
    kill: Option<End>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Card {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    link_down: bool,
}

/// What waiting for something came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// There is something to take.
    Event,
    /// The time is over.
    Deadline,
}

impl Inbox {
    pub fn new(cards: usize) -> Inbox {
        let cards = (0..cards).map(|_| Card::default()).collect();
        let contents = Contents { cards, ..Contents::default() };
        Inbox { contents: Mutex::new(contents), changed: Condvar::new() }
    }

    /// Adds typed bytes; waits while there is no room. For the threads of consoles.
    pub fn type_bytes(&self, port: usize, mut bytes: &[u8]) {
        let mut contents = self.lock();
        while !bytes.is_empty() && !contents.closed {
            let room = CONSOLE_BYTES_MAX - contents.typed[port].len();
            if room == 0 {
                contents = self.wait_change(contents, None);
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            contents.typed[port].extend(now);
            bytes = later;
            self.changed.notify_all();
        }
    }

    /// Adds a frame; waits while there is no room. For the threads of networks.
    pub fn add_frame(&self, card: usize, frame: Vec<u8>) {
        let mut contents = self.lock();
        while contents.cards[card].is_full() && !contents.closed {
            contents = self.wait_change(contents, None);
        }
        if !contents.closed {
            contents.cards[card].bytes += frame.len();
            contents.cards[card].frames.push_back(frame);
            self.changed.notify_all();
        }
    }

    /// The network of a card is gone.
    pub fn set_link_down(&self, card: usize) {
        self.lock().cards[card].link_down = true;
        self.changed.notify_all();
    }

    /// Adds a request; one that cannot be added is answered at once.
    pub fn request(&self, request: Request) {
        let mut contents = self.lock();
        let refusal = if contents.closed {
            Refusal::Ended
        } else if contents.requests.len() == REQUESTS_MAX {
            Refusal::Busy
        } else {
            contents.requests.push_back(request);
            return self.changed.notify_all();
        };
        let _ = request.reply.send(Err(refusal));
    }

    /// Orders a capture. If it never comes, because the VM ends, the order's reply goes.
    pub fn order_capture(&self, order: CaptureOrder) {
        let mut contents = self.lock();
        if !contents.closed {
            contents.capture = Some(order);
            self.changed.notify_all();
        }
    }

    /// The capture that was ordered.
    pub fn take_capture(&self) -> Option<CaptureOrder> {
        self.lock().capture.take()
    }

    /// Orders something for a debugger, of which there is one; forgotten when the VM has ended.
    pub fn order_debug(&self, order: Order) {
        let mut contents = self.lock();
        if !contents.closed {
            contents.debug.push_back(order);
            self.changed.notify_all();
        }
    }

    /// The next order of a debugger.
    pub fn take_debug(&self) -> Option<Order> {
        self.lock().debug.pop_front()
    }

    /// Ends the VM at the next quantum end.
    pub fn kill(&self, end: End) {
        self.lock().kill.get_or_insert(end);
        self.changed.notify_all();
    }

    /// Nothing will be taken any more: everybody who waits goes on, and all later words are
    /// thrown away.
    pub fn close(&self) {
        let mut contents = self.lock();
        contents.closed = true;
        contents.capture = None;
        contents.debug.clear();
        for request in contents.requests.drain(..) {
            let _ = request.reply.send(Err(Refusal::Ended));
        }
        self.changed.notify_all();
    }

    /// Waits until the inbox is closed; false if that took longer than `limit`.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        let deadline = Instant::now().checked_add(limit);
        let mut contents = self.lock();
        while !contents.closed {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            contents = self.wait_change(contents, deadline);
        }
        true
    }

    /// The order to end, if there is one.
    pub fn killed(&self) -> Option<End> {
        self.lock().kill
    }

    /// The next request.
    pub fn take_request(&self) -> Option<Request> {
        self.lock().requests.pop_front()
    }

    /// At most `room` typed bytes.
    pub fn take_typed(&self, port: usize, room: usize) -> Vec<u8> {
        let mut contents = self.lock();
        let count = room.min(contents.typed[port].len());
        let bytes = contents.typed[port].drain(..count).collect();
        if count > 0 {
            self.changed.notify_all();
        }
        bytes
    }

    /// At most `count` frames of a card.
    pub fn take_frames(&self, card: usize, count: usize) -> Vec<Vec<u8>> {
        let mut contents = self.lock();
        let card = &mut contents.cards[card];
        let taken: Vec<_> = card.frames.drain(..count.min(card.frames.len())).collect();
        card.bytes -= taken.iter().map(Vec::len).sum::<usize>();
        if !taken.is_empty() {
            self.changed.notify_all();
        }
        taken
    }

    /// Whether the network of a card went down since the last call.
    pub fn take_link_down(&self, card: usize) -> bool {
        std::mem::take(&mut self.lock().cards[card].link_down)
    }

    /// Waits for anything that the machine can take, `rooms` telling which consoles have room.
    pub fn wait_any(&self, deadline: Option<Instant>, rooms: [usize; PORTS]) -> Woken {
        self.wait_until(deadline, |contents| {
            let typed = rooms.iter().zip(&contents.typed);
            contents.has_order()
                || contents.cards.iter().any(|card| !card.frames.is_empty() || card.link_down)
                || typed.into_iter().any(|(room, typed)| *room > 0 && !typed.is_empty())
        })
    }

    /// Waits for a request or the order to end.
    pub fn wait_order(&self) {
        self.wait_until(None, Contents::has_order);
    }

    fn wait_until(&self, deadline: Option<Instant>, is_there: impl Fn(&Contents) -> bool) -> Woken {
        let mut contents = self.lock();
        loop {
            if is_there(&contents) {
                return Woken::Event;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Woken::Deadline;
            }
            contents = self.wait_change(contents, deadline);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // The contents are valid between any two statements.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_change<'a>(
        &self,
        contents: MutexGuard<'a, Contents>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Contents> {
        let Some(deadline) = deadline else {
            return self.changed.wait(contents).unwrap_or_else(PoisonError::into_inner);
        };
        let time = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(contents, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Card {
    fn is_full(&self) -> bool {
        self.frames.len() >= FRAMES_MAX || self.bytes >= FRAME_BYTES_MAX
    }
}

impl Contents {
    fn has_order(&self) -> bool {
        !self.requests.is_empty()
            || self.kill.is_some()
            || self.capture.is_some()
            || !self.debug.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(20))
    }

    #[test]
    fn typed_bytes_wake_only_when_there_is_room() {
        let inbox = Inbox::new(0);
        inbox.type_bytes(1, b"abc");
        assert_eq!(inbox.wait_any(soon(), [9, 0, 9]), Woken::Deadline);
        assert_eq!(inbox.wait_any(soon(), [0, 1, 0]), Woken::Event);
        assert_eq!(inbox.take_typed(1, 2), b"ab");
        assert_eq!(inbox.take_typed(0, 2), b"");
        assert_eq!(inbox.take_typed(1, 2), b"c");
    }

    #[test]
    fn typist_waits_for_room_and_no_longer_than_the_vm_lives() {
        let inbox = Arc::new(Inbox::new(0));
        let typist = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || {
                inbox.type_bytes(0, &vec![b'x'; CONSOLE_BYTES_MAX + 10]);
                inbox.type_bytes(0, &vec![b'y'; CONSOLE_BYTES_MAX]);
            })
        };
        let mut taken = 0;
        while taken < CONSOLE_BYTES_MAX + 10 {
            taken += inbox.take_typed(0, 1000).len();
        }
        inbox.close();
        typist.join().unwrap();
        inbox.type_bytes(0, &vec![b'z'; 2 * CONSOLE_BYTES_MAX]);
    }

    #[test]
    fn network_waits_for_room_and_no_longer_than_the_vm_lives() {
        let inbox = Arc::new(Inbox::new(2));
        let network = {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || {
                for number in 0..FRAMES_MAX * 4 {
                    inbox.add_frame(1, vec![number as u8; 60]);
                }
            })
        };
        let mut taken = Vec::new();
        while taken.len() < FRAMES_MAX {
            taken.extend(inbox.take_frames(1, 10));
        }
        assert!((0..).zip(&taken).all(|(number, frame)| frame[0] == number as u8));
        assert_eq!(inbox.take_frames(0, 10).len(), 0);
        wait_full(&inbox);
        inbox.close();
        network.join().unwrap();
        inbox.set_link_down(0);
        assert!(inbox.take_link_down(0) && !inbox.take_link_down(0));
    }

    fn wait_full(inbox: &Inbox) {
        while !inbox.lock().cards[1].is_full() {
            thread::yield_now();
        }
    }

    #[test]
    fn requests_are_always_answered() {
        let inbox = Inbox::new(0);
        let ask = || {
            let (reply, answer) = oneshot::channel();
            inbox.request(Request { verb: Verb::Pause, reply });
            answer
        };
        let mut answers: Vec<_> = (0..REQUESTS_MAX).map(|_| ask()).collect();
        assert_eq!(ask().try_recv().unwrap(), Err(Refusal::Busy));
        assert_eq!(inbox.take_request().unwrap().verb, Verb::Pause);
        inbox.close();
        assert_eq!(answers[1].try_recv().unwrap(), Err(Refusal::Ended));
        assert!(answers[0].try_recv().is_err(), "taken and forgotten");
        assert_eq!(ask().try_recv().unwrap(), Err(Refusal::Ended));
    }

    #[test]
    fn kill_is_final_and_the_first_counts() {
        let inbox = Inbox::new(0);
        inbox.kill(End::Killed);
        inbox.kill(End::PowerOff);
        inbox.wait_order();
        assert_eq!(inbox.killed(), Some(End::Killed));
        assert!(!inbox.wait_closed(Duration::from_millis(5)));
        inbox.close();
        assert!(inbox.wait_closed(Duration::MAX));
    }
}
