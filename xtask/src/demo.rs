//! `cargo xtask demo`: from a fresh clone to a running guest, in one command.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use guests::{Cache, Kernel, Mini, say};

use crate::bench::console::Console;
use crate::cargo::doppel;

/// Builds doppel and the mini guest, and runs it.
#[derive(Args, Debug)]
pub struct Demo {
    /// Memory of the guest.
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Run to power-off without asking, even on a terminal.
    #[arg(long)]
    batch: bool,
}

/// What the guest does when nobody is there to type.
const BATCH: &str = "doppel.run=uname%20-a doppel.run=hello:echo%20Hello%20from%20inside%20the%20\
    machine doppel.run=free%20-m doppel.end=poweroff";

impl Demo {
    /// Runs the verb.
    ///
    /// # Errors
    /// When something cannot be built, or the guest does not end by powering off.
    pub fn run(&self) -> Result<()> {
        let cache = Cache::open()?;
        let mini = {
            let _lock = cache.lock()?;
            guests::mini(&cache, Kernel::V6_1, false)?
        };
        let doppel = doppel()?;
        let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
        if is_interactive && !self.batch {
            self.talk(&doppel, &mini)
        } else {
            self.watch(&doppel, &mini)
        }
    }

    fn command(&self, doppel: &Path, mini: &Mini, what: &str) -> Command {
        let mut command = Command::new(doppel);
        command.arg("run").arg("--kernel").arg(&mini.kernel.vmlinuz);
        command.arg("--initrd").arg(&mini.initramfs);
        command.arg("--cmdline").arg(format!("console=ttyS0 quiet {what}"));
        command.args(["--memory", &self.memory]);
        command
    }

    fn talk(&self, doppel: &Path, mini: &Mini) -> Result<()> {
        say("starting the guest: `poweroff` ends it, Ctrl-A X quits");
        let mut command = self.command(doppel, mini, "doppel.end=shell");
        let status = command.status().context("cannot start doppel")?;
        if !status.success() {
            bail!("doppel ended with {status}");
        }
        Ok(())
    }

    fn watch(&self, doppel: &Path, mini: &Mini) -> Result<()> {
        say("no terminal: running the guest to power-off");
        let start = Instant::now();
        let mut child = self
            .command(doppel, mini, BATCH)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start doppel")?;
        let output = child.stdout.take().context("console of the guest")?;
        let console = Console::read(output, start, |bytes| {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        });
        let status = child.wait()?;
        let console = console?;
        println!();
        let Some(init) = console.time_of("DOPPEL-INIT") else {
            bail!("the guest never came to its init; doppel ended with {status}");
        };
        if !status.success() {
            bail!("doppel ended with {status}");
        }
        println!("first line of init after {:.1} s", init.as_secs_f64());
        println!("powered off after {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}
