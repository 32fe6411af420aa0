//! `doppel run`.

use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use vmm::{
    Checks, ConsoleSpec, DiskSpec, EngineKind, FlightSpec, Model, NetSpec, VmError, VmInfo, VmSpec,
};

use crate::fail::Fail;
use crate::{image, size, usage, values};

const EXAMPLES: &str = "\
Examples:
  doppel run mini
      the built image `mini`; leave its shell or type `poweroff` to end it
  doppel run --kernel vmlinuz --initrd initrd.img --disk path=root.qcow2 \\
      --cmdline 'console=ttyS0 root=/dev/vda1' --net user,hostfwd=tcp:2222-:22
      a system of your own, with ssh at port 2222 of this host
  doppel run --kernel test.elf --console file=out.txt --debug-exit 0xf4 --no-reboot
      a test kernel whose verdict is the exit status
  doppel run mini --seed 1 --warp --cmdline doppel.end=poweroff
      the same run every time, idle time skipped
  doppel run mini --name web --console pty &
      in the background; then doppel console web, doppel stop web
";

/// Boot a guest and run it until it powers off.
///
/// The guest's first serial port is this terminal unless --console says otherwise. Ctrl-A X quits,
/// Ctrl-A H helps. SIGTERM, SIGINT and SIGHUP ask the guest to power off, and end the VM after
/// --grace; a second one ends it at once.
#[derive(Args, Debug)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", usage::exit_statuses()))]
pub struct Run {
    /// A built image: mini, mini-full or debian, each also with -backports for the newer kernel.
    /// debian keeps what its guest writes.
    #[arg(conflicts_with = "kernel")]
    image: Option<String>,
    /// Kernel: a Linux bzImage, or an ELF with a PVH note or multiboot header.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,
    /// Kernel command line; added to that of an image.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// A disk, /dev/vda first: path=FILE[,format=raw|qcow2][,readonly].
    #[arg(long, value_name = "SPEC", value_parser = values::disk)]
    disk: Vec<DiskSpec>,
    /// A network card, eth0 first: user[,hostfwd=tcp:HOSTPORT-:GUESTPORT]... or tap=NAME, and
    /// mac=AA:BB:CC:DD:EE:FF.
    #[arg(long, value_name = "SPEC", value_parser = values::net)]
    net: Vec<NetSpec>,
    /// Memory, a number with K, M, G or T.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse_size)]
    memory: u64,
    /// CPU model: v3 or v2, levels of x86-64.
    #[arg(long, value_name = "MODEL", default_value = "v3", value_parser = values::cpu)]
    cpu: Model,
    /// What executes the guest: translate, or interp, the slow reference. The guest
    /// cannot tell which.
    #[arg(long, value_name = "ENGINE", default_value = "translate", value_parser = values::engine)]
    engine: EngineKind,
    /// List the engine's translations in FILE for perf, which looks for /tmp/perf-PID.map; %p in
    /// FILE stands for the process id.
    #[arg(long, value_name = "FILE")]
    perf_map: Option<PathBuf>,
    /// Name among the running VMs; vm-PID if none is given.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    name: Option<String>,
    /// Where the first serial port leads: stdio, pty, file=FILE, unix=SOCKET or none.
    #[arg(long, value_name = "SPEC", default_value = "stdio")]
    console: ConsoleSpec,
    /// Where the second serial port leads: as --console.
    #[arg(long, value_name = "SPEC", default_value = "none")]
    serial2: ConsoleSpec,
    /// Add a virtio console (hvc0) that leads there: as --console.
    #[arg(long, value_name = "SPEC")]
    hvc: Option<ConsoleSpec>,
    /// Add the debug-exit test device at this I/O port: a guest ends the run by writing to it.
    #[arg(long, value_name = "PORT", value_parser = values::port)]
    debug_exit: Option<u16>,
    /// End the run when the guest resets, instead of booting again.
    #[arg(long)]
    no_reboot: bool,
    /// Make the run deterministic: it depends on this number and on input, and on nothing else.
    /// Guest time is counted in branches, and the calendar starts at 2024-01-01.
    #[arg(long, value_name = "NUMBER", value_parser = values::number)]
    seed: Option<u64>,
    /// Skip the time that the guest is idle. Guest time is counted in branches, as with --seed.
    #[arg(long)]
    warp: bool,
    /// Record the run into this folder, which must be new or empty: `doppel replay` runs it again.
    /// The guest's disks stay as they are; what it writes goes to overlays in the folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    record: Option<PathBuf>,
    /// Take a checkpoint along the recording this often, so that its middle is entered at once.
    /// Intervals become longer as the recording does.
    #[arg(long, value_name = "TIME", requires = "record", value_parser = values::interval)]
    checkpoint_every: Option<Duration>,
    /// Keep the last while, at most so long and so much, as 10min,4G: `doppel save-recording` makes
    /// a recording of it at any time.
    #[arg(long, value_name = "TIME,SIZE", conflicts_with = "record", value_parser = values::flight)]
    flight_recorder: Option<FlightSpec>,
    /// Serve the API at this socket too.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    api: Option<PathBuf>,
    /// How long the guest may take to power off when asked to.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::time)]
    grace: Duration,
    #[command(flatten)]
    checks: CheckFlags,
}

