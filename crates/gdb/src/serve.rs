//! One conversation with gdb over a connection.

use std::io;

use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::reverse_exec::ReplayLogPosition;
use gdbstub::target::ext::breakpoints::WatchKind;
use travel::{Halt, TravelError};

use crate::debugger::{Debugger, Move};

/// Why a conversation ended badly.
#[derive(Debug)]
pub enum ServeError {
    /// The machine could not go where it was to go.
    Travel(TravelError),
    /// The connection broke, or its far end does not speak gdb's language.
    Connection(String),
}

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServeError::Travel(error) => error.fmt(f),
            ServeError::Connection(error) => write!(f, "the connection to gdb: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

/// A connection whose answers leave in one piece.
struct Buffered<C> {
    inner: C,
    waiting: Vec<u8>,
}

impl<C: ConnectionExt<Error = io::Error>> Connection for Buffered<C> {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.waiting.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.waiting.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.inner.write_all(&waiting)?;
        self.inner.flush()
    }

    fn on_session_start(&mut self) -> io::Result<()> {
        self.inner.on_session_start()
    }
}

impl<C: ConnectionExt<Error = io::Error>> ConnectionExt for Buffered<C> {
    fn read(&mut self) -> io::Result<u8> {
        self.flush()?;
        self.inner.read()
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        self.inner.peek()
    }
}

/// Serves one gdb until it goes.
///
/// # Errors
/// [`ServeError`].
pub fn serve<C>(debugger: &mut Debugger, connection: C) -> Result<(), ServeError>
where
    C: ConnectionExt<Error = io::Error>,
{
    let connection = Buffered { inner: connection, waiting: Vec::new() };
    match GdbStub::new(connection).run_blocking::<Loop<Buffered<C>>>(debugger) {
        Ok(DisconnectReason::Disconnect | DisconnectReason::Kill) => Ok(()),
        Ok(_) => Ok(()),
        Err(error) if error.is_target_error() => match error.into_target_error() {
            Some(error) => Err(ServeError::Travel(error)),
            None => Err(ServeError::Connection("unknown".into())),
        },
        Err(error) if error.is_connection_error() => Ok(()),
        Err(error) => Err(ServeError::Connection(error.to_string())),
    }
}

struct Loop<C>(std::marker::PhantomData<C>);

type Stopped = SingleThreadStopReason<u64>;

impl<C: ConnectionExt<Error = io::Error>> BlockingEventLoop for Loop<C> {
    type Target = Debugger;
    type Connection = C;
    type StopReason = Stopped;

    fn wait_for_stop_reason(
        debugger: &mut Debugger,
        connection: &mut C,
    ) -> Result<Event<Stopped>, WaitForStopReasonError<TravelError, <C as Connection>::Error>> {
        let mut interrupted = || matches!(connection.peek(), Ok(Some(_)));
        let halt = debugger.go(&mut interrupted).map_err(WaitForStopReasonError::Target)?;
        if halt == Halt::Interrupted {
            let byte = connection.read().map_err(WaitForStopReasonError::Connection)?;
            return Ok(Event::IncomingData(byte));
        }
        Ok(Event::TargetStopped(reason(debugger, halt)))
    }

    fn on_interrupt(_: &mut Debugger) -> Result<Option<Stopped>, TravelError> {
        Ok(Some(Stopped::Signal(Signal::SIGINT)))
    }
}

/// How gdb is told why the machine stopped.
fn reason(debugger: &Debugger, halt: Halt) -> Stopped {
    let log = |pos| Stopped::ReplayLog { tid: None, pos };
    match halt {
        // gdb goes on from a breakpoint that it does not know.
        Halt::Breakpoint if debugger.asked.contains(&debugger.travel.linear_rip()) => {
            Stopped::Signal(Signal::SIGTRAP)
        }
        Halt::Breakpoint => Stopped::SwBreak(()),
        Halt::Touched(watch) => {
            let addr = debugger.stops.watches.get(watch).map_or(0, |(address, _)| *address);
            Stopped::Watch { tid: (), kind: WatchKind::Write, addr }
        }
        Halt::Accessed(watch) => {
            let (addr, kind) = match debugger.stops.accesses.get(watch) {
                Some((address, _, machine::WatchKind::Loads)) => (*address, WatchKind::Read),
                Some((address, ..)) => (*address, WatchKind::ReadWrite),
                None => (0, WatchKind::ReadWrite),
            };
            Stopped::Watch { tid: (), kind, addr }
        }
        Halt::Start => log(ReplayLogPosition::Begin),
        Halt::End => log(ReplayLogPosition::End),
        Halt::Reached | Halt::Interrupted => match debugger.wanted {
            Move::Step | Move::StepBack => Stopped::DoneStep,
            Move::GoOn | Move::GoBack => Stopped::Signal(Signal::SIGTRAP),
        },
    }
}
