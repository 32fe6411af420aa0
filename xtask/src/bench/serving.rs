//! A recorded server: Debian with nginx, loaded by curl from the host, plain and recorded by turns.
//!
//! Beside the times: how large the log is for the bytes that the guest received, how it grows in an
//! idle half minute, and how long the replay takes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guests::{Cache, Kernel, say};

use super::report::{Line, Report};
use super::rows::escape;
use crate::cargo::doppel;

/// What the guest does before it serves.
const SETUP: &str = "mkdir -p /srv/in; chown -R www-data: /srv; \
    openssl rand -out /srv/large 20000000; openssl rand -out /srv/small 2000; \
    printf 'user www-data;events {}http {client_max_body_size 0;keepalive_requests 1000000;\
    server {listen 8080;root /srv;location /in/ {dav_methods PUT;}}}' >/etc/nginx/nginx.conf; \
    systemctl restart nginx; echo SERVING; sleep 3600";
/// The rows: what curl fetches or brings, each with its arguments.
const LOADS: [&str; 3] = ["2000 requests", "60 MB out", "20 MB in"];
/// How long the guest is left alone afterwards.
const IDLE: Duration = Duration::from_secs(30);

/// A guest that serves.
struct Server {
    doppel: PathBuf,
    child: Child,
    folder: PathBuf,
    port: u16,
}

/// What a recorded run came to besides its times.
struct Recorded {
    /// By load: bytes of log, and of frames that the guest received.
    loads: Vec<(u64, u64)>,
    /// Kilobytes of log in a minute of idleness.
    idle: f64,
    /// Seconds of guest time that were recorded, and what their replay took.
    recorded: f64,
    replayed: f64,
}

/// Runs the rows `rounds` times on each.
///
/// # Errors
/// When something cannot be built, or a guest does not serve.
pub fn run(cache: &Cache, rounds: usize, limit: Duration) -> Result<()> {
    let debian = {
        let _lock = cache.lock()?;
        guests::debian(cache, false)?
    };
    let (_, kernel, initramfs) =
        debian.kernels.iter().find(|(which, ..)| *which == Kernel::V6_1).context("no kernel")?;
    let mut times = vec![vec![Vec::new(); 2]; LOADS.len()];
    let mut recorded = Vec::new();
    for round in 0..rounds {
        for turn in 0..2 {
            let recording = (turn + round) % 2 == 1;
            let name = if recording { "recorded" } else { "plain" };
            say(&format!("round {} of {rounds}: {name}", round + 1));
            let guest = [&kernel.vmlinuz, initramfs, &debian.qcow2];
            let mut server = Server::start(guest.map(PathBuf::as_path), recording, limit)?;
            let mut marks = Vec::new();
            for (load, times) in times.iter_mut().enumerate() {
                let from = server.now()?;
                times[usize::from(recording)].push(Some(server.load(load)?));
                marks.push((from, server.now()?));
            }
            if recording {
                recorded.push(server.finish(&marks)?);
            }
        }
    }
    let line = |(name, times): (&str, Vec<_>)| Line { name: name.to_owned(), times };
    let report = Report {
        setting: vec![("kernel", kernel.version.clone()), ("rounds", rounds.to_string())],
        targets: vec!["plain".to_owned(), "recorded".to_owned()],
        lines: LOADS.into_iter().zip(times).map(line).collect(),
    };
    print!("{}", report.table());
    for Recorded { loads, idle, recorded, replayed } in recorded {
        for (name, (log, frames)) in LOADS.iter().zip(loads) {
            let ratio = log as f64 / frames as f64;
            println!("{name}: {log} bytes of log for {frames} of frames received: {ratio:.3}");
        }
        println!("idle: {idle:.1} KB a minute; {recorded:.1} s replayed in {replayed:.1} s");
    }
    Ok(())
}

