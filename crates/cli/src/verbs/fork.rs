//! `doppel fork`.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use vmm::client::Client;
use vmm::{CheckpointRequest, State, VmInfo, registry};

use super::checkpoint::follow;
use super::{client_fail, find, print, print_json};
use crate::fail::Fail;

/// How often the copies are looked for, and for how long.
const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
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
/// Each copy goes on from the same instant as the VM itself, with its own name (NAME-1, NAME-2,
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
        let mut children = Vec::new();
        for number in self.numbers()? {
            let name = format!("{}-{number}", self.name);
            children.push((name.clone(), self.start(&folder, &name)?));
        }
        let copies = self.wait_for(children, &folder)?;
        // Everybody has it mapped.
        remove_memory(&folder);
        let report = Report {
            checkpoint_ms,
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

    fn start(&self, folder: &Path, name: &str) -> Result<Child, Fail> {
        let failed = |source| Fail::Host { action: "start a copy", source };
        let log = File::create(folder.join(format!("{name}.log"))).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("restore").arg(folder).args(["--copy", "--console", "none", "--name", name]);
        if !self.keep_disks {
            command.arg("--discard").arg("--disks").arg(folder.join(name));
        }
        if self.no_net {
            command.arg("--no-net");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        command.spawn().map_err(failed)
    }

    fn wait_for(&self, children: Vec<(String, Child)>, folder: &Path) -> Result<Vec<VmInfo>, Fail> {
        let end = Instant::now() + PATIENCE;
        let mut infos = Vec::new();
        for (name, mut child) in children {
            infos.push(loop {
                if let Ok(Some(status)) = child.try_wait() {
                    let log = fs::read_to_string(folder.join(format!("{name}.log")));
                    let why = log.unwrap_or_default();
                    return Err(Fail::Usage(format!("{name} ended ({status}): {}", why.trim())));
                }
                let running = registry::running(&name)?;
                let info = running.and_then(|vm| Client::new(&vm.api()).inspect().ok());
                match info.filter(|info| info.state != State::Starting) {
                    Some(info) => break info,
                    None if Instant::now() > end => {
                        return Err(Fail::Usage(format!("{name} does not come up")));
                    }
                    None => sleep(LOOK),
                }
            });
        }
        Ok(infos)
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
