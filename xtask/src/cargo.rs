//! Running cargo and rustup for the verbs, with their output shown.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use guests::{run, say, workspace_root};

/// Runs `cargo` with `arguments` in the workspace and shows what it prints.
///
/// # Errors
/// When cargo cannot be started or fails.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    say(&format!("cargo {}", arguments.join(" ")));
    let status = command().args(arguments).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

/// Whether the cargo command `name` is there.
pub fn has(name: &str) -> bool {
    let mut command = command();
    command.args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Makes sure that the component `name` of the toolchain, with the command `command`, is there.
///
/// # Errors
/// When it is missing and rustup cannot add it.
pub fn require_component(name: &str, command: &str) -> Result<()> {
    if has(command) {
        return Ok(());
    }
    say(&format!("rustup component add {name}"));
    run(Command::new("rustup").args(["component", "add", name]))
        .with_context(|| format!("missing: rustup component add {name}"))
}

/// Builds the release `doppel` and returns where it is.
///
/// # Errors
/// When it does not compile.
pub fn doppel() -> Result<PathBuf> {
    guests::require(&["gcc", "libc6-dev"])?;
    cargo(&["build", "--release", "--package", "cli"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = workspace_root().join(target.unwrap_or_else(|| PathBuf::from("target")));
    Ok(target.join("release/doppel"))
}

/// `cargo`, to be run in the workspace.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}
