//! What passed and what failed, over all steps of a run.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How lines of tests begin that were left out for want of a privilege.
const LEFT_OUT: &str = "LEFT OUT: ";

/// A run of all steps.
#[derive(Debug)]
pub struct Tally {
    start: Instant,
    passed: u64,
    failed: u64,
    steps: Vec<(String, Duration, Counts)>,
    left_out: Vec<String>,
}

/// Tests of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Nothing has run.
    pub fn new() -> Tally {
        let (steps, left_out) = (Vec::new(), Vec::new());
        Tally { start: Instant::now(), passed: 0, failed: 0, steps, left_out }
    }

    /// Runs a step that passes or fails as a whole.
    pub fn check(&mut self, title: &str, check: impl FnOnce() -> Result<()>) -> bool {
        let start = self.begin(title);
        let result = check();
        if let Err(error) = &result {
            println!("error: {error:#}");
        }
        let passed = u64::from(result.is_ok());
        self.end(title, start, Counts { passed, failed: 1 - passed });
        result.is_ok()
    }

    /// Runs a command whose output tells how many tests passed; shows it as it comes.
    ///
    /// # Errors
    /// When it cannot be started or read.
    pub fn tests(&mut self, title: &str, command: &mut Command) -> Result<()> {
        let start = self.begin(title);
        let (mut counts, status) = self.run(command)?;
        // What does not even compile is a failure too.
        if !status.success() && counts.failed == 0 {
            counts.failed = 1;
        }
        self.end(title, start, counts);
        Ok(())
    }

    /// Says that tests cannot run here: they fail, or are left out if that is accepted.
    pub fn leave_out(&mut self, what: &str, reason: &str) {
        let accepted = std::env::var("DOPPEL_UNPRIVILEGED").is_ok_and(|value| value == "1");
        if accepted {
            self.left_out.push(format!("{LEFT_OUT}{what}: {reason}"));
        } else {
            println!("{what} will fail: {reason}; DOPPEL_UNPRIVILEGED=1 leaves them out");
        }
    }

    fn run(&mut self, command: &mut Command) -> Result<(Counts, ExitStatus)> {
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        let other = writer.try_clone().context("cannot make a pipe")?;
        command.stdin(Stdio::null()).stdout(writer).stderr(other);
        let mut child = command.spawn().context("cannot start cargo")?;
        // Ours are open in it until it is told to use others.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut counts = Counts::default();
        let mut lines = BufReader::new(reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).context("reading the tests' output")? > 0 {
            io::stdout().write_all(&line)?;
            let text = String::from_utf8_lossy(&line);
            counts.add(counts_of(&text));
            if let Some(at) = text.find(LEFT_OUT) {
                self.left_out.push(text[at..].trim_end().to_owned());
            }
            line.clear();
        }
        Ok((counts, child.wait().context("waiting for cargo")?))
    }

    fn begin(&self, title: &str) -> Instant {
        println!("\n=== {title} (at {:.0} s) ===", self.start.elapsed().as_secs_f64());
        let _ = io::stdout().flush();
        Instant::now()
    }

    fn end(&mut self, title: &str, start: Instant, counts: Counts) {
        let time = start.elapsed();
        let Counts { passed, failed } = counts;
        println!("=== {title}: {passed} passed, {failed} failed, {:.0} s ===", time.as_secs_f64());
        self.passed += passed;
        self.failed += failed;
        self.steps.push((title.to_owned(), time, counts));
    }

    /// Prints all steps and, as the last line, the sums; true if nothing failed.
    pub fn finish(&self) -> bool {
        println!();
        for (title, time, Counts { passed, failed }) in &self.steps {
            println!("{:7.0} s  {title}: {passed} passed, {failed} failed", time.as_secs_f64());
        }
        println!("{:7.0} s  in all", self.start.elapsed().as_secs_f64());
        for line in &self.left_out {
            println!("{line}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// What a line sums up, if it is such a line of `cargo test` or of nextest.
fn counts_of(line: &str) -> Counts {
    let line = line.trim();
    if !line.starts_with("test result: ") && !line.starts_with("Summary [") {
        return Counts::default();
    }
    let words: Vec<&str> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let before = |name: &str| {
        let pairs = words.windows(2).filter(|pair| pair[1] == name);
        pairs.filter_map(|pair| pair[0].parse::<u64>().ok()).sum()
    };
    let failed: u64 = ["failed", "timed-out", "exec"].map(before).iter().sum();
    Counts { passed: before("passed"), failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_both_runners() {
        for (line, passed, failed) in [
            ("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out", 3, 0),
            ("test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured", 3, 2),
            ("     Summary [   1.207s] 9 tests run: 7 passed (1 slow), 2 failed, 1 skipped", 7, 2),
            ("     Summary [   1.207s] 9 tests run: 9 passed, 1 skipped\n", 9, 0),
            ("3 passed, 4 failed", 0, 0),
            ("test a ... ok", 0, 0),
        ] {
            assert_eq!(counts_of(line), Counts { passed, failed }, "{line}");
        }
    }

    #[test]
    fn failing_checks_and_silent_failures_count() {
        let mut tally = Tally::new();
        assert!(tally.check("good", || Ok(())));
        assert!(!tally.check("bad", || anyhow::bail!("no")));
        tally.tests("silent", &mut Command::new("false")).unwrap();
        let script = "echo 'test result: ok. 2 passed; 0 failed'; echo 'LEFT OUT: x: y' >&2";
        tally.tests("two", Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!((tally.passed, tally.failed), (3, 2));
        assert_eq!(tally.left_out, ["LEFT OUT: x: y"]);
        assert!(!tally.finish());
    }
}
