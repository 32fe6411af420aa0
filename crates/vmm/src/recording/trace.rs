//! A thin log expanded into a full trace (mechanism L4): the recording is run again, and what
//! happens is told as it happens.

use std::path::PathBuf;
use std::str::FromStr;

use cpu::Vcpu;
use journal::{DiskOperation, Input, Output, What};
use replay::Target;
use travel::{Halt, Position, Stops, Travel};
use types::VirtualTime;

use super::debug::{go, travel};
use super::player::Place;
use super::{Opened, RecordingError};
use crate::{EngineKind, VmError};

/// Branches between two looks at what left the machine: the precision of its points.
const OUTPUT_STRETCH: u64 = 1000;
/// Branches between two looks whether the kernel has set its entry points.
const SETUP_STRETCH: u64 = 100_000;
/// Exceptions that push an error code (SDM vol. 3, table 6-1).
const WITH_ERROR_CODE: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
/// First vector that is not an exception's.
const INTERRUPTS: u8 = 32;

/// What is to be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceWhat {
    /// Every branch: from where to where.
    Branches,
    /// Every SYSCALL with its arguments.
    Syscalls,
    /// Every external interrupt.
    Interrupts,
    /// Every exception.
    Exceptions,
    /// Every request to a disk.
    Disk,
    /// Every frame that came or left.
    Net,
    /// Everything typed and printed at the consoles.
    Console,
}

/// A trace to be made.
#[derive(Clone, Debug)]
pub struct TraceSpec {
    /// The recording's folder.
    pub dir: PathBuf,
    /// Where to begin.
    pub from: Place,
    /// Where to end.
    pub to: Place,
    /// What to trace.
    pub what: TraceWhat,
    /// What executes the guest's instructions.
    pub engine: EngineKind,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceLine {
    /// Where; for disk and net the next place looked at.
    pub branches: u64,
    /// Guest time.
    pub time: VirtualTime,
    /// What.
    pub text: String,
    /// The bytes, if they went through a console.
    pub console: Option<ConsoleBytes>,
}

/// Bytes that went through a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleBytes {
    /// 0 and 1 are the serial ports, 2 is the virtio console.
    pub port: u32,
    /// Typed, or else printed.
    pub typed: bool,
    /// What.
    pub bytes: Vec<u8>,
}

impl ConsoleBytes {
    /// As a line of a trace.
    fn text(&self) -> String {
        let (port, done) = (self.port, if self.typed { "typed" } else { "printed" });
        format!("port {port} {done} {:?}", String::from_utf8_lossy(&self.bytes))
    }
}

impl FromStr for TraceWhat {
    type Err = String;

    fn from_str(text: &str) -> Result<TraceWhat, String> {
        Ok(match text {
            "branches" => TraceWhat::Branches,
            "syscalls" => TraceWhat::Syscalls,
            "interrupts" => TraceWhat::Interrupts,
            "exceptions" => TraceWhat::Exceptions,
            "disk" => TraceWhat::Disk,
            "net" => TraceWhat::Net,
            "console" => TraceWhat::Console,
            _ => {
                let kinds = "branches, syscalls, interrupts, exceptions, disk, net or console";
                return Err(format!("write {kinds}"));
            }
        })
    }
}

/// Makes a trace; `each` is told every line, and ends the trace by saying false.
///
/// # Errors
/// [`VmError::Recording`].
pub fn trace(spec: &TraceSpec, each: &mut dyn FnMut(&TraceLine) -> bool) -> Result<(), VmError> {
    Opened::open(&spec.dir)?;
    let mut travel = travel(&spec.dir, spec.engine)?;
    let end = match spec.to {
        Place::End => Position { branches: u64::MAX, ..Position::default() },
        to => {
            go(&mut travel, to)?;
            travel.position()
        }
    };
    go(&mut travel, spec.from)?;
    let mut tracer = Tracer { travel, end, each };
    tracer.run(spec.what).map_err(|error| RecordingError::from(error).into())
}

struct Tracer<'a> {
    travel: Travel,
    end: Position,
    each: &'a mut dyn FnMut(&TraceLine) -> bool,
}

type Traced = Result<(), travel::TravelError>;

