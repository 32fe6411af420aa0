//! `doppel stop`.

use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use vmm::client::Client;
use vmm::registry;

use super::{client_fail, find};
use crate::fail::Fail;

/// How often to look whether the VM is gone.
const PAUSE: Duration = Duration::from_millis(20);

/// Ask a VM's guest to power off, and wait until the VM is gone.
///
/// The guest sees its power button pressed. If it has not powered off after the VM's --grace time,
/// the VM is ended all the same; its disks are flushed in any case.
#[derive(Args, Debug)]
pub struct Stop {
    /// Name of the VM.
    name: String,
    /// End it at once, without asking the guest.
    #[arg(long)]
    force: bool,
    /// Do not wait until it is gone.
    #[arg(long)]
    no_wait: bool,
}

impl Stop {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        Client::new(&vm.api()).stop(self.force).map_err(client_fail(&self.name))?;
        while !self.no_wait && registry::find(&self.name)?.is_some_and(|now| now.pid == vm.pid) {
            sleep(PAUSE);
        }
        Ok(0)
    }
}
