//! Copies of a VM as processes of their own, which begin together or not at all.
//!
//! A copy makes everything ready, says its name on a pipe that all of them share, and waits for a
//! byte of another: `restore --together`. So guests that wake up do not take the CPUs from copies
//! that are still being made. Who gets its byte says its name again and lets its guest go; who
//! finds the pipe's end instead gives up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::fail::Fail;

/// How often it is looked whether a copy has ended instead.
const LOOK: Duration = Duration::from_millis(100);
/// How long no copy may get any further.
const PATIENCE: Duration = Duration::from_secs(60);
/// In a folder of copies: locked, shared, by everybody who needs the folder.
const LOCK: &str = "copies.lock";
/// What lets one copy go.
const GO: u8 = b'\n';

/// Copies in the making. If they are dropped before they are let go, nothing is left of them.
pub struct Copies {
    folder: PathBuf,
    children: BTreeMap<String, Child>,
    gate: Option<PipeWriter>,
    their_gate: PipeReader,
    said: Receiver<String>,
    their_said: Option<PipeWriter>,
    let_go: bool,
    _lock: Option<File>,
}

fn log_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

fn failed(source: std::io::Error) -> Fail {
    Fail::Host { action: "start a copy", source }
}

impl Copies {
    /// None yet. `folder` has their common past; what they complain about goes to files in it. If
    /// it `ends` with them, [`sweep`] removes it then.
    ///
    /// # Errors
    /// When the host has no pipes.
    pub fn new(folder: &Path, ends: bool) -> Result<Copies, Fail> {
        let lock = || {
            let file = File::create(folder.join(LOCK))?;
            file.lock_shared().map(|()| file)
        };
        let lock = ends.then(lock).transpose().map_err(failed)?;
        let (their_gate, gate) = std::io::pipe().map_err(failed)?;
        let (said, their_said) = std::io::pipe().map_err(failed)?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for name in BufReader::new(said).lines().map_while(Result::ok) {
                if sender.send(name).is_err() {
                    return;
                }
            }
        });
        Ok(Copies {
            folder: folder.into(),
            children: BTreeMap::new(),
            gate: Some(gate),
            their_gate,
            said: receiver,
            their_said: Some(their_said),
            let_go: false,
            _lock: lock,
        })
    }

    /// Starts `doppel restore --together` with `arguments` and this name.
    ///
    /// # Errors
    /// When the host cannot start a process.
    pub fn start(&mut self, name: &str, arguments: &[OsString]) -> Result<(), Fail> {
        let log = File::create(log_path(&self.folder, name)).map_err(failed)?;
        let said = self.their_said.as_ref().expect("nobody is waited for yet");
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["restore", "--together", "--name", name]).args(arguments);
        command
            .stdin(self.their_gate.try_clone().map_err(failed)?)
            .stdout(said.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0);
        self.children.insert(name.into(), command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Lets their guests go, and waits until each does.
    ///
    /// # Errors
    /// As [`Copies::wait`]; the others run then.
    pub fn let_go(mut self) -> Result<(), Fail> {
        self.their_said = None;
        let go = vec![GO; self.children.len()];
        let gate = self.gate.take();
        gate.iter().try_for_each(|mut gate| gate.write_all(&go)).map_err(failed)?;
        // Wakes all of them; bytes alone wake one, which then wakes the next.
        drop(gate);
        self.let_go = true;
        self.wait(|_| Ok(()))
    }

    /// Waits until each is as far as it can get; `on_name` is told of each.
    ///
    /// # Errors
    /// When one of them ends, or nothing happens for long.
    pub fn wait(&mut self, mut on_name: impl FnMut(&str) -> Result<(), Fail>) -> Result<(), Fail> {
        let mut left = self.children.len();
        let mut end = Instant::now() + PATIENCE;
        while left > 0 {
            match self.said.recv_timeout(LOOK) {
                Ok(name) => {
                    on_name(&name)?;
                    left -= 1;
                    end = Instant::now() + PATIENCE;
                }
                Err(_) if Instant::now() > end => {
                    return Err(Fail::Usage(format!("{left} copies do not come up")));
                }
                Err(RecvTimeoutError::Timeout) => self.check_lives()?,
                Err(RecvTimeoutError::Disconnected) => {
                    self.check_lives()?;
                    std::thread::sleep(LOOK);
                }
            }
        }
        Ok(())
    }

    fn check_lives(&mut self) -> Result<(), Fail> {
        for (name, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                let log = fs::read_to_string(log_path(&self.folder, name));
                let why = log.unwrap_or_default();
                return Err(Fail::Usage(format!("{name} ended ({status}): {}", why.trim())));
            }
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if self.let_go {
            return;
        }
        for child in self.children.values_mut() {
            // One that has ended needs no end. What it had is removed by who finds it.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Nobody is left who needs their common past; no image of the VM is in it.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes folders of copies that have all ended, however they did.
pub fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let folder = entry.path();
        let Ok(lock) = File::open(folder.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() && !has_kept(&folder) {
            // Next time, if not now.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Whether a checkpoint of a copy keeps one of its images: there is a marker beside that.
fn has_kept(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        let is_folder = path.is_dir() && !path.is_symlink();
        is_folder && has_kept(&path) || path.extension().is_some_and(|name| name == "doppel")
    })
}

/// The copy's side: has [`sweep`] leave `folder` alone until this process ends.
pub fn hold(folder: &Path) -> Option<File> {
    let file = File::open(folder.join(LOCK)).ok()?;
    file.lock_shared().ok()?;
    Some(file)
}

/// The copy's side: says that `name` is ready and waits to be let go.
///
/// # Errors
/// When whoever started it is gone.
pub fn wait_to_go(name: &str) -> Result<(), String> {
    let say = || {
        let mut out = std::io::stdout().lock();
        out.write_all(format!("{name}\n").as_bytes()).and_then(|()| out.flush())
    };
    let gone = |_| "whoever made copies gave them up".to_owned();
    say().map_err(gone)?;
    // Unbuffered: the other bytes are for others.
    let gate = std::io::stdin().as_fd().try_clone_to_owned().map_err(gone)?;
    File::from(gate).read_exact(&mut [0]).map_err(gone)?;
    say().map_err(gone)
}
