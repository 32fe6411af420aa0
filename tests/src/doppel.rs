//! The real `doppel` as a child process: started, watched, typed to, signalled, ended.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::guest_cache;
use crate::scratch::Scratch;

/// How long anything may take that is not the guest's work.
pub const SHORT: Duration = Duration::from_secs(20);

/// The program under test: `$DOPPEL`, or the one built beside this test.
///
/// # Panics
/// When it has not been built.
pub fn program() -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().expect("the path of this test");
        test.ancestors().nth(2).map(|folder| folder.join("doppel"))
    };
    let program = std::env::var_os("DOPPEL").map(PathBuf::from).or_else(beside);
    let program = program.expect("a folder above this test");
    assert!(
        program.is_file(),
        "{}: not built; `cargo xtask test` builds it, or `cargo build --release -p cli`",
        program.display()
    );
    program
}

/// A command line of `doppel` to be.
#[derive(Debug)]
pub struct Doppel {
    command: Command,
}

impl Doppel {
    /// `doppel VERB`, with running VMs registered in `scratch` alone.
    pub fn new(scratch: &Scratch, verb: &str) -> Doppel {
        Doppel::from(Command::new(program()), scratch).arg(verb)
    }

    /// `PREFIX... doppel VERB`, for programs that start others.
    pub fn under(prefix: &[&str], scratch: &Scratch, verb: &str) -> Doppel {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(program());
        Doppel::from(command, scratch).arg(verb)
    }

