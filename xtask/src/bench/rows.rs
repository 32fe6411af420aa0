//! What is measured: one row for each kind of work, and how its time is read off the console.

use std::time::Duration;

use super::console::Console;

/// How a row's time is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// From the start of the process to the first line of init.
    Boot,
    /// From the begin mark to the end mark.
    Whole,
    /// `openssl speed`: the time of one operation, from when it says what it does to when it says
    /// how often it did.
    Operation,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, and that of its marks.
    pub name: &'static str,
    /// Run first, not measured; "" for nothing.
    pub prepare: &'static str,
    /// What is measured.
    pub command: &'static str,
    /// How.
    pub measure: Measure,
}

const fn row(name: &'static str, prepare: &'static str, command: &'static str) -> Row {
    Row { name, prepare, command, measure: Measure::Whole }
}

const fn speed(name: &'static str, command: &'static str) -> Row {
    Row { name, prepare: "", command, measure: Measure::Operation }
}

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    Row { name: "boot", prepare: "", command: "", measure: Measure::Boot },
    row("intloop", "", "intloop"),
    row("calls", "", "calls"),
    row("nbody", "", "nbody"),
    row("simd", "", "simd"),
    row("syscalls", "", "syscalls"),
    row("forks", "", "forks"),
    row("memtouch", "", "memtouch"),
    row("sha256", "gen 200 >/tmp/sha256.in", "sha256sum /tmp/sha256.in && rm /tmp/sha256.in"),
    row(
        "gzip",
        "gen 50 >/tmp/gzip.in",
        "gzip -6 -c /tmp/gzip.in >/tmp/gz && rm /tmp/gzip.in /tmp/gz",
    ),
    // Compiled modules are kept by nobody: where they were, the next round would have less to do.
    row("python", "", "python3 -B /bench/work.py"),
    row("sqlite", "", "sqlite3 </bench/work.sql"),
    speed("openssl-aes", "openssl speed -seconds 2 -bytes 8192 -evp AES-128-GCM"),
    speed("openssl-sha256", "openssl speed -seconds 2 -bytes 8192 -evp SHA256"),
    speed("openssl-chacha", "openssl speed -seconds 2 -bytes 8192 -evp ChaCha20-Poly1305"),
    speed("openssl-rsa", "openssl speed -seconds 2 rsa2048"),
];

impl Row {
    /// The kernel parameters that make a guest do this row.
    pub fn parameters(&self) -> String {
        let steps = [("prepare", self.prepare), (self.name, self.command)];
        let steps = steps.iter().filter(|(_, command)| !command.is_empty());
        let step =
            |(name, command): &(&str, &str)| format!("doppel.run={name}:{}", escape(command));
        steps.map(step).collect::<Vec<_>>().join(" ")
    }

    /// This row's time, or `None` when the run did not finish it without an error.
    pub fn time(&self, console: &Console) -> Option<Duration> {
        if self.measure == Measure::Boot {
            return console.time_of("DOPPEL-INIT");
        }
        let begin_mark = format!("DOPPEL-BEGIN {}", self.name);
        let begin = console.find(&begin_mark, 0)? + begin_mark.len();
        let end_mark = format!("DOPPEL-END {} 0", self.name);
        let end = console.find(&end_mark, begin)?;
        match self.measure {
            Measure::Operation => operation_time(console, begin, end),
            _ => Some(console.time(end) - console.time(begin)),
        }
    }
}

/// `command` as the guests' kernel parameters want it: one word, no quotes.
pub fn escape(command: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"/.-_=+".contains(&c);
    let one = |c: u8| if plain(c) { char::from(c).to_string() } else { format!("%{c:02x}") };
    command.bytes().map(one).collect()
}

/// From `Doing AES-128-GCM for 2s on 8192 size blocks: 12 AES-128-GCM's in 2.00s`.
fn operation_time(console: &Console, begin: usize, end: usize) -> Option<Duration> {
    let doing = console.find("Doing ", begin).filter(|at| *at < end)?;
    let colon = console.find(": ", doing).filter(|at| *at < end)?;
    let done = console.find(" in ", colon).filter(|at| *at < end)?;
    let count = console.text(colon + 2, done);
    let count: u32 = count.split_whitespace().next()?.parse().ok()?;
    (console.time(done) - console.time(colon)).checked_div(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::console::tests::console;

    #[test]
    fn parameters_are_words_without_quotes() {
        let row = row("x", "gen 1 >/tmp/a", "b && c");
        let text = "doppel.run=prepare:gen%201%20%3e/tmp/a doppel.run=x:b%20%26%26%20c";
        assert_eq!(row.parameters(), text);
    }

    #[test]
    fn time_whole_row_is_between_its_marks() {
        let console = console(&["DOPPEL-INIT\nDOPPEL-BEGIN x\r\n", "17\n", "DOPPEL-END x 0\n"]);
        assert_eq!(row("x", "", "x").time(&console), Some(Duration::from_secs(2)));
        assert_eq!(row("y", "", "y").time(&console), None);
        assert_eq!(ROWS[0].time(&console), Some(Duration::ZERO));
    }

    #[test]
    fn time_failed_row_is_none() {
        let console = console(&["DOPPEL-BEGIN x\n", "DOPPEL-END x 127\n"]);
        assert_eq!(row("x", "", "x").time(&console), None);
    }

    #[test]
    fn time_operation_divides_by_the_count() {
        let doing = "Doing AES-128-GCM for 2s on 8192 size blocks: ";
        let chunks = ["DOPPEL-BEGIN a\n", doing, "4 AES-128-GCM's in 2.00s\n", "DOPPEL-END a 0\n"];
        assert_eq!(speed("a", "a").time(&console(&chunks)), Some(Duration::from_millis(250)));
    }
}
