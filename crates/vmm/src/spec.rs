//! What a VM is to be: plain data, from the command line or any other caller.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use cpu::cpuid::Model;
use disk::DiskSpec;
use host::console::ConsoleSpec;
use host::net::Forward;

/// Guest memory when nobody says how much, bytes.
pub const MEMORY_SIZE_DEFAULT: u64 = 512 << 20;
/// Least guest memory, bytes: kernels are loaded at 1 MiB.
pub const MEMORY_SIZE_MIN: u64 = 2 << 20;
/// How long a guest may take to power off after it was asked to.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// A VM to be.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Its name among the running VMs of this user; one is made up if there is none.
    pub name: Option<String>,
    /// Kernel file: bzImage, PVH or multiboot ELF.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest memory, bytes, a multiple of 4096.
    pub memory_size: u64,
    /// CPU model.
    pub model: Model,
    /// What executes its instructions.
    pub engine: EngineKind,
    /// Where the engine lists its translations for `perf`; `%p` stands for the process id.
    pub perf_map: Option<PathBuf>,
    /// Disks, `/dev/vda` first.
    pub disks: Vec<DiskSpec>,
    /// Network cards, `eth0` first.
    pub nets: Vec<NetSpec>,
    /// Where the first serial port leads.
    pub console: ConsoleSpec,
    /// Where the second serial port leads.
    pub serial2: ConsoleSpec,
    /// Where the virtio console leads; `None` leaves the device out.
    pub hvc: Option<ConsoleSpec>,
    /// I/O port of the debug-exit test device, if it is wanted.
    pub debug_exit: Option<u16>,
    /// Whether a reset ends the VM.
    pub no_reboot: bool,
    /// Makes the run deterministic: random numbers, the calendar and the clock depend on nothing
    /// of the host.
    pub seed: Option<u64>,
    /// Skip idle time.
    pub warp: bool,
    /// A further socket for the API.
    pub api: Option<PathBuf>,
    /// Record everything that enters the machine into this folder.
    pub record: Option<PathBuf>,
    /// How often a checkpoint is taken along the recording, if one is.
    pub checkpoint_every: Option<Duration>,
    /// What a flight recorder keeps, if one goes along.
    pub flight: Option<FlightSpec>,
    /// The checkpoint it goes on from, instead of booting.
    pub restore: Option<RestoreSpec>,
    /// How long the guest may take to power off when asked to.
    pub grace: Duration,
    /// Checks of determinism.
    pub checks: Checks,
}

/// What executes instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The reference interpreter.
    Interp,
    /// The translator.
    #[default]
    Translate,
}

impl EngineKind {
    /// The name as in `--engine`.
    pub const fn name(self) -> &'static str {
        match self {
            EngineKind::Interp => "interp",
            EngineKind::Translate => "translate",
        }
    }
}

/// A network card and what it is plugged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// The far end of its cable.
    pub kind: NetKind,
    /// Ethernet address; one is derived from the seed if there is none.
    pub mac: Option<[u8; 6]>,
}

/// The far end of a network card's cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetKind {
    /// A user-mode network with ports of the host that lead to the guest.
    User(Vec<Forward>),
    /// A tap device of this name.
    Tap(String),
}

/// What a flight recorder keeps: as much as both allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightSpec {
    /// The last while of this length.
    pub window: Duration,
    /// Bytes.
    pub size_max: u64,
}

/// A checkpoint to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreSpec {
    /// Its folder.
    pub folder: PathBuf,
    /// Read and check all memory first.
    pub eager: bool,
    /// The guest stands still at first.
    pub paused: bool,
    /// It is a further VM beside the one that was kept: it gets addresses, ports of the host and a
    /// generation id of its own.
    pub copy: bool,
    /// Ports of the host that a copy gets, in the order of what it forwards; where they end, free
    /// ones are looked for.
    pub ports: Vec<u16>,
    /// Folder for the disks' overlays.
    pub disks: Option<PathBuf>,
    /// Overlays go when the VM ends.
    pub discard: bool,
}

/// Checks of determinism: the run is watched at exact branch counts.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// Write a line `branches hash` at each multiple of this many branches, and one at the end.
    pub hash_every: Option<NonZeroU64>,
    /// Where the lines go.
    pub hash_log: Option<PathBuf>,
    /// End the run at this branch count.
    pub stop_at: Option<u64>,
}

impl VmSpec {
    /// How virtual time passes: `live`, `seed` or `warp`.
    pub(crate) fn clock_name(&self) -> &'static str {
        match (self.warp, self.seed) {
            (true, _) => "warp",
            (false, Some(_)) => "seed",
            (false, None) => "live",
        }
    }

    /// A VM that boots `kernel` with nothing but memory and a console on standard input and
    /// output.
    pub fn new(kernel: PathBuf) -> VmSpec {
        VmSpec {
            name: None,
            kernel,
            initrd: None,
            cmdline: String::new(),
            memory_size: MEMORY_SIZE_DEFAULT,
            model: Model::default(),
            engine: EngineKind::default(),
            perf_map: None,
            disks: Vec::new(),
            nets: Vec::new(),
            console: ConsoleSpec::Stdio,
            serial2: ConsoleSpec::None,
            hvc: None,
            debug_exit: None,
            no_reboot: false,
            seed: None,
            warp: false,
            api: None,
            record: None,
            checkpoint_every: None,
            flight: None,
            restore: None,
            grace: GRACE_DEFAULT,
            checks: Checks::default(),
        }
    }
}
