//! What a guest wrote to its console, and when each byte of it arrived at the host.
//!
//! The guest's own clock is not trusted: every time here is the host's.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// The whole output of one run.
#[derive(Clone, Debug, Default)]
pub struct Console {
    bytes: Vec<u8>,
    /// Where each chunk read ends in `bytes`, and when it arrived.
    chunks: Vec<(usize, Duration)>,
    /// When the process was gone.
    ended: Duration,
}

/// More than any guest writes in a benchmark; what comes after is not kept.
const OUTPUT_MAX: usize = 64 << 20;

impl Console {
    /// Reads `source` to its end; times count from `start`. `also` sees every chunk.
    ///
    /// # Errors
    /// When reading fails, or `also` does.
    pub fn read(
        mut source: impl Read,
        start: Instant,
        mut also: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Console> {
        let mut console = Console::default();
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(console),
                Ok(len) => {
                    console.push(&buffer[..len], start.elapsed());
                    also(&buffer[..len])?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn push(&mut self, chunk: &[u8], at: Duration) {
        if self.bytes.len() + chunk.len() <= OUTPUT_MAX {
            self.bytes.extend_from_slice(chunk);
            self.chunks.push((self.bytes.len(), at));
        }
    }

    /// Notes that the process ended `at`.
    pub fn end(&mut self, at: Duration) {
        self.ended = at;
    }

    /// When the process was gone.
    pub fn ended(&self) -> Duration {
        self.ended
    }

    /// When the last byte of the first `mark` arrived.
    pub fn time_of(&self, mark: &str) -> Option<Duration> {
        self.find(mark, 0).map(|at| self.time(at + mark.len() - 1))
    }

    /// Where `mark` stands, at or after `from`.
    pub fn find(&self, mark: &str, from: usize) -> Option<usize> {
        let rest = self.bytes.get(from..)?;
        let found = rest.windows(mark.len()).position(|window| window == mark.as_bytes());
        found.map(|at| from + at)
    }

    /// When the byte at `offset` arrived.
    ///
    /// # Panics
    /// When there is no such byte.
    pub fn time(&self, offset: usize) -> Duration {
        let index = self.chunks.partition_point(|(end, _)| *end <= offset);
        self.chunks[index].1
    }

    /// The text from `from` up to `to`.
    pub fn text(&self, from: usize, to: usize) -> String {
        String::from_utf8_lossy(&self.bytes[from..to]).into_owned()
    }

    /// The last lines, to be shown when a run went wrong.
    pub fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

#[cfg(test)]
pub(in crate::bench) mod tests {
    use super::*;

    /// A console of the given chunks, one second apart.
    pub fn console(chunks: &[&str]) -> Console {
        let mut console = Console::default();
        for (at, chunk) in (0..).zip(chunks) {
            console.push(chunk.as_bytes(), Duration::from_secs(at));
        }
        console
    }

    #[test]
    fn time_of_mark_over_two_chunks_is_that_of_its_end() {
        let console = console(&["x", "DOPPEL-", "INIT\n", "y"]);
        assert_eq!(console.time_of("DOPPEL-INIT"), Some(Duration::from_secs(2)));
        assert_eq!(console.time_of("x"), Some(Duration::ZERO));
        assert_eq!(console.time_of("z"), None);
    }

    #[test]
    fn read_keeps_everything_and_shows_it() {
        let mut seen = Vec::new();
        let also = |bytes: &[u8]| {
            seen.extend_from_slice(bytes);
            Ok(())
        };
        let console = Console::read("hello".as_bytes(), Instant::now(), also).unwrap();
        assert_eq!(console.text(0, 5), "hello");
        assert_eq!(seen, b"hello");
    }
}
