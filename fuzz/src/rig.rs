//! A small machine with one device of each kind, and a world outside it that answers at once.

use std::collections::BTreeMap;

use boot::{BootSpec, PlatformTables};
use cpu::cpuid::Model;
use cpu::{Cpu, Engine, Exit};
use devices::PowerEvent;
use interp::Interp;
use journal::{DiskCompletion, DiskFailed, DiskOperation, Output, WallClock};
use machine::{DiskSpec, Machine, MachineSpec, NicSpec, Outside, Stop};

/// Where a flat image is loaded.
pub const IMAGE: u32 = 0x10_0000;
/// Bytes of RAM.
pub const MEMORY_SIZE: u64 = 4 << 20;
/// Times that the machine may idle or reset before a run counts as over.
const STOPS_MAX: u32 = 16;

/// A machine with a disk, a network card, an entropy source, a console and the debug-exit port.
pub fn machine() -> Machine {
    let spec = MachineSpec {
        memory_size: MEMORY_SIZE,
        model: Model::V3,
        disks: vec![DiskSpec { size: 1 << 20, read_only: false }],
        nics: vec![NicSpec { mac: [2, 0, 0, 0, 0, 1] }],
        console: true,
        debug_exit: Some(0xf4),
        seed: 1,
        wall_clock: WallClock(1_700_000_000_000_000_000),
        nominal_rate: MachineSpec::NOMINAL_RATE,
    };
    Machine::new(spec).expect("a machine of four megabytes")
}

/// `contents` behind a multiboot header that loads them at [`IMAGE`] + 0x1000, their entry.
pub fn flat_image(contents: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16;
    let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let mut image = Vec::new();
    for word in [MAGIC, FLAGS, sum, IMAGE, IMAGE, 0, 0, IMAGE + 0x1000] {
        image.extend(word.to_le_bytes());
    }
    image.resize(0x1000, 0);
    image.extend(contents);
    image
}

/// Loads a flat image into a machine.
pub fn boot(machine: &mut Machine, image: &[u8]) {
    let tables = PlatformTables::standard(1);
    let spec = BootSpec { kernel: image, initrd: None, cmdline: "", tables: &tables };
    machine.boot(&spec).expect("the image is good");
}

/// Disks that read as a pattern; everything else that leaves is dropped.
#[derive(Default)]
pub struct World {
    reads: BTreeMap<u64, u32>,
}

impl Outside for World {
    fn output(&mut self, output: Output) {
        if let Output::Disk { request, .. } = output {
            let len = match request.operation {
                DiskOperation::Read { len, .. } => len,
                _ => 0,
            };
            self.reads.insert(request.id, len);
        }
    }

    fn disk_wait(&mut self, _disk: u32, id: u64) -> DiskCompletion {
        let len = self.reads.remove(&id);
        DiskCompletion { id, result: len.map(|len| vec![0x5d; len as usize]).ok_or(DiskFailed) }
    }
}

/// An engine that gives up where the guest makes no headway, sooner than a monitor would.
pub struct Impatient {
    engine: Interp,
    branches: u64,
    still_runs: u32,
}

impl Impatient {
    /// Runs in a row that may end without a branch.
    const STILL_RUNS_MAX: u32 = 8;

    /// With the interpreter inside.
    pub fn new() -> Impatient {
        let engine = Interp::new().expect("the host can run the engine");
        Impatient { engine, branches: 0, still_runs: 0 }
    }
}

impl Engine for Impatient {
    fn run(&mut self, cpu: &mut Cpu<'_>, until: u64) -> Exit {
        let moved = self.branches != cpu.vcpu.branches;
        self.still_runs = if moved { 0 } else { self.still_runs + 1 };
        self.branches = cpu.vcpu.branches;
        if self.still_runs > Impatient::STILL_RUNS_MAX {
            return Exit::Yielded;
        }
        self.engine.run(cpu, until)
    }

    fn step(&mut self, cpu: &mut Cpu<'_>) -> Exit {
        self.engine.step(cpu)
    }

    fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.engine.set_breakpoints(addresses);
    }

    fn instructions(&self) -> u64 {
        self.engine.instructions()
    }

    fn name(&self) -> &'static str {
        self.engine.name()
    }
}

/// Why a run was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It came to the branch asked for.
    Reached,
    /// It went on without a branch for too long; where it stood is not a point of the execution.
    Yielded,
    /// It stopped for good, or too often.
    Stopped,
}

/// Runs to `until` by way of every `step`th branch, waiting out idle times and resets.
pub fn run(machine: &mut Machine, engine: &mut dyn Engine, until: u64, step: u64) -> Ending {
    let mut world = World::default();
    let mut stops = 0;
    loop {
        let target = until.min(machine.branches().saturating_add(step));
        match machine.run(engine, &mut world, target) {
            Stop::Reached if machine.branches() >= until => return Ending::Reached,
            Stop::Reached => {}
            Stop::Yielded | Stop::Breakpoint | Stop::Touched(_) => return Ending::Yielded,
            Stop::Idle { deadline: Some(_) } => {
                machine.skip_idle(&mut world);
                stops += 1;
            }
            Stop::Power(PowerEvent::Reset) => {
                machine.reset();
                stops += 1;
            }
            Stop::Idle { deadline: None } | Stop::Power(_) | Stop::Shutdown => {
                return Ending::Stopped;
            }
        }
        if stops > STOPS_MAX {
            return Ending::Stopped;
        }
    }
}
