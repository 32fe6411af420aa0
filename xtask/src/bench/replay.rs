//! Recording and replaying: what they cost beside the same run without, and beside QEMU's.
//!
//! One guest does all the work in one run; its rows are read off the console by the host's clock.
//! Each round runs everything once; which of plain and recorded comes first changes by turns.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use guests::{Cache, Kernel, Mini, capture, say};
use serde_json::json;

use super::report::{Line, Report, summary};
use super::rows::{ROWS, Row};
use super::serving;
use super::target::{boot, watch};
use crate::cargo::doppel;

/// The rows that one run does, in its order.
const WORK: [&str; 5] = ["boot", "intloop", "calls", "syscalls", "forks"];
/// What comes after them.
const END: &str = "power-off";
/// From the start of the process to its end.
const WHOLE: &str = "whole";

/// Doppel plain, recorded and replayed, beside QEMU with its `rr`.
#[derive(Args, Debug)]
pub struct Replay {
    /// How often everything is run.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Memory of the guests in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u32,
    /// How QEMU counts instructions, one column each: see `-icount` in its manual.
    #[arg(long, value_delimiter = ';', default_values_t = ["shift=auto".to_owned()])]
    qemu: Vec<String>,
    /// Leave out QEMU.
    #[arg(long)]
    alone: bool,
    /// Measure Debian with nginx under load from the host instead, and the size of idle logs.
    #[arg(long)]
    serving: bool,
    /// The longest that one run may take, in seconds.
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

/// Who runs the guest: doppel, or QEMU with a way of counting instructions.
#[derive(Clone, Debug)]
enum Peer {
    Doppel,
    Qemu(Vec<String>),
}

/// How a guest is run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Plain,
    /// Recording; QEMU by this way of counting.
    Record(String),
    /// From what the last run of the same way recorded.
    Replay(String),
}

/// One column.
struct Column {
    mode: Mode,
    /// By row, then round.
    times: Vec<Vec<Option<f64>>>,
    /// Bytes of log by round, if it makes one.
    logs: Vec<u64>,
}

impl Replay {
    /// Runs the benchmark.
    ///
    /// # Errors
    /// When something cannot be built, or a run fails.
    pub fn run(&self) -> Result<()> {
        let cache = Cache::open()?;
        if self.serving {
            return serving::run(&cache, self.rounds, Duration::from_secs(self.limit));
        }
        let mini = {
            let _lock = cache.lock()?;
            if !self.alone {
                super::require_qemu(&cache)?;
            }
            guests::mini(&cache, Kernel::V6_1, false)?
        };
        let mut tables = Vec::new();
        let folder = Folder::new()?;
        let mut peers = vec![Peer::Doppel];
        if !self.alone {
            peers.push(Peer::Qemu(self.qemu.clone()));
        }
        let mut columns: Vec<Vec<Column>> = peers.iter().map(Peer::columns).collect();
        for round in 0..self.rounds {
            for (peer, columns) in peers.iter().zip(&mut columns) {
                self.round(peer, round, &folder, &mini, columns)?;
            }
        }
        for (peer, columns) in peers.iter().zip(columns) {
            tables.push(self.report(peer, &mini, columns)?);
        }
        for (report, logs) in &tables {
            if self.json {
                println!("{:#}", json!({ "table": report.json(), "logs": logs }));
            } else {
                println!("{}{logs}", report.table());
            }
        }
        Ok(())
    }

