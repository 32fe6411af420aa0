//! `doppel fork`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use vmm::client::Client;
use vmm::{CheckpointRequest, State, VmInfo, registry};

use super::checkpoint::follow;
use super::{client_fail, find, print, print_json};
use crate::copies::{self, Copies};
use crate::fail::Fail;

/// Most copies at once.
const COUNT_MAX: u32 = 10_000;

const EXAMPLES: &str = "\
Examples:
  doppel fork web -n 3
      web-1, web-2 and web-3 run beside web, each with its own disk and ports
  doppel list
  doppel console web-2
";

/// Make running copies of a running VM.
///
/// The copies begin together, when the last of them is ready, or not at all. Each goes on from the
/// same instant as the VM itself, with its own name (NAME-1, NAME-2,
/// ...), overlay of each disk, Ethernet addresses, ports of the host and VM generation id, so that
/// its kernel renews its random numbers. What a copy writes to its disks is thrown away when it
/// ends, unless --keep-disks is given. By default the VM's images stay in place for the copies and
/// the VM goes on with overlays; with --copy-disk they are copied first.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct Fork {
    /// Name of the VM.
    name: String,
    /// How many copies.
    #[arg(short = 'n', long, value_name = "COUNT", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(COUNT_MAX)))]
    count: u32,
    /// Copy the disks, so that the VM keeps its images.
    #[arg(long)]
    copy_disk: bool,
    /// Keep what the copies write to their disks.
    #[arg(long)]
    keep_disks: bool,
    /// Unplug the copies' network cards.
    #[arg(long)]
    no_net: bool,
    /// As JSON: what `inspect --json` says of each copy, and the times it took.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    checkpoint_ms: u128,
    ready_ms: u128,
    started_ms: u128,
    stun_ns: Option<u64>,
    folder: PathBuf,
    copies: Vec<VmInfo>,
}

impl Fork {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let start = Instant::now();
        let folder = self.folder()?;
        let stun_ns = self.checkpoint(&folder)?;
        let checkpoint_ms = start.elapsed().as_millis();
        let (ready, copies) = self.make(&folder)?;
        // Everybody has it mapped.
        remove_memory(&folder);
        let report = Report {
            checkpoint_ms,
            ready_ms: (ready - start).as_millis(),
            started_ms: start.elapsed().as_millis(),
            stun_ns,
            folder,
            copies,
        };
        if self.json {
            print_json(&report)?;
        } else {
            print(&describe(&report))?;
        }
        Ok(0)
    }

    /// A new folder for the copies' common past.
    fn folder(&self) -> Result<PathBuf, Fail> {
        let base = vmm::state_dir()?.join("forks");
        fs::create_dir_all(&base)
            .map_err(|source| Fail::Host { action: "make the folder for copies", source })?;
        copies::sweep(&base);
        let mut names =
            (0..).map(|n| base.join(format!("{}-{}-{n}", self.name, std::process::id())));
        names.find(|path| !path.exists()).ok_or_else(|| Fail::Usage("no name is free".into()))
    }

    fn checkpoint(&self, folder: &Path) -> Result<Option<u64>, Fail> {
        let vm = find(&self.name)?;
        let api = vm.api();
        let client = Client::new(&api);
        let request = CheckpointRequest {
            folder: folder.into(),
            keep_parent: !self.copy_disk,
            incremental_from: None,
            compress: None,
            cow_limit: None,
            durable: false,
        };
        client.start_checkpoint(&request).map_err(client_fail(&self.name))?;
        Ok(follow(&client, &self.name, false)?.stun_ns)
    }

    /// Numbers whose names are free.
    fn numbers(&self) -> Result<Vec<u32>, Fail> {
        let taken: Vec<String> = registry::list()?.into_iter().map(|vm| vm.name).collect();
        let free = (1..).filter(|number| !taken.contains(&format!("{}-{number}", self.name)));
        Ok(free.take(self.count as usize).collect())
    }

    /// How many ports of the host a copy takes.
    fn forwards(&self) -> Result<usize, Fail> {
        if self.no_net {
            return Ok(0);
        }
        let info = Client::new(&find(&self.name)?.api()).inspect();
        let info = info.map_err(client_fail(&self.name))?;
        Ok(info.nets.iter().map(|net| net.forwards.len()).sum())
    }

    /// What each copy is told, but its name.
    fn arguments(&self, folder: &Path, name: &str, ports: &[u16]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![folder.into()];
        arguments.extend(["--copy", "--console", "none"].map(OsString::from));
        if !self.keep_disks {
            let disks = folder.join(name).into();
            arguments.extend(["--discard".into(), "--disks".into(), disks]);
        }
        if self.no_net {
            arguments.push("--no-net".into());
        }
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            arguments.extend(["--ports".into(), ports.join(",").into()]);
        }
        arguments
    }

    /// All copies, and when the last of them was ready and they were let go.
    fn make(&self, folder: &Path) -> Result<(Instant, Vec<VmInfo>), Fail> {
        let names: Vec<String> =
            self.numbers()?.iter().map(|number| format!("{}-{number}", self.name)).collect();
        // Chosen here: each for itself, two copies choose the same before either listens.
        let forwards = self.forwards()?;
        let ports = vmm::free_ports(names.len() * forwards)?;
        let mut copies = Copies::new(folder, !self.keep_disks)?;
        for (index, name) in names.iter().enumerate() {
            let ports = &ports[index * forwards..(index + 1) * forwards];
            copies.start(name, &self.arguments(folder, name, ports))?;
        }
        let mut infos = BTreeMap::new();
        copies.wait(|name| {
            let vm = registry::running(name)?.ok_or_else(|| Fail::NoVm(name.into()))?;
            let info = Client::new(&vm.api()).inspect().map_err(client_fail(name))?;
            infos.insert(name.to_owned(), VmInfo { state: State::Running, ..info });
            Ok(())
        })?;
        let ready = Instant::now();
        copies.let_go()?;
        Ok((ready, names.iter().filter_map(|name| infos.remove(name)).collect()))
    }
}

/// Memory is mapped by now and needs no name; disks do, and the rest is small.
fn remove_memory(folder: &Path) {
    let _ = fs::remove_file(folder.join("memory.img"));
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    for copy in &report.copies {
        let ports: Vec<_> = copy.nets.iter().flat_map(|net| net.forwards.clone()).collect();
        text.push_str(&format!("{}  {}\n", copy.name, ports.join(" ")));
    }
    let stun_us = report.stun_ns.unwrap_or(0) / 1000;
    text.push_str(&format!(
        "{} copies in {} ms, stun of the original {stun_us} us\n",
        report.copies.len(),
        report.started_ms
    ));
    text
}
