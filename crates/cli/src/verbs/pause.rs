//! `doppel pause`.

use clap::Args;
use vmm::client::Client;

use super::{client_fail, find};
use crate::fail::Fail;

/// Make a running VM stand still.
///
/// Its clock is the host's again when it is resumed: to the guest it was asleep.
#[derive(Args, Debug)]
pub struct Pause {
    /// Name of the VM.
    name: String,
}

impl Pause {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        Client::new(&vm.api()).pause().map_err(client_fail(&self.name))?;
        Ok(0)
    }
}
