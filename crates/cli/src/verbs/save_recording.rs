//! `doppel save-recording`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use vmm::client::Client;

use super::checkpoint::follow;
use super::{client_fail, find, print, print_json};
use crate::fail::Fail;

/// How long a lap of the flight recorder may take that is in the way.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is refused for no reason that goes away until that is told.
const TRIES: u32 = 3;

/// Keep what led to this moment: make a recording of what a VM's flight recorder has.
///
/// DIR is a recording like any other: it begins with the oldest checkpoint that is kept and ends
/// now. The images of the VM's disks become part of it, and the VM goes on with overlays beside
/// them, which the verb names.
#[derive(Args, Debug)]
pub struct SaveRecording {
    /// Name of the VM, which was started with --flight-recorder.
    name: String,
    /// Folder of the recording, new or empty.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl SaveRecording {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        let api = vm.api();
        let client = Client::new(&api);
        let dir = std::path::absolute(&self.dir)
            .map_err(|source| Fail::Host { action: "find the current folder", source })?;
        let patience = Instant::now() + PATIENCE;
        let mut tries = 0;
        while let Err(error) = client.save_recording(&dir) {
            // A lap that is being taken is soon over, or was just now.
            let busy = client.checkpoint().is_ok_and(|status| !status.phase.is_over());
            tries += u32::from(!busy);
            if tries == TRIES || Instant::now() > patience {
                return Err(client_fail(&self.name)(error));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = follow(&client, &self.name, false)?;
        if self.json {
            print_json(&status)?;
            return Ok(0);
        }
        print(&format!("{}: complete\n", dir.display()))?;
        for disk in status.disks {
            print(&format!("the VM goes on with {}\n", disk.display()))?;
        }
        Ok(0)
    }
}