impl Server {
    fn start(guest: [&Path; 3], recording: bool, limit: Duration) -> Result<Server> {
        let folder = std::env::temp_dir().join(format!("doppel-serving-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).context("a folder for the guest")?;
        let [kernel, initramfs, disk] = guest;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let program = folder.join("program");
        std::fs::copy(doppel()?, &program).context("copying doppel")?;
        let mut command = Command::new(&program);
        command.args(["run", "--name", "serving", "--memory", "1G", "--console"]);
        command.arg(format!("file={}", folder.join("console").display()));
        command.arg("--kernel").arg(kernel).arg("--initrd").arg(initramfs).arg("--cmdline");
        let work = escape(SETUP);
        command.arg(format!("console=ttyS0 quiet root=/dev/vda doppel.run=serve:{work}"));
        command.arg("--net").arg(format!("user,hostfwd=tcp:127.0.0.1:{port}-:8080"));
        let overlay = folder.join("disk.qcow2");
        make_overlay(disk, &overlay)?;
        command.arg("--disk").arg(format!("path={}", overlay.display()));
        if recording {
            command.arg("--record").arg(folder.join("recording"));
        }
        command.env("XDG_RUNTIME_DIR", &folder);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("doppel cannot be started")?;
        let mut server = Server { doppel: program, child, folder, port };
        let end = Instant::now() + limit;
        let console = server.folder.join("console");
        while !std::fs::read_to_string(&console).unwrap_or_default().contains("SERVING\r") {
            let ended = server.child.try_wait()?.is_some();
            ensure!(!ended && Instant::now() < end, "the guest does not serve");
            sleep(Duration::from_millis(200));
        }
        // What systemd still does after the login prompt is not to be measured.
        sleep(Duration::from_secs(5));
        Ok(server)
    }

    /// Seconds that a load takes.
    fn load(&self, load: usize) -> Result<f64> {
        let url = format!("http://127.0.0.1:{}", self.port);
        let mut command = Command::new("curl");
        command.args(["-sSf", "-o", "/dev/null"]);
        match load {
            0 => command.arg(format!("{url}/small?[1-2000]")),
            1 => command.arg(format!("{url}/large?[1-3]")),
            _ => {
                let file = self.folder.join("brought");
                std::fs::write(&file, vec![0x5a; 20_000_000])?;
                command.arg("-T").arg(file).arg(format!("{url}/in/file"))
            }
        };
        let start = Instant::now();
        let output = command.output().context("curl")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(start.elapsed().as_secs_f64())
    }

    /// Guest time, ns.
    fn now(&self) -> Result<u64> {
        let said = self.order(&["inspect", "serving", "--json"])?;
        let value: serde_json::Value = serde_json::from_str(&said)?;
        value["virtual_time_ns"].as_u64().context("no guest time")
    }

    /// What doppel says to these words.
    fn order(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.doppel);
        let output = command.args(words).env("XDG_RUNTIME_DIR", &self.folder).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Leaves the guest alone for a while, ends it, replays what was recorded, and looks at it;
    /// `marks` are guest times before and after each load.
    fn finish(&mut self, marks: &[(u64, u64)]) -> Result<Recorded> {
        sleep(Duration::from_secs(2));
        let idle_from = self.now()?;
        sleep(IDLE);
        let idle_to = self.now()?;
        self.order(&["stop", "serving", "--force"])?;
        self.child.wait()?;
        let recording = self.folder.join("recording").display().to_string();
        let events = events(&self.order(&["events", &recording])?)?;
        let start = Instant::now();
        self.order(&["replay", &recording])?;
        let replayed = start.elapsed().as_secs_f64();
        let (idle, _) = within(&events, idle_from, idle_to);
        let minutes = (idle_to - idle_from) as f64 / 60e9;
        Ok(Recorded {
            loads: marks.iter().map(|(from, to)| within(&events, *from, *to)).collect(),
            idle: idle as f64 / 1e3 / minutes,
            recorded: idle_to as f64 / 1e9,
            replayed,
        })
    }
}

/// Guest time in ns, bytes in the log, and bytes of the frame if it is one.
type Event = (u64, u64, u64);

/// What `doppel events` printed.
fn events(said: &str) -> Result<Vec<Event>> {
    let event = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, time, size, kind, ..] = words[..] else { return None };
        let frame = if kind == "frame" { words.get(7)?.parse().ok()? } else { 0 };
        Some(((time.parse::<f64>().ok()? * 1e9) as u64, size.parse().ok()?, frame))
    };
    let event = |line: &str| event(line).with_context(|| format!("an event: {line}"));
    said.lines().map(event).collect()
}

/// Bytes of log and of frames between two guest times.
fn within(events: &[Event], from: u64, to: u64) -> (u64, u64) {
    let events = events.iter().filter(|(time, ..)| (from..to).contains(time));
    events.fold((0, 0), |(log, frames), (_, size, frame)| (log + size, frames + frame))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn make_overlay(base: &Path, overlay: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(overlay);
    ensure!(command.status().context("qemu-img")?.success(), "qemu-img cannot make a disk");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_doppel_prints_them() {
        let said = concat!(
            "      0   10      0.000001      7 clock      forward 1 ns, then 2.000 ns a branch\n",
            "      1   20      1.500000     70 frame      nic 0, 60 bytes\n",
        );
        let events = events(said).unwrap();
        assert_eq!(events, [(1000, 7, 0), (1_500_000_000, 70, 60)]);
        assert_eq!(within(&events, 0, 1_000_000_000), (7, 0));
        assert_eq!(within(&events, 0, 2_000_000_000), (77, 60));
    }
}
