//! What was typed and printed at the consoles of a recording, as lines of text.

use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use vmm::{ConsoleBytes, EngineKind, Place, TraceLine, TraceSpec, TraceWhat};

use crate::fail::Fail;

/// Names of the consoles in the guest.
const NAMES: [&str; 3] = ["ttyS0", "ttyS1", "hvc0"];

/// A line that has no end yet.
struct Begun {
    /// Guest time of its first byte, ns.
    time_ns: u64,
    bytes: Vec<u8>,
}

/// Lines that have no end yet, by console and direction.
#[derive(Default)]
struct Lines(BTreeMap<(u32, bool), Begun>);

/// Prints the transcript of the recording in `dir`.
pub fn print(dir: &Path) -> Result<(), Fail> {
    let spec = TraceSpec {
        dir: dir.into(),
        from: Place::Event(0),
        to: Place::End,
        what: TraceWhat::Console,
        engine: EngineKind::default(),
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let (mut lines, mut failure) = (Lines::default(), None);
    vmm::trace(&spec, &mut |line| {
        failure = lines.add(line).iter().find_map(|text| writeln!(out, "{text}").err());
        failure.is_none()
    })?;
    let rest = lines.rest();
    let failure = failure.or_else(|| rest.iter().find_map(|text| writeln!(out, "{text}").err()));
    match failure.or_else(|| out.flush().err()) {
        None => Ok(()),
        Some(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Some(source) => Err(Fail::Host { action: "write to standard output", source }),
    }
}

impl Lines {
    /// Takes bytes in; the lines that are complete now.
    fn add(&mut self, line: &TraceLine) -> Vec<String> {
        let Some(ConsoleBytes { port, typed, bytes }) = &line.console else { return Vec::new() };
        let mut complete = Vec::new();
        for &byte in bytes {
            let begun = self.0.entry((*port, *typed));
            let begun = begun.or_insert(Begun { time_ns: line.time.0, bytes: Vec::new() });
            // What is typed ends its lines with a return, what is printed with both.
            if byte == b'\n' || *typed && byte == b'\r' {
                complete.extend(self.end((*port, *typed)));
            } else {
                begun.bytes.push(byte);
            }
        }
        complete
    }

    fn end(&mut self, (port, typed): (u32, bool)) -> Option<String> {
        let Begun { time_ns, bytes } = self.0.remove(&(port, typed))?;
        let name = NAMES.get(port as usize).copied().unwrap_or("?");
        let (seconds, mark) = (time_ns as f64 / 1e9, if typed { '>' } else { '<' });
        let text = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned();
        // Control characters are for terminals, and a transcript is none.
        let clean: String = text.chars().flat_map(shown).collect();
        Some(format!("{seconds:>13.6} {name} {mark} {clean}").trim_end().into())
    }

    fn rest(&mut self) -> Vec<String> {
        let keys: Vec<_> = self.0.keys().copied().collect();
        keys.into_iter().filter_map(|key| self.end(key)).collect()
    }
}

fn shown(c: char) -> Vec<char> {
    if c.is_control() && c != '\t' { c.escape_default().collect() } else { vec![c] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::VirtualTime;

    fn line(time_ns: u64, typed: bool, bytes: &[u8]) -> TraceLine {
        TraceLine {
            branches: 0,
            time: VirtualTime(time_ns),
            text: String::new(),
            console: Some(ConsoleBytes { port: 0, typed, bytes: bytes.into() }),
        }
    }

    #[test]
    fn lines_are_put_together_from_pieces_and_kept_apart_by_direction() {
        let mut lines = Lines::default();
        assert!(lines.add(&line(1_000_000, false, b"log")).is_empty());
        assert!(lines.add(&line(2_000_000, true, b"ro")).is_empty());
        assert_eq!(
            lines.add(&line(3_000_000, false, b"in:\r\n\x1b[6n")),
            ["     0.001000 ttyS0 < login:"]
        );
        assert_eq!(lines.add(&line(4_000_000, true, b"ot\r")), ["     0.002000 ttyS0 > root"]);
        assert_eq!(lines.rest(), ["     0.003000 ttyS0 < \\u{1b}[6n"]);
        assert!(lines.rest().is_empty());
    }
}
