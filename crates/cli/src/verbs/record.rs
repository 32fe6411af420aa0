//! `doppel record`.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use vmm::client::Client;
use vmm::{CheckpointStatus, RecordRequest};

use super::checkpoint::follow;
use super::{client_fail, find, print, print_json};
use crate::fail::Fail;
use crate::values;

/// Record a running VM from now on, or end its recording.
///
/// DIR gets a checkpoint of this instant, and from then on everything that enters the machine:
/// `doppel replay DIR` runs it again from here. The images of the VM's disks become part of the
/// recording, untouched from now on, and the VM goes on with overlays beside them, which the verb
/// names. The VM stays recorded until it ends or --stop.
///
/// Examples:
///   doppel record web DIR
///   doppel record web DIR --checkpoint-every 10s
///   doppel record --stop web
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Record {
    /// Name of the VM.
    name: String,
    /// Folder of the recording, new or empty.
    #[arg(value_hint = ValueHint::DirPath, required_unless_present = "stop")]
    dir: Option<PathBuf>,
    /// End the recording in good order; the VM goes on.
    #[arg(long, conflicts_with = "dir")]
    stop: bool,
    /// Take checkpoints along the way, so that the middle is entered at once: one each 10s, 1min,
    /// ... The first 64 come so often, later ones ever more rarely.
    #[arg(long, value_name = "TIME", value_parser = values::interval, requires = "dir")]
    checkpoint_every: Option<Duration>,
    /// As JSON: how the checkpoint went, or with --stop what was recorded.
    #[arg(long)]
    json: bool,
}

impl Record {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        let api = vm.api();
        let client = Client::new(&api);
        match &self.dir {
            Some(dir) => self.start(&client, dir),
            None => self.end(&client),
        }
    }

    fn start(&self, client: &Client<'_>, dir: &PathBuf) -> Result<u8, Fail> {
        let dir = std::path::absolute(dir)
            .map_err(|source| Fail::Host { action: "find the current folder", source })?;
        let every = self.checkpoint_every.map(|every| every.as_millis().try_into().unwrap_or(0));
        let request = RecordRequest {
            folder: dir.clone(),
            checkpoint_every_ms: every.and_then(NonZeroU64::new),
        };
        client.record(&request).map_err(client_fail(&self.name))?;
        let status = follow(client, &self.name, false)?;
        if self.json {
            print_json(&status)?;
        } else {
            let CheckpointStatus { stun_ns, disks, bytes, .. } = status;
            let (stun_us, saved) = (stun_ns.unwrap_or(0) / 1000, bytes / 1_000_000);
            let dir = dir.display();
            print(&format!("{dir}: recording; {saved} MB of memory saved, stun {stun_us} us\n"))?;
            for disk in disks {
                print(&format!("the VM goes on with {}\n", disk.display()))?;
            }
        }
        Ok(0)
    }

    fn end(&self, client: &Client<'_>) -> Result<u8, Fail> {
        let recording = client.record_status().map_err(client_fail(&self.name))?;
        client.end_recording().map_err(client_fail(&self.name))?;
        if self.json {
            print_json(&recording)?;
        } else {
            print(&format!("{}: complete\n", recording.folder.display()))?;
        }
        Ok(0)
    }
}
