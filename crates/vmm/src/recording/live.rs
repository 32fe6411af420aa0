//! A recording that begins on a running VM: with a checkpoint instead of power-on.
//!
//! The log begins at the instant the checkpoint is of. The folder is a recording once the
//! checkpoint is saved and the manifest is there; if that fails, it is removed.

use std::path::{Path, PathBuf};

use disk::DiskSpec;
use machine::MachineSpec;

use super::RecordingError;
use super::log_file::LogFile;
use super::manifest::{BootDesc, LOG, Manifest};
use super::recorder::{Recorded, describe, make_dir};
use crate::VmError;
use crate::boot_files::BootSources;

/// Folder name of the checkpoint that a recording begins with.
const START: &str = "start";

/// A folder that is to be a recording.
#[derive(Debug)]
pub(crate) struct LiveRecording {
    dir: PathBuf,
    /// Until the machine has it.
    log: Option<LogFile>,
    /// Remove the folder again unless the recording is complete.
    armed: bool,
}

impl LiveRecording {
    /// Makes the folder, which must be new or empty, with the file of the log.
    pub fn make(dir: &Path) -> Result<LiveRecording, RecordingError> {
        make_dir(dir)?;
        let mut live = LiveRecording { dir: dir.into(), log: None, armed: true };
        let path = dir.join(LOG);
        live.log = Some(LogFile::create(&path).map_err(RecordingError::file("make", &path))?);
        Ok(live)
    }

    /// Where its checkpoint goes.
    pub fn start_folder(&self) -> PathBuf {
        self.dir.join(START)
    }

    /// Gives the log away, to be written from the checkpoint's instant on.
    pub fn take_log(&mut self) -> Option<LogFile> {
        self.log.take()
    }

    /// Where the image of disk `index` goes, if one is made for the recording.
    pub fn disk(&self, index: usize) -> PathBuf {
        self.dir.join(format!("disk{index}.qcow2"))
    }

    /// The checkpoint of a machine of `spec` is there, which had these `disks`: the folder becomes
    /// a recording. `digest` as in [`Manifest`].
    pub fn complete(
        mut self,
        spec: &MachineSpec,
        boot: &BootSources,
        disks: &[DiskSpec],
        digest: Option<[u64; 5]>,
    ) -> Result<Recorded, VmError> {
        // The checkpoint has the disks now, so it stays in any case.
        self.armed = false;
        let disks = disks.iter().enumerate().map(|(index, disk)| describe(index, disk));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let (kernel, initrd) = ("kernel".to_owned(), boot.has_initrd().then(|| "initrd".into()));
        let (cmdline, no_reboot) = (boot.cmdline().to_owned(), boot.no_reboot());
        boot.copy(&self.dir.join(&kernel), initrd.as_ref().map(|name| self.dir.join(name)))?;
        let boot = BootDesc { kernel, initrd, cmdline };
        let mut manifest = Manifest::new(spec, boot, disks);
        (manifest.start, manifest.no_reboot) = (Some(START.into()), no_reboot);
        manifest.digest = digest;
        manifest.write(&self.dir)?;
        Ok(Recorded::new(manifest, self.dir.clone()))
    }
}

impl Drop for LiveRecording {
    fn drop(&mut self) {
        if self.armed {
            drop(self.log.take());
            // It was empty when we came.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
