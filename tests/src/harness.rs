//! A machine without a host: idle time is skipped, outputs are captured, disks are `DiskIo`s.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use boot::{BootSpec, PlatformTables};
use checkpoint::RestoredMachine;
use cpu::Engine;
use devices::PowerEvent;
use disk::DiskIo;
use interp::Interp;
use journal::{DiskCompletion, Output, WallClock};
use machine::{Machine, MachineSpec, Outside, Stop};
use replay::{OutputDigest, Watched};
use translate::{Options, Translator};

/// Wall-clock time of test machines at power-on: 2024-01-01 00:00 UTC.
const WALL_CLOCK: WallClock = WallClock(1_704_067_200_000_000_000);

/// Folder of the built guest images: `$DOPPEL_CACHE` or `.cache` in the workspace.
pub fn guest_cache() -> PathBuf {
    let cache = std::env::var_os("DOPPEL_CACHE")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache"), PathBuf::from);
    cache.join("guests")
}

/// What a machine put out.
#[derive(Default)]
pub struct Captured {
    /// Bytes of each console by port.
    pub consoles: [Vec<u8>; 3],
    /// Frames sent.
    pub frames: Vec<Vec<u8>>,
    /// Where disk requests go.
    pub disks: Vec<DiskIo>,
    /// Copy COM1 to standard error as it comes.
    pub echo: bool,
    /// Digest of everything put out.
    pub digest: OutputDigest,
    /// Results of disk reads that a checkpoint brought along.
    pub reads: Vec<(u32, DiskCompletion)>,
}

impl Captured {
    /// What COM1 printed so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.consoles[0]).into_owned()
    }
}

impl Watched for Captured {
    fn digest(&self) -> u64 {
        self.digest.value()
    }
}

impl Outside for Captured {
    fn output(&mut self, output: Output) {
        self.digest.add(&output);
        match output {
            Output::Console { port, bytes } => {
                if self.echo && port == 0 {
                    eprint!("{}", String::from_utf8_lossy(&bytes));
                }
                self.consoles[port as usize].extend_from_slice(&bytes);
            }
            Output::NetTransmit { frame, .. } => self.frames.push(frame),
            Output::Disk { disk, request } => self.disks[disk as usize].submit(request),
        }
    }

    fn disk_wait(&mut self, disk: u32, id: u64) -> DiskCompletion {
        let read = self.reads.iter().position(|(of, read)| (*of, read.id) == (disk, id));
        match read {
            Some(at) => self.reads.swap_remove(at).1,
            None => self.disks[disk as usize].wait(id),
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest changed the power state.
    Power(PowerEvent),
    /// Triple fault.
    Shutdown,
    /// Halted with no timer armed.
    Asleep,
    /// The branch count was reached.
    Reached,
}

/// A machine and its engine.
pub struct Guest {
    /// The machine.
    pub machine: Machine,
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// What it put out.
    pub outside: Captured,
}

impl Guest {
    /// A machine of `memory_size` bytes, interpreted.
    pub fn new(memory_size: u64, disks: Vec<DiskIo>) -> Result<Guest> {
        Guest::with_engine(memory_size, disks, Box::new(Interp::new()?))
    }

    /// A machine of `memory_size` bytes on the engine of that name.
    pub fn on(engine: &str, memory_size: u64, disks: Vec<DiskIo>) -> Result<Guest> {
        Guest::with_engine(memory_size, disks, engine_named(engine)?)
    }

    /// A machine of `memory_size` bytes on `engine`.
    pub fn with_engine(
        memory_size: u64,
        disks: Vec<DiskIo>,
        engine: Box<dyn Engine>,
    ) -> Result<Guest> {
        Ok(Guest {
            machine: Machine::new(spec(memory_size, &disks))?,
            engine,
            outside: Captured { disks, ..Captured::default() },
        })
    }

    /// A machine from a checkpoint, on the engine of that name.
    pub fn restored(restored: RestoredMachine, disks: Vec<DiskIo>, engine: &str) -> Result<Guest> {
        let RestoredMachine { machine, requests, reads } = restored;
        let mut outside = Captured { disks, reads, ..Captured::default() };
        for (disk, request) in requests {
            outside.output(Output::Disk { disk, request });
        }
        Ok(Guest { machine, engine: engine_named(engine)?, outside })
    }

    /// Boots a kernel image.
    pub fn boot(&mut self, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<()> {
        let tables = PlatformTables::standard(1);
        let spec = BootSpec { kernel, initrd, cmdline, tables: &tables };
        self.machine.boot(&spec)?;
        Ok(())
    }

    /// Boots the mini guest of `kernel` ("6.1" or "backports") with more on its command line.
    pub fn boot_mini(&mut self, kernel: &str, more: &str) -> Result<()> {
        self.boot_image("mini", kernel, more)
    }

    /// Boots the Debian guest of `kernel`; its root file system is on the first disk.
    pub fn boot_debian(&mut self, kernel: &str, more: &str) -> Result<()> {
        self.boot_image("debian", kernel, more)
    }

    fn boot_image(&mut self, image: &str, kernel: &str, more: &str) -> Result<()> {
        let read = |path: PathBuf| {
            std::fs::read(&path).with_context(|| {
                format!("{}: build the guests first with `cargo xtask guest`", path.display())
            })
        };
        let cache = guest_cache();
        let vmlinuz = read(cache.join(format!("kernel-{kernel}/vmlinuz")))?;
        let initrd = read(cache.join(format!("{image}-{kernel}.cpio")))?;
        self.boot(&vmlinuz, Some(&initrd), &format!("console=ttyS0 {more}"))
    }

    /// Runs to a branch count or the guest's end, skipping idle time.
    pub fn run(&mut self, until: u64) -> Ended {
        loop {
            match self.machine.run(&mut *self.engine, &mut self.outside, until) {
                Stop::Reached => return Ended::Reached,
                Stop::Yielded | Stop::Breakpoint | Stop::Touched(_) => {}
                Stop::Idle { deadline: Some(_) } => self.machine.skip_idle(&mut self.outside),
                Stop::Idle { deadline: None } => return Ended::Asleep,
                Stop::Power(event) => return Ended::Power(event),
                Stop::Shutdown => return Ended::Shutdown,
            }
        }
    }
}

fn engine_named(engine: &str) -> Result<Box<dyn Engine>> {
    let interp = Box::new(Interp::new()?);
    Ok(match engine {
        "interp" => interp,
        "translate" => Box::new(Translator::new(interp, Options::default())?),
        other => bail!("{other}: the engines are interp and translate"),
    })
}

fn spec(memory_size: u64, disks: &[DiskIo]) -> MachineSpec {
    let disk = |d: &DiskIo| machine::DiskSpec { size: d.size(), read_only: d.read_only() };
    MachineSpec {
        memory_size,
        model: cpu::cpuid::Model::V3,
        disks: disks.iter().map(disk).collect(),
        nics: Vec::new(),
        console: true,
        debug_exit: Some(0xf4),
        seed: 1,
        wall_clock: WALL_CLOCK,
        nominal_rate: MachineSpec::NOMINAL_RATE,
    }
}