    fn round(
        &self,
        peer: &Peer,
        round: usize,
        folder: &Folder,
        mini: &Mini,
        columns: &mut [Column],
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..columns.len()).collect();
        if round % 2 == 1 {
            order.swap(0, 1);
        }
        for index in order {
            let column = &mut columns[index];
            let name = column.mode.name(peer);
            say(&format!("round {} of {}: {name}", round + 1, self.rounds));
            let mut command = peer.command(&column.mode, folder, mini, self.memory)?;
            let limit = Duration::from_secs(self.limit);
            let console = watch(&mut command, limit).with_context(|| name.clone())?;
            for (row, times) in rows().iter().zip(&mut column.times) {
                times.push(row.time(&console).map(|time| time.as_secs_f64()));
            }
            let [.., end, whole] = &mut column.times[..] else { continue };
            let last = console.time_of(&format!("DOPPEL-END {} 0", WORK[WORK.len() - 1]));
            end.push(last.map(|last| (console.ended() - last).as_secs_f64()));
            whole.push(Some(console.ended().as_secs_f64()));
            if let Mode::Record(way) = &column.mode {
                column.logs.push(folder.log(peer, way).metadata()?.len());
            }
        }
        Ok(())
    }

    fn report(&self, peer: &Peer, mini: &Mini, columns: Vec<Column>) -> Result<(Report, String)> {
        let names = WORK.into_iter().chain([END, WHOLE]);
        let line = |(row, name): (usize, &str)| Line {
            name: name.to_owned(),
            times: columns.iter().map(|column| column.times[row].clone()).collect(),
        };
        let lines = names.enumerate().map(line).collect();
        let mut logs = String::new();
        for column in &columns {
            let Some(bytes) = summary(column.logs.iter().map(|bytes| *bytes as f64)) else {
                continue;
            };
            let whole = summary(column.times[WORK.len() + 1].iter().flatten().copied());
            let minutes = whole.map_or(f64::NAN, |whole| whole.median() / 60.0);
            let (name, bytes) = (column.mode.name(peer), bytes.median());
            let rate = bytes / 1e3 / minutes;
            logs.push_str(&format!("{name}: log of {bytes:.0} bytes, {rate:.1} KB a minute\n"));
        }
        let mut setting = vec![
            ("kernel", mini.kernel.version.clone()),
            ("memory", format!("{} MiB", self.memory)),
            ("rounds", self.rounds.to_string()),
        ];
        if let Peer::Qemu(_) = peer {
            let qemu = capture(Command::new("qemu-system-x86_64").arg("--version"))?;
            setting.push(("qemu", qemu.lines().next().unwrap_or("").to_owned()));
        }
        let targets = columns.iter().map(|column| column.mode.name(peer)).collect();
        Ok((Report { setting, targets, lines }, logs))
    }
}

/// The rows of [`WORK`].
fn rows() -> Vec<Row> {
    let find = |name: &&str| ROWS.iter().find(|row| row.name == *name).copied();
    WORK.iter().filter_map(find).collect()
}

impl Mode {
    fn name(&self, peer: &Peer) -> String {
        let who = if let Peer::Doppel = peer { "doppel" } else { "qemu" };
        match self {
            Mode::Plain => who.to_owned(),
            Mode::Record(way) => format!("{who} rec {way}").trim_end().to_owned(),
            Mode::Replay(way) => format!("{who} replay {way}").trim_end().to_owned(),
        }
    }
}

impl Peer {
    fn columns(&self) -> Vec<Column> {
        let ways = match self {
            Peer::Doppel => vec![String::new()],
            Peer::Qemu(ways) => ways.clone(),
        };
        let both = |way: String| [Mode::Record(way.clone()), Mode::Replay(way)];
        let modes = [Mode::Plain].into_iter().chain(ways.into_iter().flat_map(both));
        let times = vec![Vec::new(); WORK.len() + 2];
        modes.map(|mode| Column { mode, times: times.clone(), logs: Vec::new() }).collect()
    }

    fn command(&self, mode: &Mode, folder: &Folder, mini: &Mini, memory: u32) -> Result<Command> {
        let parameters: Vec<String> = rows().iter().map(Row::parameters).collect();
        let parameters = parameters.join(" ");
        match self {
            Peer::Doppel => {
                let mut command = Command::new(folder.doppel());
                let recording = folder.0.join("recording");
                if let Mode::Replay(_) = mode {
                    command.arg("replay").arg(recording);
                    return Ok(command);
                }
                command.args(["run", "--console", "stdio", "--memory", &format!("{memory}M")]);
                if let Mode::Record(_) = mode {
                    let _ = std::fs::remove_dir_all(&recording);
                    command.arg("--record").arg(recording);
                }
                boot(&mut command, "--", mini, &parameters);
                Ok(command)
            }
            Peer::Qemu(_) => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1"]);
                command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
                command.args(["-m", &memory.to_string()]);
                let counting = |way: &String, what: &str| {
                    let log = folder.log(self, way);
                    format!("{way},rr={what},rrfile={}", log.display())
                };
                match mode {
                    Mode::Plain => {}
                    Mode::Record(way) => {
                        let _ = std::fs::remove_file(folder.log(self, way));
                        command.arg("-icount").arg(counting(way, "record"));
                    }
                    Mode::Replay(way) => {
                        command.arg("-icount").arg(counting(way, "replay"));
                    }
                }
                boot(&mut command, "-", mini, &parameters);
                Ok(command)
            }
        }
    }
}

/// A folder for recordings, removed in the end, and a copy of doppel: others may build meanwhile.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("doppel-replay-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).context("a folder for recordings")?;
        let folder = Folder(path);
        std::fs::copy(doppel()?, folder.doppel()).context("copying doppel")?;
        Ok(folder)
    }

    fn doppel(&self) -> PathBuf {
        self.0.join("doppel")
    }

    fn log(&self, peer: &Peer, way: &str) -> PathBuf {
        let name = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        match peer {
            Peer::Doppel => self.0.join(Path::new("recording/events.log")),
            Peer::Qemu(_) => {
                self.0.join(format!("qemu-{}", way.chars().map(name).collect::<String>()))
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