impl Tracer<'_> {
    fn run(&mut self, what: TraceWhat) -> Traced {
        match what {
            TraceWhat::Branches => self.branches(),
            TraceWhat::Disk | TraceWhat::Net | TraceWhat::Console => self.outputs(what),
            TraceWhat::Syscalls | TraceWhat::Interrupts | TraceWhat::Exceptions => {
                self.entries(what)
            }
        }
    }

    fn is_over(&self) -> bool {
        self.travel.position() >= self.end
    }

    /// Tells a line; false if that was the last one wanted.
    fn tell(&mut self, text: String) -> bool {
        self.tell_console(text, None)
    }

    fn tell_console(&mut self, text: String, console: Option<ConsoleBytes>) -> bool {
        let machine = self.travel.machine();
        let line = TraceLine { branches: machine.branches(), time: machine.now(), text, console };
        (self.each)(&line)
    }

    fn branches(&mut self) -> Traced {
        while !self.is_over() {
            let (from, before) = (self.travel.linear_rip(), self.travel.position().branches);
            if self.travel.step()? == Halt::End {
                break;
            }
            if self.travel.position().branches == before {
                continue;
            }
            let text = format!("{from:#x} {:#x}", self.travel.linear_rip());
            if !self.tell(text) {
                break;
            }
        }
        Ok(())
    }

    /// Stops wherever the kernel is entered in the ways wanted.
    fn entries(&mut self, what: TraceWhat) -> Traced {
        while !self.is_over() {
            let doors = doors(&self.travel, what);
            let breakpoints = doors.iter().map(|(_, address)| *address).collect();
            let stops = Stops { breakpoints, ..Stops::default() };
            // Entry points are set up once; until they are, they are looked for.
            let stretch = if doors.is_empty() { SETUP_STRETCH } else { SETUP_STRETCH * 100 };
            let branches = self.travel.position().branches + stretch;
            let target = Target::branches(branches.min(self.end.branches));
            let halt = self.travel.go_on_to(&stops, target, &mut || false)?;
            let text = match halt {
                Halt::End => break,
                Halt::Breakpoint => {
                    let rip = self.travel.linear_rip();
                    let door = doors.iter().find(|(_, address)| *address == rip);
                    door.map(|(vector, _)| describe(&self.travel, what, *vector))
                }
                _ => None,
            };
            if text.is_some_and(|text| !self.tell(text)) {
                break;
            }
            if halt == Halt::Reached && self.travel.position().branches >= self.end.branches {
                break;
            }
        }
        Ok(())
    }

    fn outputs(&mut self, what: TraceWhat) -> Traced {
        self.travel.trace_outputs(true);
        let mut number = self.travel.entry_number();
        while !self.is_over() {
            let branches = self.travel.position().branches + OUTPUT_STRETCH;
            let halt = self.travel.go_to_branch(branches.min(self.end.branches))?;
            let next = self.travel.entry_number();
            let came = &self.travel.entries()[number as usize..next as usize];
            number = next;
            let mut lines: Vec<String> = Vec::new();
            let mut bytes: Vec<ConsoleBytes> = Vec::new();
            match what {
                TraceWhat::Console => bytes.extend(came.iter().filter_map(|it| typed(&it.what))),
                TraceWhat::Net => lines.extend(came.iter().filter_map(|it| received(&it.what))),
                _ => {}
            }
            for output in self.travel.take_outputs() {
                lines.extend(sent(&output, what));
                if let (Output::Console { port, bytes: new }, TraceWhat::Console) = (output, what) {
                    add_printed(&mut bytes, port, new);
                }
            }
            let texts = lines.into_iter().map(|text| (text, None));
            let consoles = bytes.into_iter().map(|bytes| (bytes.text(), Some(bytes)));
            for (text, console) in texts.chain(consoles) {
                if !self.tell_console(text, console) {
                    return Ok(());
                }
            }
            if halt == Halt::End || branches >= self.end.branches {
                break;
            }
        }
        Ok(())
    }
}

/// Linear addresses by which the kernel is entered in the ways wanted, with their vectors.
fn doors(travel: &Travel, what: TraceWhat) -> Vec<(u8, u64)> {
    let vcpu = travel.machine().vcpu();
    match what {
        TraceWhat::Syscalls if vcpu.msrs.lstar != 0 => vec![(0, vcpu.msrs.lstar)],
        TraceWhat::Interrupts => gates(travel, vcpu, INTERRUPTS, 255),
        TraceWhat::Exceptions => gates(travel, vcpu, 0, INTERRUPTS - 1),
        _ => Vec::new(),
    }
}

