//! `doppel resume`.

use clap::Args;
use vmm::client::Client;

use super::{client_fail, find};
use crate::fail::Fail;

/// Let a paused VM go on.
#[derive(Args, Debug)]
pub struct Resume {
    /// Name of the VM.
    name: String,
}

impl Resume {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        Client::new(&vm.api()).resume().map_err(client_fail(&self.name))?;
        Ok(0)
    }
}
