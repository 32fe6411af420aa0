//! `doppel inspect`.

use std::path::Path;

use checkpoint::{Checkpoint, DiskPolicy};
use clap::Args;
use vmm::VmInfo;
use vmm::client::Client;

use super::{client_fail, find, print, print_json};
use crate::fail::Fail;

/// Say what a running VM is and where it stands, or what a checkpoint holds.
#[derive(Args, Debug)]
pub struct Inspect {
    /// Name of the VM, or the folder of a checkpoint.
    #[arg(value_name = "NAME|FOLDER")]
    name: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let folder = Path::new(&self.name);
        if folder.is_dir() {
            return self.checkpoint(folder);
        }
        let vm = find(&self.name)?;
        let info = Client::new(&vm.api()).inspect().map_err(client_fail(&self.name))?;
        if self.json {
            print_json(&info)?;
        } else {
            print(&describe(&info))?;
        }
        Ok(0)
    }
}

impl Inspect {
    fn checkpoint(&self, folder: &Path) -> Result<u8, Fail> {
        // Checks all but the contents of memory.
        let checkpoint = Checkpoint::open(folder)?;
        if self.json {
            print_json(checkpoint.manifest())?;
        } else {
            print(&describe_checkpoint(&checkpoint))?;
        }
        Ok(0)
    }
}

fn describe_checkpoint(checkpoint: &Checkpoint) -> String {
    let manifest = checkpoint.manifest();
    let machine = &manifest.machine;
    let mut lines = vec![
        ("checkpoint", manifest.id.to_string()),
        ("format", format!("{}, release {}", manifest.version, manifest.release)),
        ("name", manifest.vm["name"].as_str().unwrap_or("").into()),
        ("memory", describe_memory(manifest)),
        ("CPU", format!("x86-64-{}", machine.cpu)),
        ("branches", manifest.point.branches.to_string()),
        ("guest time", format!("{:.3} s", manifest.virtual_time_ns as f64 / 1e9)),
    ];
    for (folder, below) in checkpoint.chain().skip(1) {
        lines.push(("on top of", format!("{} ({})", folder.display(), below.id)));
    }
    for disk in &manifest.disks {
        let how = match disk.policy {
            DiskPolicy::Kept => "kept",
            DiskPolicy::Copied => "copied",
            DiskPolicy::ReadOnly => "read-only",
        };
        let (path, size) = (disk.path.display(), disk.size_bytes >> 20);
        lines.push(("disk", format!("{path} ({}, {size}M, {how})", disk.format)));
    }
    for mac in &machine.nics {
        lines.push(("net", format!("mac {}", mac.map(|byte| format!("{byte:02x}")).join(":"))));
    }
    lines.into_iter().map(|(key, value)| format!("{key:<11}{value}\n")).collect()
}

fn describe_memory(manifest: &checkpoint::Manifest) -> String {
    let (whole, saved) = (manifest.machine.memory_bytes >> 20, manifest.memory.pages >> 8);
    let packed = manifest.memory.packed.as_ref();
    let packed =
        packed.map(|packed| format!(" in {}M by {}", packed.size >> 20, packed.compression));
    format!("{whole}M, {saved}M saved{}", packed.unwrap_or_default())
}

fn describe(info: &VmInfo) -> String {
    let mut lines = vec![
        ("name", info.name.clone()),
        ("process", info.pid.to_string()),
        ("state", info.state.name().into()),
        ("engine", format!("{}, CPU x86-64-{}", info.engine, info.cpu)),
        ("memory", format!("{}M", info.memory_bytes >> 20)),
        ("kernel", info.kernel.display().to_string()),
    ];
    if let Some(initrd) = &info.initrd {
        lines.push(("initrd", initrd.display().to_string()));
    }
    lines.push(("cmdline", info.cmdline.clone()));
    for disk in &info.disks {
        let read_only = if disk.read_only { ", read-only" } else { "" };
        let (path, format) = (disk.path.display(), &disk.format);
        lines.push(("disk", format!("{path} ({format}, {}M{read_only})", disk.size_bytes >> 20)));
    }
    for net in &info.nets {
        let forwards: String = net.forwards.iter().map(|one| format!(", hostfwd={one}")).collect();
        lines.push(("net", format!("{}, mac {}{forwards}", net.to, net.mac)));
    }
    for console in &info.consoles {
        let place = match &console.place {
            Some(place) if console.to == "pty" => format!(" {}", place.display()),
            _ => String::new(),
        };
        lines.push(("console", format!("{} to {}{place}", console.device, console.to)));
    }
    let seed = info.seed.map_or(String::new(), |seed| format!(", seed {seed}"));
    lines.push(("clock", format!("{}{seed}", info.clock)));
    lines.push(("branches", info.branches.to_string()));
    lines.push(("guest time", format!("{:.3} s", info.virtual_time_ns as f64 / 1e9)));
    lines.push(("api", info.api.display().to_string()));
    for counter in &info.engine_counters {
        lines.push(("counter", format!("{:>12} {}", counter.count, counter.name)));
    }
    lines.into_iter().map(|(key, value)| format!("{key:<11}{value}\n")).collect()
}
