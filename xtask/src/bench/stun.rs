//! Stun: how long a guest stands still when it is kept, by the bytes that it writes to its second
//! serial port each millisecond, stamped by the host.
//!
//! Beside it QEMU's `savevm`, which stops the guest, and its background snapshot, which does not.
//! The same guest undisturbed is measured just before each: on a busy host its holes are there
//! without anybody's doing, and only what is beyond them says anything. Nor does what a program
//! alone has beside a writer to the same disk, which is measured first.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use guests::{Cache, Kernel, Mini, say};

use crate::bench::host_holes;
use crate::cargo::doppel;

/// How long the guest is watched before it is kept.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long guests stand still when they are kept.
#[derive(Args, Debug)]
pub struct Stun {
    /// Memory of the guests in MiB.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048])]
    memory: Vec<u32>,
    /// Loads: `idle`, or MB:RATE for so many MB rewritten at so many MB/s, 0 being at full speed.
    #[arg(long, value_delimiter = ',', default_values_t = ["idle".to_owned(), "128:50".to_owned()])]
    loads: Vec<String>,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Leave out QEMU.
    #[arg(long)]
    alone: bool,
}

/// Who keeps the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Doppel,
    Savevm,
    Background,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Doppel => "doppel checkpoint",
            Peer::Savevm => "qemu savevm",
            Peer::Background => "qemu background",
        }
    }
}

/// Bytes of the guest's clock, as they came.
type Ticks = Arc<Mutex<Vec<(Instant, Vec<u8>)>>>;

/// A guest that ticks.
struct Guest {
    peer: Peer,
    program: PathBuf,
    child: Child,
    folder: PathBuf,
    ticks: Ticks,
}

/// One measurement: milliseconds.
struct Sample {
    undisturbed: f64,
    hole: f64,
    saving: f64,
    /// Branches a second while it was kept, of those before, where the guest is always busy.
    pace: Option<f64>,
}

