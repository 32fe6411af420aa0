//! A running VM as what gdb debugs: the end of it that is in gdb's thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use gdb::{Move, Subject, Symbols, X86Registers};
use machine::Machine;
use travel::{Halt, NotMapped, Stops, linear_rip, read_memory};

use super::Order;
use crate::inbox::Inbox;
use crate::keeping::Keeper;

/// How often gdb is asked whether it wants the machine to halt.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A VM with a debugger.
pub(crate) struct Live {
    inbox: Arc<Inbox>,
    keeper: Arc<Keeper>,
    name: String,
}

/// The VM has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the VM has ended")]
pub(crate) struct Ended;

impl Live {
    /// Has the VM of that name stand still for a debugger; in words why that cannot be.
    pub fn attach(inbox: &Arc<Inbox>, keeper: &Arc<Keeper>, name: &str) -> Result<Live, String> {
        let (reply, answer) = channel();
        inbox.order_debug(Order::Attach(reply));
        answer.recv().unwrap_or(Err(Ended.to_string()))?;
        let (inbox, keeper) = (Arc::clone(inbox), Arc::clone(keeper));
        Ok(Live { inbox, keeper, name: name.into() })
    }

    fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Machine) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (reply, answer) = channel();
        let look = move |machine: &Machine| drop(reply.send(look(machine)));
        self.inbox.order_debug(Order::Look(Box::new(look)));
        answer.recv().map_err(|_| Ended)
    }

    fn wait(
        &self,
        halted: &Receiver<Halt>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, Ended> {
        loop {
            match halted.recv_timeout(LOOK_EVERY) {
                Ok(halt) => return Ok(halt),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
                Err(RecvTimeoutError::Timeout) if interrupted() => {
                    self.inbox.order_debug(Order::Halt);
                    return halted.recv().map_err(|_| Ended);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn recording(&self) -> Option<PathBuf> {
        self.keeper.record_status().map(|status| status.folder)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.inbox.order_debug(Order::Detach);
    }
}

impl Subject for Live {
    type Error = Ended;

    const HELP: &'static str = "where                 the point and guest time\n";

    fn registers(&mut self) -> Result<X86Registers, Ended> {
        self.look(|machine| X86Registers::of(machine.vcpu(), linear_rip(machine)))
    }

    fn read(&mut self, cr3: Option<u64>, gva: u64, into: &mut [u8]) -> Result<(), NotMapped> {
        let len = into.len();
        let read = move |machine: &Machine| {
            let mut bytes = vec![0; len];
            let result = read_memory(machine, cr3, gva, &mut bytes);
            (bytes, result)
        };
        let (bytes, result) = self.look(read).map_err(|Ended| NotMapped(gva))?;
        into.copy_from_slice(&bytes);
        result
    }

    fn go(
        &mut self,
        how: Move,
        stops: &Stops,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, Ended> {
        let (reply, halted) = channel();
        let (step, stops) = (how == Move::Step, stops.clone());
        self.inbox.order_debug(Order::Go { step, stops, reply });
        self.wait(&halted, interrupted)
    }

    fn no_way_back(&mut self) -> Option<String> {
        let name = &self.name;
        Some(match self.recording() {
            Some(dir) => format!(
                "{name} runs live, and nothing goes back. It is being recorded: `doppel debug {}` \
                 goes back from here.",
                dir.display()
            ),
            None => format!(
                "{name} runs live, and nothing goes back. `doppel record {name} DIR` records it \
                 from now on, and `doppel debug DIR` goes back in that."
            ),
        })
    }

    fn monitor(
        &mut self,
        symbols: &Symbols,
        words: &[&str],
        _: &mut dyn FnMut(),
    ) -> Result<Option<String>, Ended> {
        let ["where"] = words else { return Ok(None) };
        let look = |machine: &Machine| (machine.point(), linear_rip(machine), machine.now());
        let (point, rip, now) = self.look(look)?;
        let name = symbols.at(rip).map(|name| format!(" ({name})")).unwrap_or_default();
        Ok(Some(format!("branch {} rip {rip:#x}{name}, {now} of guest time\n", point.branches)))
    }
}
