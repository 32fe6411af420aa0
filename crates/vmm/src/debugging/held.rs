//! What the machine thread does for a debugger.

use std::sync::mpsc::Sender;

use cpu::Engine;
use machine::{Machine, Stop};
use travel::{Halt, Stops, Watched};

use super::Order;

/// A debugger has the machine.
pub(crate) struct Held {
    watched: Watched,
    /// Who is told when the machine stands still; it stands still if there is nobody.
    going: Option<Sender<Halt>>,
    /// One instruction is to be executed by itself: gdb steps, or leaves a breakpoint.
    step: Option<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// And then the machine stands still.
    Only,
    /// And then it runs.
    First,
}

impl Held {
    /// A debugger for whom `machine` stands still.
    pub fn new(machine: &Machine) -> Held {
        Held { watched: Watched::find(machine, &Stops::default()), going: None, step: None }
    }

    /// Whether the machine stands still.
    pub fn stands(&self) -> bool {
        self.going.is_none()
    }

    /// Whether the next instruction is to be executed by itself.
    pub fn steps(&self) -> bool {
        self.step.is_some()
    }

    /// Does what is asked of a machine that has a debugger, but for attaching and detaching.
    pub fn obey(&mut self, machine: &mut Machine, engine: &mut dyn Engine, order: Order) {
        match order {
            Order::Go { step, stops, reply } => {
                self.watched = Watched::find(machine, &stops);
                engine.set_breakpoints(&stops.breakpoints);
                machine.set_watches(self.watched.pieces());
                self.step = Some(if step { Step::Only } else { Step::First });
                self.going = Some(reply);
            }
            Order::Halt => self.stand(Halt::Interrupted),
            Order::Look(look) => look(machine),
            Order::Attach(_) | Order::Detach => {}
        }
    }

    /// The machine came to `stop`; whether it stands still now.
    pub fn met(&mut self, machine: &Machine, stop: Stop) -> bool {
        if self.stands() {
            return false;
        }
        let step = match stop {
            // Nothing was executed.
            Stop::Idle { .. } | Stop::Yielded => None,
            _ => self.step.take(),
        };
        let halt = match stop {
            Stop::Breakpoint => Some(Halt::Breakpoint),
            Stop::Touched(piece) => self.watched.met(machine, Some(piece)),
            _ => None,
        };
        let halt = halt.or_else(|| (step == Some(Step::Only)).then_some(Halt::Reached));
        if let Some(halt) = halt {
            self.stand(halt);
        }
        halt.is_some()
    }

    fn stand(&mut self, halt: Halt) {
        self.step = None;
        if let Some(reply) = self.going.take() {
            // Whoever asked may have gone.
            let _ = reply.send(halt);
        }
    }

    /// Leaves the machine as it would be without a debugger.
    pub fn leave(self, machine: &mut Machine, engine: &mut dyn Engine) {
        engine.set_breakpoints(&[]);
        machine.set_watches(&[]);
    }
}
