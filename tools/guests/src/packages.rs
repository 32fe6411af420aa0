//! Debian packages that the recipes need on the host: installed when root, or else named.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{capture, run, say};

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    capture(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Makes sure that the Debian packages `names` are installed.
///
/// # Errors
/// When some are missing and this is not root (the message is the command to type), or when
/// apt-get fails.
pub fn require(names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() {
        bail!("packages are missing: sudo apt-get install --no-install-recommends {list}");
    }
    say(&format!("installing {list}"));
    if install(&missing).is_err() {
        run(Command::new("apt-get").arg("update")).context("apt-get update")?;
        install(&missing).with_context(|| format!("installing {list}"))?;
    }
    Ok(())
}

fn install(names: &[&str]) -> Result<()> {
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "--no-install-recommends"])
        .args(names))
}

fn is_installed(name: &str) -> bool {
    let query = ["-W", "-f", "${db:Status-Status}", name];
    capture(Command::new("dpkg-query").args(query)).is_ok_and(|status| status == "installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_nothing_is_ok() {
        require(&[]).unwrap();
    }

    #[test]
    fn is_installed_essential_package_and_no_package() {
        assert!(is_installed("dpkg"));
        assert!(!is_installed("no-such-package-here"));
    }
}
