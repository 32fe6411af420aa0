//! The states of a VM and who is told when they change.
//!
//! ```text
//!   starting --> running <--> paused
//!      |           |  |         |
//!      |           |  v         |
//!      |           | stopping <-'
//!      v           v  v         v
//!      '-------> stopped <------'
//! ```
//!
//! `stopping` is a guest that was asked to power off and has not yet; it runs.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::End;

/// Events kept for a subscriber that does not read.
const EVENTS_KEPT_MAX: usize = 64;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Everything is being made ready.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still until it is resumed.
    Paused,
    /// The guest was asked to power off.
    Stopping,
    /// It is over.
    Stopped,
}

impl State {
    const ALL: [State; 5] =
        [State::Starting, State::Running, State::Paused, State::Stopping, State::Stopped];

    /// Whether the picture above has an arrow from here to `next`.
    pub const fn may_become(self, next: State) -> bool {
        use State::{Paused, Running, Starting, Stopped, Stopping};
        matches!(
            (self, next),
            (Starting, Running | Stopped)
                | (Running, Paused | Stopping | Stopped)
                | (Paused, Running | Stopping | Stopped)
                | (Stopping, Stopped)
        )
    }

    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
        }
    }
}

/// A change of state, as subscribers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StateEvent {
    /// The new state.
    pub state: State,
    /// Why, for `stopped`.
    pub reason: Option<&'static str>,
    /// Exit status, for `stopped`.
    pub status: Option<u8>,
}

/// The state of a VM, changed by the machine thread and read by anybody.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: AtomicU8,
    events: broadcast::Sender<StateEvent>,
}

impl Lifecycle {
    pub fn new() -> Lifecycle {
        let (events, _) = broadcast::channel(EVENTS_KEPT_MAX);
        Lifecycle { state: AtomicU8::new(State::Starting as u8), events }
    }

    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    pub fn subscribe(&self) -> broadcast::Receiver<StateEvent> {
        self.events.subscribe()
    }

    /// Goes to `next`.
    ///
    /// # Panics
    /// If there is no arrow from the present state to `next`.
    pub fn enter(&self, next: State) {
        self.change(StateEvent { state: next, reason: None, status: None });
    }

    /// Goes to `stopped`.
    ///
    /// # Panics
    /// If it is there already.
    pub fn end(&self, end: Option<End>) {
        let reason = end.map_or("error", End::reason);
        let status = end.map(End::status);
        self.change(StateEvent { state: State::Stopped, reason: Some(reason), status });
    }

    fn change(&self, event: StateEvent) {
        let state = self.state();
        assert!(state.may_become(event.state), "a VM {state:?} became {:?}", event.state);
        self.state.store(event.state as u8, Ordering::Release);
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifecycle_tells_each_change_once() {
        let lifecycle = Lifecycle::new();
        let mut events = lifecycle.subscribe();
        for state in [State::Running, State::Paused, State::Running, State::Stopping] {
            lifecycle.enter(state);
            assert_eq!(lifecycle.state(), state);
            assert_eq!(events.try_recv().unwrap().state, state);
        }
        lifecycle.end(Some(End::PowerOff));
        let last = events.try_recv().unwrap();
        assert_eq!((last.reason, last.status), (Some("power-off"), Some(0)));
    }

    #[test]
    fn state_stopped_is_final_and_all_can_get_there() {
        for state in State::ALL {
            assert!(!State::Stopped.may_become(state));
            assert!(!state.may_become(state));
            assert_eq!(state.may_become(State::Stopped), state != State::Stopped);
        }
    }

    #[test]
    #[should_panic(expected = "became")]
    fn lifecycle_illegal_change_panics() {
        Lifecycle::new().enter(State::Paused);
    }
}