impl Stun {
    /// Runs the verb.
    ///
    /// # Errors
    /// When something cannot be built or started.
    pub fn run(&self) -> Result<()> {
        let cache = Cache::open()?;
        let mini = {
            let _lock = cache.lock()?;
            guests::mini_full(&cache, Kernel::V6_1, false)?
        };
        println!("largest hole in the guest's ticks, ms: median (least to most)");
        println!(
            "{:22} {:>6} {:>9}  {:>22} {:>22} {:>9}  pace",
            "", "MiB", "load", "undisturbed", "kept", "saving"
        );
        self.measure_host()?;
        for &memory in &self.memory {
            for load in &self.loads {
                let peers = [Peer::Doppel, Peer::Savevm, Peer::Background];
                for peer in peers.into_iter().take(if self.alone { 1 } else { 3 }) {
                    say(&format!("{}, {memory} MiB, {load}", peer.name()));
                    match self.measure(peer, &mini, memory, load) {
                        Ok(samples) => {
                            print_line(peer.name(), &memory.to_string(), load, &samples);
                        }
                        Err(error) => {
                            println!("{:22} {memory:>6} {load:>9}  {error:#}", peer.name())
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The same of a program alone, which nobody keeps.
    fn measure_host(&self) -> Result<()> {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let sample = |_| {
            let (alone, beside) = host_holes::measure(UNDISTURBED, &std::env::temp_dir())?;
            Ok(Sample { undisturbed: ms(alone), hole: ms(beside), saving: 0.0, pace: None })
        };
        let samples = (0..self.rounds).map(sample).collect::<Result<Vec<_>>>()?;
        print_line("no guest, but a writer", "", "", &samples);
        Ok(())
    }

    fn measure(&self, peer: Peer, mini: &Mini, memory: u32, load: &str) -> Result<Vec<Sample>> {
        let mut guest = Guest::start(peer, mini, memory, load)?;
        let mut samples = Vec::new();
        for round in 0..self.rounds {
            let (before, first) = (Instant::now(), guest.branches());
            sleep(UNDISTURBED);
            let (start, second) = (Instant::now(), guest.branches());
            guest.keep(round)?;
            let (end, third) = (Instant::now(), guest.branches());
            sleep(Duration::from_millis(200));
            let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
            samples.push(Sample {
                // Whole holes alone: the last one may be the checkpoint's.
                undisturbed: ms(guest.hole(before, start, false)?),
                hole: ms(guest.hole(start, end + Duration::from_millis(100), true)?),
                saving: ms(end - start),
                pace: Some(load).filter(|load| load.ends_with(":0")).and_then(|_| {
                    let rate = |from: u64, to: u64, time| Some((to - from) as f64 / ms(time));
                    Some(
                        rate(second?, third?, end - start)?
                            / rate(first?, second?, start - before)?,
                    )
                }),
            });
        }
        guest.check_order()?;
        Ok(samples)
    }
}

fn print_line(name: &str, memory: &str, load: &str, samples: &[Sample]) {
    let spread = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        format!("{:.2} ({least:.2} to {most:.2})", values[values.len() / 2])
    };
    let (undisturbed, kept) = (spread(|s| s.undisturbed), spread(|s| s.hole));
    let saving = samples.iter().map(|s| s.saving).fold(0.0, f64::max);
    let paces = samples.iter().filter_map(|s| s.pace).map(|pace| format!("{:.0}%", pace * 100.0));
    let paces = paces.collect::<Vec<_>>().join(" ");
    println!(
        "{name:22} {memory:>6} {load:>9}  {undisturbed:>22} {kept:>22} {saving:>9.0}  {paces}"
    );
}

impl Guest {
    fn start(peer: Peer, mini: &Mini, memory: u32, load: &str) -> Result<Guest> {
        let folder = std::env::temp_dir().join(format!("doppel-stun-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).context("a folder for temporary files")?;
        let (socket, program) = (folder.join("ticks"), doppel()?);
        let work = match load.split_once(':') {
            Some((size, rate)) => format!("(dirty%20{size}%20{rate}%20%26);"),
            None => String::new(),
        };
        let line = format!("console=ttyS0 quiet doppel.run={work}sleep%205;tick");
        let mut command = match peer {
            Peer::Doppel => {
                let mut command = Command::new(&program);
                command.args(["run", "--name", "stun", "--console", "none", "--memory"]);
                command.arg(format!("{memory}M")).arg("--serial2");
                command.arg(format!("unix={}", socket.display())).arg("--cmdline").arg(line);
                command.arg("--kernel").arg(&mini.kernel.vmlinuz);
                command.arg("--initrd").arg(&mini.initramfs);
                command
            }
            Peer::Savevm | Peer::Background => qemu(&folder, &socket, mini, memory, &line)?,
        };
        command.env("XDG_RUNTIME_DIR", &folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("the guest's monitor cannot be started")?;
        let ticks = Ticks::default();
        let guest = Guest { peer, program, child, folder, ticks: Arc::clone(&ticks) };
        let stream = connect(&socket)?;
        spawn(move || read_ticks(stream, &ticks));
        let end = Instant::now() + PATIENCE;
        while guest.ticks.lock().unwrap_or_else(PoisonError::into_inner).len() < 100 {
            if Instant::now() > end {
                bail!("the guest does not tick");
            }
            sleep(Duration::from_millis(50));
        }
        Ok(guest)
    }

    /// Has the guest kept, and waits until that is done.
    fn keep(&mut self, round: usize) -> Result<()> {
        match self.peer {
            Peer::Doppel => {
                let target = self.folder.join(format!("c{round}"));
                let mut command = Command::new(&self.program);
                command.args(["checkpoint", "stun"]).arg(&target);
                let output = command.env("XDG_RUNTIME_DIR", &self.folder).output()?;
                if !output.status.success() {
                    bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
                }
                std::fs::remove_dir_all(target)?;
            }
            Peer::Savevm => {
                self.order("savevm x")?;
            }
            Peer::Background => {
                self.order("migrate_set_capability background-snapshot on")?;
                self.order("migrate_set_parameter max-bandwidth 10G")?;
                let file = self.folder.join("background");
                self.order(&format!("migrate -d \"exec:cat > {}\"", file.display()))?;
                let end = Instant::now() + PATIENCE;
                loop {
                    let said = self.order("info migrate")?;
                    if said.contains("completed") {
                        break;
                    }
                    if said.contains("failed") || Instant::now() > end {
                        bail!("QEMU's background snapshot failed");
                    }
                    sleep(Duration::from_millis(20));
                }
                self.order("cont")?;
            }
        }
        Ok(())
    }

    /// Branches that the guest has retired, as doppel counts them.
    fn branches(&self) -> Option<u64> {
        if self.peer != Peer::Doppel {
            return None;
        }
        let mut command = Command::new(&self.program);
        command.args(["inspect", "stun", "--json"]).env("XDG_RUNTIME_DIR", &self.folder);
        let info: serde_json::Value =
            serde_json::from_slice(&command.output().ok()?.stdout).ok()?;
        info["branches"].as_u64()
    }

    /// An order to QEMU's monitor; what it says.
    fn order(&self, words: &str) -> Result<String> {
        let mut stream = connect(&self.folder.join("monitor"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        read_prompt(&mut stream)?;
        stream.write_all(format!("{words}\n").as_bytes())?;
        read_prompt(&mut stream)
    }

    /// The largest hole between ticks that ends after `from` and begins before `to`; or, unless
    /// `partly`, ends before it.
    fn hole(&self, from: Instant, to: Instant, partly: bool) -> Result<Duration> {
        let ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = ticks.iter().zip(ticks.iter().skip(1));
        let within =
            pairs.filter(|((a, _), (b, _))| *b >= from && *(if partly { a } else { b }) <= to);
        within.map(|((a, _), (b, _))| *b - *a).max().context("the guest did not tick")
    }

    /// Every tick came once, and in order.
    fn check_order(&self) -> Result<()> {
        let ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = ticks.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let disorder = bytes.windows(2).filter(|w| w[0].wrapping_add(1) != w[1]).count();
        if disorder > 0 {
            bail!("{disorder} ticks were lost or came twice");
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn qemu(folder: &Path, socket: &Path, mini: &Mini, memory: u32, line: &str) -> Result<Command> {
    let disk = folder.join("state.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("64M")
        .status()
        .context("qemu-img")?;
    if !made.success() {
        bail!("qemu-img cannot make a disk");
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-nodefaults"]);
    command.args(["-display", "none", "-serial", "null", "-serial"]);
    command.arg(format!("unix:{},server=on,wait=off", socket.display()));
    command.arg("-monitor");
    command.arg(format!("unix:{},server=on,wait=off", folder.join("monitor").display()));
    command.arg("-drive").arg(format!("if=virtio,format=qcow2,file={}", disk.display()));
    command.args(["-m", &memory.to_string()]);
    command.arg("-kernel").arg(&mini.kernel.vmlinuz).arg("-initrd").arg(&mini.initramfs);
    command.arg("-append").arg(line);
    Ok(command)
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > end => return Err(error).context("the socket"),
            Err(_) => sleep(Duration::from_millis(20)),
        }
    }
}

/// Has the thread that stamps the ticks come before whoever else wants a CPU: milliseconds that it
/// waits are none that the guest stood still.
fn come_first() {
    let task = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let task = task.file_name().unwrap_or_default();
    let set = Command::new("chrt").args(["-f", "-p", "20"]).arg(task).output();
    if !set.is_ok_and(|output| output.status.success()) {
        say("no real-time priority: what holes the reader of the ticks sees may be its own");
    }
}

fn read_ticks(mut stream: UnixStream, ticks: &Ticks) {
    come_first();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let tick = (Instant::now(), buffer[..count].to_vec());
        ticks.lock().unwrap_or_else(PoisonError::into_inner).push(tick);
    }
}

/// Reads up to QEMU's prompt.
fn read_prompt(stream: &mut UnixStream) -> Result<String> {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(b"(qemu) ") {
        if stream.read(&mut byte)? == 0 {
            bail!("QEMU's monitor went away");
        }
        said.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}
