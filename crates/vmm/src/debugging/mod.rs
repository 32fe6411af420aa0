//! gdb on a VM that runs.
//!
//! ```text
//!   gdb -- server (a thread) -- Live: a subject -- inbox -- Held: what the machine thread does
//! ```
//!
//! While gdb has the machine stand still, the machine thread waits in its inbox for what is asked
//! next, gdb's orders among the rest: the VM is kept, paused and ended as ever. What gdb does is
//! no input of the machine: it looks, and has it stop and go on, which the guest cannot see.

mod held;
mod listener;
mod live;
mod server;

use std::sync::mpsc::Sender;

use machine::Machine;
use travel::{Halt, Stops};

pub(crate) use held::Held;
pub use listener::Listen;
pub(crate) use listener::Listener;
pub(crate) use server::DebugServer;
pub use server::{DebugReply, DebugRequest};

/// What a debugger wants of the machine thread.
pub(crate) enum Order {
    /// The machine stands still for this debugger from now on.
    Attach(Sender<Result<(), String>>),
    /// It runs, and forgets the debugger.
    Detach,
    /// A look at the machine.
    Look(Box<dyn FnOnce(&Machine) + Send>),
    /// It goes on: one instruction if `step`, else until something happens; then it says what, and
    /// stands still.
    Go { step: bool, stops: Stops, reply: Sender<Halt> },
    /// It stands still where it is.
    Halt,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Order::Attach(_) => "Attach",
            Order::Detach => "Detach",
            Order::Look(_) => "Look",
            Order::Go { .. } => "Go",
            Order::Halt => "Halt",
        })
    }
}