/// Checks of determinism.
#[derive(Args, Debug)]
pub struct CheckFlags {
    /// Check determinism: write state hashes at each multiple of this many branches to --hash-log.
    #[arg(long, value_name = "BRANCHES", value_parser = hash_every)]
    #[arg(help_heading = "Checks of determinism")]
    hash_every: Option<NonZeroU64>,
    /// Check determinism: where --hash-every writes lines `BRANCHES HASH`.
    #[arg(long, value_name = "FILE", help_heading = "Checks of determinism")]
    hash_log: Option<PathBuf>,
    /// Check determinism: end the run at this branch count, with exit status 0.
    #[arg(long, value_name = "BRANCHES", value_parser = values::number)]
    #[arg(help_heading = "Checks of determinism")]
    stop_at: Option<u64>,
}

impl CheckFlags {
    /// As the library wants them.
    pub fn checks(&self) -> Checks {
        Checks {
            hash_every: self.hash_every,
            hash_log: self.hash_log.clone(),
            stop_at: self.stop_at,
        }
    }
}

fn hash_every(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(values::number(text)?).ok_or_else(|| "write 1 or more".into())
}

impl Run {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let end = vmm::run(&self.spec()?, say_ready)?;
        Ok(end.status())
    }

    fn spec(&self) -> Result<VmSpec, Fail> {
        let image = self.image.as_deref().map(image::find).transpose()?;
        let kernel = image.as_ref().map(|image| &image.kernel).or(self.kernel.as_ref());
        let Some(kernel) = kernel else {
            let message = "run what? give an image such as mini, or a kernel with --kernel FILE";
            return Err(Fail::Usage(message.into()));
        };
        let mut spec = VmSpec::new(kernel.clone());
        spec.cmdline = self.cmdline.clone().unwrap_or_default();
        if let Some(image) = image {
            spec.initrd = Some(image.initrd);
            spec.cmdline = format!("{} {}", image.cmdline, spec.cmdline).trim().into();
            spec.disks.extend(image.disk);
        }
        if self.initrd.is_some() {
            spec.initrd.clone_from(&self.initrd);
        }
        spec.disks.extend(self.disk.iter().cloned());
        Ok(VmSpec {
            name: self.name.clone(),
            memory_size: self.memory,
            model: self.cpu,
            engine: self.engine,
            perf_map: self.perf_map.clone(),
            nets: self.net.clone(),
            console: self.console.clone(),
            serial2: self.serial2.clone(),
            hvc: self.hvc.clone(),
            debug_exit: self.debug_exit,
            no_reboot: self.no_reboot,
            seed: self.seed,
            warp: self.warp,
            api: self.api.clone(),
            record: self.record.clone(),
            checkpoint_every: self.checkpoint_every,
            flight: self.flight_recorder,
            grace: self.grace,
            checks: self.checks.checks(),
            ..spec
        })
    }
}

/// On a terminal, says what cannot be guessed.
pub(super) fn say_ready(info: &VmInfo) -> Result<(), VmError> {
    if !std::io::stderr().is_terminal() {
        return Ok(());
    }
    for console in &info.consoles {
        match (&console.place, console.to.as_str()) {
            (Some(place), "pty") => {
                eprintln!("doppel: {} of {} is {}", console.device, info.name, place.display());
            }
            (_, "stdio") if std::io::stdin().is_terminal() => {
                eprintln!("doppel: {} starts; Ctrl-A X quits, Ctrl-A H helps", info.name);
            }
            _ => {}
        }
    }
    Ok(())
}
