//! Running other programs, with errors that say which command failed and what it printed.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Prints one line of progress, for people, on standard error.
pub fn say(line: &str) {
    eprintln!("xtask: {line}");
}

/// Runs `command` to its end without showing its output.
///
/// # Errors
/// When it cannot be started, or fails: the error ends with the last lines it printed.
pub fn run(command: &mut Command) -> Result<()> {
    capture(command).map(drop)
}

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// # Errors
/// As for [`run`]; also when the output is not UTF-8.
pub fn capture(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{name}`: is it installed?"))?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!("`{name} {}` failed ({})\n{}", words.join(" "), output.status, tail(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{name}`"))
}

/// The last lines of `bytes`, enough to see why a command failed.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_failing_command_shows_its_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn run_missing_program_names_it() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"), "{error}");
    }
}