    fn from(mut command: Command, scratch: &Scratch) -> Doppel {
        let guests = std::path::absolute(guest_cache()).expect("an absolute path");
        let cache = guests.parent().expect("the folder above the guests");
        command.env("XDG_RUNTIME_DIR", scratch.root()).env("DOPPEL_CACHE", cache);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Doppel { command }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Doppel {
        self.command.arg(argument);
        self
    }

    /// Adds the words of `arguments`.
    pub fn args(mut self, arguments: &str) -> Doppel {
        self.command.args(arguments.split_whitespace());
        self
    }

    /// Adds a flag with a path as its value.
    pub fn file(self, flag: &str, path: &Path) -> Doppel {
        self.arg(flag).arg(path)
    }

    /// Adds a disk; `more` is for example `,readonly`.
    pub fn disk(self, path: &Path, more: &str) -> Doppel {
        self.arg("--disk").arg(format!("path={}{more}", path.display()))
    }

    /// Adds kernel and initrd of a built guest and the kernel's command line.
    pub fn guest(self, image: &str, kernel: &str, cmdline: &str) -> Doppel {
        let guests = guest_cache();
        self.file("--kernel", &guests.join(format!("kernel-{kernel}/vmlinuz")))
            .file("--initrd", &guests.join(format!("{image}-{kernel}.cpio")))
            .arg("--cmdline")
            .arg(format!("console=ttyS0 {cmdline}"))
    }

    /// Lets the test type to it.
    pub fn typed(mut self) -> Doppel {
        self.command.stdin(Stdio::piped());
        self
    }

    /// Everything else that can be done to a command.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut self) -> Running {
        let started = Instant::now();
        let mut child = self.command.spawn().expect("doppel starts");
        Running {
            started,
            console: child.stdout.take().map(Output::read),
            stderr: child.stderr.take().map(Output::read),
            stdin: child.stdin.take(),
            child,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When that takes longer than `time_max`.
    pub fn run(self, time_max: Duration) -> Ended {
        self.start().end(time_max)
    }
}

/// Output of a process, read by a thread as it comes.
#[derive(Clone, Debug, Default)]
struct Output {
    state: Arc<(Mutex<OutputState>, Condvar)>,
}

#[derive(Debug, Default)]
struct OutputState {
    bytes: Vec<u8>,
    has_ended: bool,
}

impl Output {
    fn read(mut source: impl Read + Send + 'static) -> Output {
        let output = Output::default();
        let kept = output.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut state = kept.lock();
                state.bytes.extend_from_slice(&buffer[..count]);
                state.has_ended = count == 0;
                kept.state.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        output
    }

    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// Waits for `wanted` at or after `from`; where it ends.
    fn wait_for(&self, wanted: &str, from: usize, time_max: Duration) -> Option<usize> {
        let deadline = Instant::now() + time_max;
        let mut state = self.lock();
        let mut at = from;
        loop {
            let rest = state.bytes.get(at..).unwrap_or_default();
            if let Some(found) = rest.windows(wanted.len()).position(|w| w == wanted.as_bytes()) {
                return Some(at + found + wanted.len());
            }
            at = state.bytes.len().saturating_sub(wanted.len()).max(from);
            let left = deadline.saturating_duration_since(Instant::now());
            if state.has_ended || left.is_zero() {
                return None;
            }
            let waited = self.state.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_end(&self, time_max: Duration) {
        let (lock, changed) = &*self.state;
        let state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout_while(state, time_max, |state| !state.has_ended));
    }
}

/// A running `doppel`; killed if the test gives up on it.
#[derive(Debug)]
pub struct Running {
    started: Instant,
    console: Option<Output>,
    stderr: Option<Output>,
    stdin: Option<ChildStdin>,
    child: Child,
}

impl Running {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    /// When that cannot be told.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// CPU time it has used.
    ///
    /// # Panics
    /// When it is gone.
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.id());
        let stat = fs::read_to_string(path).expect("a running process");
        let fields = stat.rsplit(')').next().unwrap_or_default();
        // utime and stime, in hundredths of a second (proc(5); counted from the state here).
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// What it printed so far.
    pub fn console(&self) -> String {
        self.console.as_ref().map(Output::text).unwrap_or_default()
    }

    /// Waits until the guest has printed `wanted`.
    ///
    /// # Panics
    /// When it does not, in `time_max` or at all.
    pub fn wait_for(&self, wanted: &str, time_max: Duration) {
        self.wait_from(0, wanted, time_max);
    }

    /// Waits until the guest has printed `wanted` after byte `from` of its output; where that ends.
    ///
    /// # Panics
    /// When it does not, in `time_max` or at all.
    pub fn wait_from(&self, from: usize, wanted: &str, time_max: Duration) -> usize {
        let console = self.console.as_ref().expect("a console");
        console.wait_for(wanted, from, time_max).unwrap_or_else(|| {
            let stderr = self.stderr.as_ref().map(Output::text).unwrap_or_default();
            panic!(
                "no {wanted:?} after {:.0?}; stderr {stderr:?}; console:\n{}",
                self.started.elapsed(),
                tail(&console.text())
            )
        })
    }

    /// Waits until it is listed as running and answers.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_ready(&mut self, scratch: &Scratch, name: &str) {
        let deadline = Instant::now() + SHORT;
        loop {
            let answer = Doppel::new(scratch, "inspect").arg(name).run(SHORT);
            if answer.code() == Some(0) {
                return;
            }
            assert!(self.child.try_wait().expect("a child").is_none(), "{name} has ended");
            assert!(Instant::now() < deadline, "{name}: {}", answer.stderr);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Types to the guest.
    ///
    /// # Panics
    /// When nothing may be typed.
    pub fn type_text(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("typed()");
        stdin.write_all(text.as_bytes()).expect("typing");
        stdin.flush().expect("typing");
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a running doppel");
    }

    /// Ends it without the guest: a second signal insists. Apart, because signals of a kind that
    /// wait to be delivered are one.
    ///
    /// # Panics
    /// When it is gone already, or does not end.
    #[track_caller]
    pub fn kill_off(self) -> Ended {
        self.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(500));
        self.signal(Signal::TERM);
        self.end(SHORT)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that takes longer than `time_max`.
    pub fn end(mut self, time_max: Duration) -> Ended {
        let deadline = Instant::now() + time_max;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "doppel still runs after {time_max:?}; console:\n{}",
                tail(&self.console())
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        let elapsed = self.started.elapsed();
        let finish = |output: &Option<Output>| {
            let output = output.as_ref()?;
            output.wait_end(SHORT);
            Some(output.text())
        };
        let console = finish(&self.console).unwrap_or_default();
        let stderr = finish(&self.stderr).unwrap_or_default();
        Ended { status, console, stderr, elapsed }
    }

    /// Resident bytes of the process now that are not guest memory.
    ///
    /// # Panics
    /// When it is gone.
    pub fn monitor_memory(&self) -> u64 {
        Memory::of(self.child.id()).monitor_now
    }

    /// Memory of the process now.
    ///
    /// # Panics
    /// When it is gone.
    pub fn memory(&self) -> Memory {
        Memory::of(self.child.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run of `doppel` came to.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output, which is the guest's console.
    pub console: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Ended {
    /// Exit status as a number, if it was not killed by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Checks the exit status and that nothing was complained about.
    ///
    /// # Panics
    /// When the status is another, or something is on standard error.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Ended {
        let (status, stderr) = (self.status, &self.stderr);
        assert!(
            self.code() == Some(code) && stderr.is_empty(),
            "{status} instead of {code}, stderr {stderr:?}, console:\n{}",
            tail(&self.console)
        );
        self
    }

    /// What the guest printed between the marks of the command `name`.
    ///
    /// # Panics
    /// When the marks are not there, or it did not exit with 0.
    #[track_caller]
    pub fn output_of(&self, name: &str) -> String {
        output_of(&self.console, name)
    }
}

/// What a guest printed on `console` between the marks of the command `name`.
///
/// # Panics
/// When the marks are not there, or the command did not exit with 0.
#[track_caller]
pub fn output_of(console: &str, name: &str) -> String {
    let console = console.replace('\r', "");
    let begin = format!("DOPPEL-BEGIN {name}\n");
    let end = format!("DOPPEL-END {name} ");
    let output = console.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
    let Some((output, status)) = output else {
        panic!("{name} did not run to its end:\n{}", tail(&console));
    };
    let status = status.lines().next().unwrap_or_default();
    assert_eq!(status, "0", "{name} failed:\n{}", tail(output));
    output.into()
}

/// The last lines, to be shown.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Guest memory that is resident.
    pub guest: u64,
    /// The most that was ever resident, less `guest`.
    pub monitor: u64,
    /// What is resident now, less `guest`.
    pub monitor_now: u64,
}

impl Memory {
    /// Memory of process `id`.
    ///
    /// # Panics
    /// When there is no such process, or it has no guest memory.
    pub fn of(id: u32) -> Memory {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{id}/{name}")).expect("a running process")
        };
        let status = read("status");
        let peak = kib_after(&status, "VmHWM:").expect("a peak");
        let now = kib_after(&status, "VmRSS:").expect("a size");
        let maps = read("smaps");
        let ram = maps.split("memfd:doppel-ram").skip(1);
        let guest: u64 = ram.filter_map(|map| kib_after(map, "Rss:")).sum();
        assert!(guest > 0, "no guest memory in /proc/{id}/smaps");
        Memory {
            guest,
            monitor: peak.saturating_sub(guest),
            monitor_now: now.saturating_sub(guest),
        }
    }
}

/// The bytes of the first line that starts with `key`.
fn kib_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}
