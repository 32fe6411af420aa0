//! `doppel restore`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vmm::{ConsoleSpec, EngineKind, NetSpec, RestoreSpec, VmError, VmInfo};

use super::run::say_ready;
use crate::fail::Fail;
use crate::{copies, usage, values};

const EXAMPLES: &str = "\
Examples:
  doppel restore before-upgrade
      the VM goes on in this terminal; its memory is read as it is touched
  doppel restore base --name web2 --copy --console pty &
      another VM beside the first: a new name, address, and generation
";

/// Go on with a VM from a checkpoint, any number of times.
///
/// The checkpoint is not changed: pages of memory are read when they are touched and shared with
/// other restores until they are written, and each disk gets an overlay of its own, in the folder
/// --disks. Time in the guest goes on from where it was.
#[derive(Args, Debug)]
#[command(after_long_help = format!("{EXAMPLES}\n{}", usage::exit_statuses()))]
pub struct Restore {
    /// The checkpoint.
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    /// Name among the running VMs; the one it had if none is given.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    name: Option<String>,
    /// Read and check all memory before the guest goes on.
    #[arg(long)]
    eager: bool,
    /// Let the guest stand still until `doppel resume`.
    #[arg(long)]
    paused: bool,
    /// This is a further VM beside the one that was kept: it gets Ethernet addresses and ports of
    /// the host of its own, and its guest is told to renew its random numbers (VM generation id).
    #[arg(long)]
    copy: bool,
    /// Folder for the disks' overlays; $XDG_STATE_HOME/doppel/disks/NAME if none is given.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    disks: Option<PathBuf>,
    /// Throw away what the guest writes to its disks when the VM ends.
    #[arg(long)]
    discard: bool,
    /// Plug network cards in differently, in order: as for `doppel run`.
    #[arg(long, value_name = "SPEC", value_parser = values::net)]
    net: Vec<NetSpec>,
    /// Unplug all network cards.
    #[arg(long, conflicts_with = "net")]
    no_net: bool,
    /// Say the name on standard output when everything is ready, go on at a byte on standard input,
    /// and say it again: what `fork` starts its copies with.
    #[arg(long, hide = true, conflicts_with = "paused")]
    together: bool,
    /// Ports of the host that a copy gets, in order: likewise.
    #[arg(long, hide = true, value_delimiter = ',', requires = "copy")]
    ports: Vec<u16>,
    /// Where the first serial port leads: stdio, pty, file=FILE, unix=SOCKET or none.
    #[arg(long, value_name = "SPEC", default_value = "stdio")]
    console: ConsoleSpec,
    /// Where the second serial port leads: as --console.
    #[arg(long, value_name = "SPEC", default_value = "none")]
    serial2: ConsoleSpec,
    /// What executes the guest: the engine it was kept with if none is given.
    #[arg(long, value_name = "ENGINE", value_parser = values::engine)]
    engine: Option<EngineKind>,
    /// Serve the API at this socket too.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    api: Option<PathBuf>,
    #[command(flatten)]
    checks: super::run::CheckFlags,
}

impl Restore {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let folder = std::path::absolute(&self.folder)
            .map_err(|source| Fail::Host { action: "find the current folder", source })?;
        let _held = self.together.then(|| copies::hold(&folder));
        let mut spec = vmm::restored_spec(RestoreSpec {
            folder,
            eager: self.eager,
            paused: self.paused,
            copy: self.copy,
            ports: self.ports.clone(),
            disks: self.disks.clone(),
            discard: self.discard,
        })?;
        if self.name.is_some() || self.copy {
            spec.name.clone_from(&self.name);
        }
        for (kept, net) in spec.nets.iter_mut().zip(&self.net) {
            kept.kind = net.kind.clone();
        }
        if self.no_net {
            spec.nets.clear();
        }
        spec.console = self.console.clone();
        spec.serial2 = self.serial2.clone();
        spec.engine = self.engine.unwrap_or(spec.engine);
        spec.api.clone_from(&self.api);
        spec.checks = self.checks.checks();
        let end = vmm::run(&spec, |info| self.ready(info))?;
        Ok(end.status())
    }

    fn ready(&self, info: &VmInfo) -> Result<(), VmError> {
        if self.together {
            return copies::wait_to_go(&info.name).map_err(VmError::GivenUp);
        }
        say_ready(info)
    }
}