/// Where the gates of the 64-bit interrupt table lead.
fn gates(travel: &Travel, vcpu: &Vcpu, first: u8, last: u8) -> Vec<(u8, u64)> {
    if !vcpu.mode.long {
        return Vec::new();
    }
    let gate = |vector: u8| {
        let mut bytes = [0; 16];
        let at = u64::from(vector) * 16;
        if at + 15 > u64::from(vcpu.idtr.limit) {
            return None;
        }
        travel.read(None, vcpu.idtr.base.wrapping_add(at), &mut bytes).ok()?;
        let is_present = bytes[5] & 0x80 != 0;
        let field = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let address = field(0..2) | field(6..8) << 16 | field(8..12) << 32;
        is_present.then_some((vector, address))
    };
    (first..=last).filter_map(gate).collect()
}

fn describe(travel: &Travel, what: TraceWhat, vector: u8) -> String {
    let vcpu = travel.machine().vcpu();
    let gpr = |index: usize| vcpu.regs.gpr[index];
    if what == TraceWhat::Syscalls {
        let arguments = [7, 6, 2, 10, 8, 9].map(|index| format!("{:#x}", gpr(index)));
        return format!("{} ({}) from {:#x}", gpr(0), arguments.join(", "), gpr(1));
    }
    let word = |index: u64| {
        let mut bytes = [0; 8];
        travel.read(None, gpr(4).wrapping_add(index * 8), &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let has_code = WITH_ERROR_CODE.contains(&vector);
    let from = word(u64::from(has_code)).map_or("?".into(), |rip| format!("{rip:#x}"));
    let code =
        word(0).filter(|_| has_code).map_or(String::new(), |code| format!(" code {code:#x}"));
    let address = if vector == 14 { format!(" address {:#x}", vcpu.cr2) } else { String::new() };
    format!("vector {vector} at {from}{code}{address}")
}

fn typed(what: &What) -> Option<ConsoleBytes> {
    match what {
        What::Input(Input::Console { port, bytes }) => {
            Some(ConsoleBytes { port: *port, typed: true, bytes: bytes.clone() })
        }
        _ => None,
    }
}

/// Serial ports print byte by byte.
fn add_printed(to: &mut Vec<ConsoleBytes>, port: u32, bytes: Vec<u8>) {
    match to.last_mut() {
        Some(last) if !last.typed && last.port == port => last.bytes.extend(bytes),
        _ => to.push(ConsoleBytes { port, typed: false, bytes }),
    }
}

fn received(what: &What) -> Option<String> {
    match what {
        What::Input(Input::NetReceive { nic, frame }) => {
            Some(format!("nic {nic} received {} bytes{}", frame.len(), ethernet(frame)))
        }
        What::Input(Input::NetLink { nic, up }) => {
            Some(format!("nic {nic} link {}", if *up { "up" } else { "down" }))
        }
        _ => None,
    }
}

fn sent(output: &Output, what: TraceWhat) -> Option<String> {
    match (output, what) {
        (Output::NetTransmit { nic, frame }, TraceWhat::Net) => {
            Some(format!("nic {nic} sent {} bytes{}", frame.len(), ethernet(frame)))
        }
        (Output::Disk { disk, request }, TraceWhat::Disk) => {
            let id = request.id;
            let operation = match &request.operation {
                DiskOperation::Read { offset, len } => format!("read {len} bytes at {offset}"),
                DiskOperation::Write { offset, data } => {
                    format!("write {} bytes at {offset}", data.len())
                }
                DiskOperation::Flush => "flush".into(),
                DiskOperation::Discard { offset, len } => {
                    format!("discard {len} bytes at {offset}")
                }
                DiskOperation::WriteZeroes { offset, len } => {
                    format!("zero {len} bytes at {offset}")
                }
            };
            Some(format!("disk {disk} request {id} {operation}"))
        }
        _ => None,
    }
}

/// Addresses and type of a frame.
fn ethernet(frame: &[u8]) -> String {
    let Some(header) = frame.get(..14) else { return String::new() };
    let mac =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let kind = u16::from_be_bytes([header[12], header[13]]);
    format!(" {} > {} type {kind:#06x}", mac(&header[6..12]), mac(&header[..6]))
}
