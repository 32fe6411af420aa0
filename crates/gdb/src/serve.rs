//! One conversation with gdb over a connection.

use std::io;

use gdbstub::arch::Registers;
use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::reverse_exec::ReplayLogPosition;
use gdbstub::target::ext::breakpoints::WatchKind;
use travel::Halt;

use crate::arch::X86Registers;
use crate::debugger::Debugger;
use crate::subject::{Move, Subject};

/// Why a conversation ended badly.
#[derive(Debug)]
pub enum ServeError<E> {
    /// The machine could not go where it was to go.
    Subject(E),
    /// The connection broke, or its far end does not speak gdb's language.
    Connection(String),
}

impl<E: std::fmt::Display> std::fmt::Display for ServeError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServeError::Subject(error) => error.fmt(f),
            ServeError::Connection(error) => write!(f, "the connection to gdb: {error}"),
        }
    }
}

impl<E: std::fmt::Display + std::fmt::Debug> std::error::Error for ServeError<E> {}

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
pub fn serve<S, C>(debugger: &mut Debugger<S>, connection: C) -> Result<(), ServeError<S::Error>>
where
    S: Subject,
    C: ConnectionExt<Error = io::Error>,
{
    let connection = Buffered { inner: connection, waiting: Vec::new() };
    match GdbStub::new(connection).run_blocking::<Loop<S, Buffered<C>>>(debugger) {
        Ok(DisconnectReason::Disconnect | DisconnectReason::Kill) => Ok(()),
        Ok(_) => Ok(()),
        Err(error) if error.is_target_error() => match error.into_target_error() {
            Some(error) => Err(ServeError::Subject(error)),
            None => Err(ServeError::Connection("unknown".into())),
        },
        Err(error) if error.is_connection_error() => Ok(()),
        Err(error) => Err(ServeError::Connection(error.to_string())),
    }
}

struct Loop<S, C>(std::marker::PhantomData<(S, C)>);

type Stopped = SingleThreadStopReason<u64>;

impl<S: Subject, C: ConnectionExt<Error = io::Error>> BlockingEventLoop for Loop<S, C> {
    type Target = Debugger<S>;
    type Connection = C;
    type StopReason = Stopped;

    fn wait_for_stop_reason(
        debugger: &mut Debugger<S>,
        connection: &mut C,
    ) -> Result<Event<Stopped>, WaitForStopReasonError<S::Error, <C as Connection>::Error>> {
        if debugger.wanted.is_back()
            && let Some(why) = debugger.subject.no_way_back()
        {
            print(connection, &why).map_err(WaitForStopReasonError::Connection)?;
            return Ok(Event::TargetStopped(reason(debugger, Halt::Start, 0)));
        }
        let mut interrupted = || matches!(connection.peek(), Ok(Some(_)));
        let halt = debugger.go(&mut interrupted).map_err(WaitForStopReasonError::Target)?;
        if halt == Halt::Interrupted {
            let byte = connection.read().map_err(WaitForStopReasonError::Connection)?;
            return Ok(Event::IncomingData(byte));
        }
        let asked = halt == Halt::Breakpoint && !debugger.asked.is_empty();
        let rip = if asked { debugger.subject.registers() } else { Ok(X86Registers::default()) };
        let rip = rip.map_err(WaitForStopReasonError::Target)?.pc();
        Ok(Event::TargetStopped(reason(debugger, halt, rip)))
    }

    fn on_interrupt(_: &mut Debugger<S>) -> Result<Option<Stopped>, S::Error> {
        Ok(Some(Stopped::Signal(Signal::SIGINT)))
    }
}

/// Has gdb print a line while it waits for the machine to stop.
fn print<C: Connection<Error = io::Error>>(connection: &mut C, line: &str) -> io::Result<()> {
    let hex: String = format!("{line}\n").bytes().map(|byte| format!("{byte:02x}")).collect();
    let packet = format!("O{hex}");
    let sum = packet.bytes().fold(0u8, u8::wrapping_add);
    connection.write_all(format!("${packet}#{sum:02x}").as_bytes())
}

/// How gdb is told why the machine stopped; at `rip`, if that matters.
fn reason<S>(debugger: &Debugger<S>, halt: Halt, rip: u64) -> Stopped {
    let log = |pos| Stopped::ReplayLog { tid: None, pos };
    match halt {
        // gdb goes on from a breakpoint that it does not know.
        Halt::Breakpoint if debugger.asked.contains(&rip) => Stopped::Signal(Signal::SIGTRAP),
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
