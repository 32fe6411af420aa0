//! `doppel checkpoint`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use clap::{Args, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use vmm::client::Client;
use vmm::{CheckpointRequest, CheckpointStatus, Compression, Phase};

use super::{client_fail, find, print, print_json};
use crate::fail::Fail;
use crate::size;

/// How often a checkpoint is looked at.
const LOOK: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "\
Examples:
  doppel checkpoint web before-upgrade
      a copy of memory, devices and disks at one instant; the VM keeps its disk images
  doppel checkpoint web base --keep-parent
  doppel checkpoint web next --keep-parent --incremental-from base
      images are kept as they are, the VM goes on with overlays; then only what changed
  doppel checkpoint web archive --compress zstd
  doppel restore before-upgrade
";

/// Keep a running VM as it is at one instant, without stopping it for longer than a moment.
///
/// FOLDER gets the VM's memory, the state of its devices, and its disks. The guest stands still for
/// a moment that does not depend on the amount of memory; then it runs on while its memory is
/// saved. A page that it writes before that is copied first. With --copy-disk (the default) the
/// disks are copied and the VM goes on with the images it had; with --keep-parent the images
/// become part of the checkpoint, untouched from then on, and the VM goes on with overlays beside
/// them, which the verb names.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct Checkpoint {
    /// Name of the VM.
    name: String,
    /// The new folder.
    #[arg(value_hint = ValueHint::DirPath, required_unless_present = "cancel")]
    folder: Option<PathBuf>,
    /// Copy the disks; the default.
    #[arg(long)]
    copy_disk: bool,
    /// Keep the disks' images in place; the VM goes on with overlays.
    #[arg(long, conflicts_with = "copy_disk")]
    keep_parent: bool,
    /// Save only the memory that changed since this checkpoint, which this VM was restored from or
    /// which was taken of it.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    incremental_from: Option<PathBuf>,
    /// Compress memory: a third to a half of the size, but restores read all of it before the
    /// guest goes on, and share nothing.
    #[arg(long, value_name = "METHOD", value_parser = compression)]
    compress: Option<Compression>,
    /// Memory for copies of pages that the guest writes before they are saved. When it is used up,
    /// the guest's thread saves each such page itself before the write.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse_size)]
    cow_limit: u64,
    /// Wait until everything is saved and the disks are as they are to be; the default.
    #[arg(long)]
    wait: bool,
    /// Come back as soon as the VM runs again.
    #[arg(long, conflicts_with = "wait")]
    background: bool,
    /// Give up the checkpoint that is being taken.
    #[arg(long, conflicts_with = "folder")]
    cancel: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Checkpoint {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        let api = vm.api();
        let client = Client::new(&api);
        let failed = client_fail(&self.name);
        let Some(folder) = &self.folder else {
            client.cancel_checkpoint().map_err(failed)?;
            return Ok(0);
        };
        let absolute = |path: &PathBuf| {
            std::path::absolute(path)
                .map_err(|source| Fail::Host { action: "find the current folder", source })
        };
        let request = CheckpointRequest {
            folder: absolute(folder)?,
            keep_parent: self.keep_parent,
            incremental_from: self.incremental_from.as_ref().map(absolute).transpose()?,
            compress: self.compress,
            cow_limit: Some(self.cow_limit),
            durable: true,
        };
        client.start_checkpoint(&request).map_err(failed)?;
        let status = follow(&client, &self.name, self.background)?;
        if self.json {
            print_json(&status)?;
        } else {
            print(&describe(&status, self.keep_parent))?;
        }
        Ok(0)
    }
}

fn compression(text: &str) -> Result<Compression, String> {
    match text {
        "zstd" => Ok(Compression::Zstd),
        _ => Err("zstd is what there is".into()),
    }
}

/// Shows progress until the checkpoint is done, or under way if `background`.
pub fn follow(client: &Client<'_>, name: &str, background: bool) -> Result<CheckpointStatus, Fail> {
    let bar = std::io::stderr().is_terminal().then(progress_bar);
    loop {
        let status = client.checkpoint().map_err(client_fail(name))?;
        if let Some(bar) = &bar {
            show(bar, &status);
        }
        match status.phase {
            Phase::Failed => {
                let why = status.error.unwrap_or_else(|| "it failed".into());
                return Err(Fail::Usage(format!("checkpoint of {name}: {why}")));
            }
            Phase::Cancelled => return Err(Fail::Usage("the checkpoint was cancelled".into())),
            phase if phase.is_over() || background && status.stun_ns.is_some() => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                return Ok(status);
            }
            _ => sleep(LOOK),
        }
    }
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let form = "{msg:10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, status: &CheckpointStatus) {
    let (message, done, total) = match status.phase {
        Phase::Disks => ("disks", status.disk_bytes_done, status.disk_bytes),
        Phase::Committing => ("commit", status.committed_bytes, status.committed_bytes),
        _ => ("memory", status.pages_done * 4096, status.pages * 4096),
    };
    bar.set_message(format!("{message}, {} copied", status.copied));
    bar.set_length(total);
    bar.set_position(done);
}

fn describe(status: &CheckpointStatus, keep_parent: bool) -> String {
    let stun_us = status.stun_ns.unwrap_or(0) / 1000;
    let mut text = format!(
        "{}: {} MB of memory saved{}, stun {stun_us} us, {} pages copied on write",
        status.folder.display(),
        status.bytes / 1_000_000,
        match status.stored_bytes {
            stored if stored < status.bytes => format!(" in {} MB", stored / 1_000_000),
            _ => String::new(),
        },
        status.copied,
    );
    if status.overflowed > 0 {
        text.push_str(&format!(", {} beyond --cow-limit", status.overflowed));
    }
    text.push('\n');
    if keep_parent {
        for disk in &status.disks {
            text.push_str(&format!("the VM goes on with {}\n", disk.display()));
        }
    }
    text
}
