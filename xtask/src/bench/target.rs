//! What runs the work: doppel, QEMU with two CPU models, and the host itself.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guests::Mini;

use super::console::Console;
use super::rows::{Row, escape};

/// Something that can do the work of the rows.
#[derive(Clone, Debug)]
pub enum Target {
    /// The release build of doppel with the given engine.
    Doppel {
        /// The program.
        program: PathBuf,
        /// The name of the engine.
        engine: String,
    },
    /// QEMU's translator with the given CPU model.
    Qemu {
        /// The model.
        cpu: &'static str,
    },
    /// The host, in the same tree of files as the guests.
    Native {
        /// That tree.
        tree: PathBuf,
    },
}

impl Target {
    /// The heading of its column.
    pub fn name(&self) -> String {
        match self {
            Target::Doppel { engine, .. } => format!("doppel-{engine}"),
            Target::Qemu { cpu } => format!("qemu-{cpu}"),
            Target::Native { .. } => "native".to_owned(),
        }
    }

    /// Runs `rows` once, in order, and returns the console. Stops after `limit`.
    ///
    /// # Errors
    /// When the process cannot be started, or does not end in time.
    pub fn run(
        &self,
        mini: &Mini,
        memory_mib: u32,
        rows: &[Row],
        limit: Duration,
    ) -> Result<Console> {
        let parameters: Vec<String> = rows.iter().map(Row::parameters).collect();
        let parameters = parameters.join(" ");
        let mut command = match self {
            Target::Doppel { program, engine } => {
                let mut command = Command::new(program);
                command.args(["run", "--engine", engine, "--console", "stdio"]);
                command.args(["--memory", &format!("{memory_mib}M")]);
                boot(&mut command, "--", mini, &parameters);
                command
            }
            Target::Qemu { cpu } => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-M", "q35", "-accel", "tcg", "-cpu", cpu, "-smp", "1"]);
                command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
                command.args(["-m", &memory_mib.to_string()]);
                boot(&mut command, "-", mini, &parameters);
                command
            }
            Target::Native { tree } => native(tree, rows),
        };
        watch(&mut command, limit).with_context(|| self.name())
    }
}

/// Adds kernel, initramfs and command line; `dashes` is what long options begin with.
pub fn boot(command: &mut Command, dashes: &str, mini: &Mini, parameters: &str) {
    let line = if dashes == "-" { "-append" } else { "--cmdline" };
    command.arg(format!("{dashes}kernel")).arg(&mini.kernel.vmlinuz);
    command.arg(format!("{dashes}initrd")).arg(&mini.initramfs);
    command.arg(line).arg(format!("console=ttyS0 quiet {parameters} doppel.end=poweroff"));
}

/// What OpenSSL is not to use on the host, because no guest has it: of leaf 7 of CPUID, AVX-512 in
/// EBX, and in ECX more of it, GFNI, VAES and VPCLMULQDQ (OPENSSL_ia32cap(3)).
const OPENSSL_CAP: &str = ":~0x00005f42dc230000";

/// The same commands by the same shell functions, in the tree of the guest, on the host.
fn native(tree: &Path, rows: &[Row]) -> Command {
    let mut script = String::from("export PATH=/sbin:/bin\n. /lib/doppel-run-functions\n");
    for row in rows {
        for (name, command) in [("prepare", row.prepare), (row.name, row.command)] {
            if !command.is_empty() {
                script.push_str(&format!("run_parameter '{name}:{}'\n", escape(command)));
            }
        }
    }
    let mut command = Command::new("unshare");
    // No guest has the variables of whoever asked, by which programs may do something else.
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("OPENSSL_ia32cap", OPENSSL_CAP);
    command.args(["--map-root-user", "--root"]).arg(tree).args(["/bin/sh", "-c", &script]);
    command
}

/// Runs `command` to its end with both outputs on one console.
///
/// # Errors
/// When it cannot be started, fails, or does not end in time.
pub fn watch(command: &mut Command, limit: Duration) -> Result<Console> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let start = Instant::now();
    let mut child = command.spawn().context("cannot be started")?;
    // The command holds the writing end; without this the console would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (send, receive) = channel();
    let thread = thread::spawn(move || {
        let console = Console::read(reader, start, |_| Ok(()));
        // Nobody waits for the word after the limit: then the end does not matter.
        let _ = send.send(());
        console
    });
    let in_time = receive.recv_timeout(limit) != Err(RecvTimeoutError::Timeout);
    if !in_time {
        child.kill().context("cannot be stopped")?;
    }
    let mut console = thread.join().ok().context("the console's reader panicked")??;
    finish(child, in_time, &console, limit)?;
    console.end(start.elapsed());
    Ok(console)
}

fn finish(mut child: Child, in_time: bool, console: &Console, limit: Duration) -> Result<()> {
    let status = child.wait()?;
    if !in_time {
        bail!("not done after {} s; last on the console:\n{}", limit.as_secs(), console.tail());
    }
    if !status.success() {
        bail!("ended with {status}; last on the console:\n{}", console.tail());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_joins_both_outputs() {
        let mut command = Command::new("sh");
        let console = watch(command.args(["-c", "echo a; echo b >&2"]), Duration::from_secs(20));
        let console = console.unwrap();
        assert!(console.time_of("a").is_some() && console.time_of("b").is_some());
    }

    #[test]
    fn watch_stops_at_the_limit() {
        let mut command = Command::new("sh");
        let result =
            watch(command.args(["-c", "echo a; exec sleep 60"]), Duration::from_millis(300));
        assert!(result.unwrap_err().to_string().contains("not done"), "says why");
    }

    #[test]
    fn watch_failure_shows_the_console() {
        let mut command = Command::new("sh");
        let result = watch(command.args(["-c", "echo why; exit 3"]), Duration::from_secs(20));
        assert!(result.unwrap_err().to_string().contains("why"));
    }
}
