//! `doppel list`.

use clap::Args;
use vmm::client::Client;
use vmm::{VmInfo, registry};

use super::{print, print_json};
use crate::fail::Fail;

/// List the running VMs of this user.
#[derive(Args, Debug)]
pub struct List {
    /// As JSON: what `inspect --json` says of each.
    #[arg(long)]
    json: bool,
}

impl List {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let running = registry::list()?;
        // One that does not answer is on its way up or down.
        let infos = running.iter().filter_map(|vm| Client::new(&vm.api()).inspect().ok());
        let infos: Vec<VmInfo> = infos.collect();
        if self.json {
            print_json(&infos)?;
        } else if !infos.is_empty() {
            print(&table(&infos))?;
        }
        Ok(0)
    }
}

fn table(infos: &[VmInfo]) -> String {
    let width = infos.iter().map(|info| info.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:>8}  {:8}  {:>8}\n", "NAME", "PID", "STATE", "MEMORY");
    for info in infos {
        let VmInfo { name, pid, state, memory_bytes, .. } = info;
        let memory = format!("{}M", memory_bytes >> 20);
        text.push_str(&format!("{name:width$}  {pid:>8}  {:8}  {memory:>8}\n", state.name()));
    }
    text
}
