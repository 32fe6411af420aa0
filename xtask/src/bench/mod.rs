//! `cargo xtask bench`: doppel beside its peers, in one run, alternately, by the host's clock.

pub mod console;
mod host_holes;
mod replay;
mod report;
mod rows;
mod serving;
mod stun;
mod target;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use guests::{Apt, Cache, Kernel, Mini, capture, say};

use crate::cargo::doppel;
use report::{Line, Report};
use rows::{ROWS, Row};
use target::Target;

/// Measures doppel beside QEMU and the host.
#[derive(Args, Debug)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How fast guests run: boot, integers, floating point, system calls, interpreters, crypto.
    Guest(Guest),
    /// How long guests stand still when they are kept.
    Stun(stun::Stun),
    /// What recording costs, and how fast recordings are replayed.
    Replay(replay::Replay),
}

/// The rows of guest performance.
#[derive(Args, Debug)]
struct Guest {
    /// The engine of doppel.
    #[arg(long, default_value = "translate")]
    engine: String,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How often everything is run.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Memory of the guests in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// The longest that one target may take for one round, in seconds.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// Compare QEMU's qemu64 with the others instead: doppel is left out.
    #[arg(long)]
    peers_only: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Bench {
    /// Runs the verb.
    ///
    /// # Errors
    /// When something cannot be built, or not one round of a target works.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Guest(guest) => guest.run(),
            What::Replay(replay) => replay.run(),
            What::Stun(stun) => {
                require_qemu(&Cache::open()?)?;
                stun.run()
            }
        }
    }
}

impl Guest {
    fn run(&self) -> Result<()> {
        let rows = self.chosen()?;
        let cache = Cache::open()?;
        let (mini, targets) = self.set_up(&cache, &rows)?;
        let mut lines: Vec<Line> = rows
            .iter()
            .map(|row| Line { name: row.name.to_owned(), times: vec![Vec::new(); targets.len()] })
            .collect();
        for round in 1..=self.rounds {
            for (index, target) in targets.iter().enumerate() {
                say(&format!("round {round} of {}: {}", self.rounds, target.name()));
                let limit = Duration::from_secs(self.limit);
                let console = target.run(&mini, self.memory, &rows, limit)?;
                for (row, line) in rows.iter().zip(&mut lines) {
                    line.times[index].push(row.time(&console).map(|time| time.as_secs_f64()));
                }
            }
        }
        let report = Report {
            setting: self.setting(&mini)?,
            targets: targets.iter().map(Target::name).collect(),
            lines,
        };
        if self.json {
            println!("{:#}", report.json());
        } else {
            print!("{}", report.table());
        }
        Ok(())
    }

    fn chosen(&self) -> Result<Vec<Row>> {
        if self.rows.is_empty() {
            return Ok(ROWS.to_vec());
        }
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        let find = |name: &String| {
            let found = ROWS.iter().find(|row| row.name == name).copied();
            found.with_context(|| format!("no row {name}; there are {}", names.join(", ")))
        };
        self.rows.iter().map(find).collect()
    }

    fn set_up(&self, cache: &Cache, rows: &[Row]) -> Result<(Mini, Vec<Target>)> {
        let (mini, tree) = {
            let _lock = cache.lock()?;
            require_qemu(cache)?;
            let full = guests::mini_full(cache, Kernel::V6_1, false)?;
            let tree = guests::native_tree(cache, &full)?;
            // A boot alone is measured with the small image, which is what people boot.
            let small = rows.iter().all(|row| row.name == "boot");
            (if small { guests::mini(cache, Kernel::V6_1, false)? } else { full }, tree)
        };
        let mut targets = Vec::new();
        if !self.peers_only {
            targets.push(Target::Doppel { program: doppel()?, engine: self.engine.clone() });
        }
        targets.extend(["qemu64", "max"].map(|cpu| Target::Qemu { cpu }));
        targets.push(Target::Native { tree });
        Ok((mini, targets))
    }

    fn setting(&self, mini: &Mini) -> Result<Vec<(&'static str, String)>> {
        let qemu = capture(Command::new("qemu-system-x86_64").arg("--version"))?;
        let image = mini.initramfs.file_name().unwrap_or_default();
        Ok(vec![
            ("kernel", mini.kernel.version.clone()),
            ("initramfs", image.to_string_lossy().into_owned()),
            ("memory", format!("{} MiB", self.memory)),
            ("rounds", self.rounds.to_string()),
            ("qemu", qemu.lines().next().unwrap_or("").to_owned()),
        ])
    }
}

/// QEMU, from backports when it has to be installed: the newest that Debian 12 can have.
fn require_qemu(cache: &Cache) -> Result<()> {
    let version = capture(Command::new("qemu-system-x86_64").arg("--version"));
    if version.is_ok() {
        return Ok(());
    }
    if !guests::is_root() {
        bail!("missing: sudo apt-get install --no-install-recommends qemu-system-x86");
    }
    Apt::open(cache)?.install_from_backports("qemu-system-x86")
}
