//! The handle by which everybody but the machine thread orders a VM about.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host::console::{ConsoleEvent, ConsoleWriter};
use host::net::NetEvent;
use tokio::sync::oneshot;

use crate::inbox::{Inbox, Refusal, Request, Verb};
use crate::{End, State};

/// Clones order the same VM.
#[derive(Clone, Debug)]
pub(crate) struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inbox: Arc<Inbox>,
    grace: Duration,
    /// Consoles whose writers may make the machine thread wait.
    writers: Mutex<Vec<ConsoleWriter>>,
    stopping: AtomicBool,
}

impl Control {
    pub fn new(inbox: Arc<Inbox>, grace: Duration) -> Control {
        let (writers, stopping) = (Mutex::default(), AtomicBool::new(false));
        Control(Arc::new(Shared { inbox, grace, writers, stopping }))
    }

    /// From now on, killing the VM ends every wait of this console's writers.
    pub fn watch_writer(&self, writer: ConsoleWriter) {
        self.0.writers.lock().unwrap_or_else(PoisonError::into_inner).push(writer);
    }

    /// Asks for a change; the answer comes when it is made.
    pub fn request(&self, verb: Verb) -> oneshot::Receiver<Result<State, Refusal>> {
        let (reply, answer) = oneshot::channel();
        self.0.inbox.request(Request { verb, reply });
        answer
    }

    /// Asks the guest to power off, and ends the VM if it has not after the time of grace.
    pub fn stop(&self) -> oneshot::Receiver<Result<State, Refusal>> {
        let answer = self.request(Verb::Stop);
        if !self.0.stopping.swap(true, Ordering::SeqCst) {
            let control = self.clone();
            let wait = move || {
                if !control.0.inbox.wait_closed(control.0.grace) {
                    control.kill();
                }
            };
            let thread = std::thread::Builder::new().name("grace".into()).spawn(wait);
            if thread.is_err() {
                self.kill();
            }
        }
        answer
    }

    /// Ends the VM now, whatever the guest does, and whatever its console does.
    pub fn kill(&self) {
        self.0.inbox.kill(End::Killed);
        for writer in self.0.writers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            writer.abandon();
        }
    }

    /// What a signal that asks to end means: the first asks, any further one insists.
    pub fn signal(&self) {
        if self.0.stopping.load(Ordering::SeqCst) {
            self.kill();
        } else {
            drop(self.stop());
        }
    }

    /// What the user of a console does.
    pub fn console_event(&self, port: usize, event: ConsoleEvent) {
        match event {
            ConsoleEvent::Bytes(bytes) => self.0.inbox.type_bytes(port, &bytes),
            ConsoleEvent::Quit => self.kill(),
            ConsoleEvent::Closed => {}
        }
    }

    /// What a network does.
    pub fn net_event(&self, card: usize, event: NetEvent) {
        match event {
            NetEvent::Frame(frame) => self.0.inbox.add_frame(card, frame),
            NetEvent::LinkDown(why) => {
                tracing::warn!("network card {card}: {why}");
                self.0.inbox.set_link_down(card);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_signal_kills() {
        let inbox = Arc::new(Inbox::new(0));
        let control = Control::new(Arc::clone(&inbox), Duration::from_secs(3600));
        control.signal();
        assert_eq!(inbox.take_request().unwrap().verb, Verb::Stop);
        assert_eq!(inbox.killed(), None);
        control.signal();
        assert_eq!(inbox.killed(), Some(End::Killed));
        inbox.close();
    }

    #[test]
    fn guest_that_does_not_power_off_is_killed_after_the_grace() {
        let inbox = Arc::new(Inbox::new(0));
        let control = Control::new(Arc::clone(&inbox), Duration::from_millis(10));
        drop(control.stop());
        inbox.take_request().unwrap();
        inbox.wait_order();
        assert_eq!(inbox.killed(), Some(End::Killed));
    }

    #[test]
    fn quit_on_the_terminal_kills() {
        let inbox = Arc::new(Inbox::new(0));
        let control = Control::new(Arc::clone(&inbox), Duration::from_secs(3600));
        control.console_event(0, ConsoleEvent::Bytes(b"x".into()));
        control.console_event(0, ConsoleEvent::Closed);
        assert_eq!(inbox.killed(), None);
        control.console_event(0, ConsoleEvent::Quit);
        assert_eq!(inbox.killed(), Some(End::Killed));
    }
}
