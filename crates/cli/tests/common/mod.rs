//! What the tests of the command share: a place of their own, running `doppel`, tiny guests.

#![allow(dead_code)]

pub mod guest;

use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a runtime folder in it, removed at the end.
pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let dir = std::env::temp_dir().join(format!("dop-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        Place { dir }
    }

    /// Writes a file; its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The folder of running VMs.
    pub fn runtime(&self) -> PathBuf {
        self.dir.join("doppel")
    }

    /// `doppel` with its own runtime folder.
    pub fn doppel(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doppel"));
        command.args(arguments).env("XDG_RUNTIME_DIR", &self.dir).current_dir(&self.dir);
        command.env("XDG_STATE_HOME", self.dir.join("state"));
        command.env_remove("DOPPEL_CACHE").stdin(Stdio::null());
        command
    }

    /// Runs `doppel` to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.doppel(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        finish(child)
    }

    /// Starts a VM of the given guest and waits until its API answers.
    pub fn start(&self, name: &str, guest: &[u8], more: &[&str]) -> Vm<'_> {
        let kernel = self.file(&format!("{name}.elf"), guest);
        let kernel = kernel.to_str().unwrap().to_owned();
        let arguments = [&["run", "--kernel", &kernel, "--name", name, "--memory", "4M"], more];
        let mut command = self.doppel(&arguments.concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let vm = Vm { place: self, name: name.into(), child: Some(child), stdin };
        wait_for("a VM that answers", || self.run(&["inspect", name]).status.success());
        vm
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A VM in the background, killed at the end.
pub struct Vm<'a> {
    place: &'a Place,
    name: String,
    child: Option<Child>,
    stdin: Option<ChildStdin>,
}

impl Vm<'_> {
    pub fn pid(&self) -> rustix::process::Pid {
        let id = self.child.as_ref().unwrap().id();
        rustix::process::Pid::from_raw(id as i32).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    pub fn type_text(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// A field of `inspect --json`, as text.
    pub fn inspect(&self, field: &str) -> String {
        let output = self.place.run(&["inspect", &self.name, "--json"]);
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        info[field].to_string().trim_matches('"').into()
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Output {
        drop(self.stdin.take());
        finish(self.child.take().unwrap())
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for the end of a process, but not for ever.
pub fn finish(mut child: Child) -> Output {
    let read = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|one| Box::new(one) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|one| Box::new(one) as Box<dyn Read + Send>));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("still running: {}", String::from_utf8_lossy(&stderr.join().unwrap()));
        }
        sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Waits until something is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(5));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The files in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
