//! Reading a log, entry by entry.

use std::io::{self, Read};

use super::code::Coder;
use super::{Entry, FRAME_SIZE_MAX, HEADER_SIZE, LogError, MAGIC, VERSION};

/// Reads a log, entry by entry.
pub struct LogReader<R: Read> {
    from: R,
    at: u64,
    body: Vec<u8>,
    position: usize,
    coder: Coder,
    entries: u64,
    entry_size: usize,
}

impl<R: Read> LogReader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// [`LogError::Magic`], [`LogError::Version`], or the host's.
    pub fn new(mut from: R) -> Result<LogReader<R>, LogError> {
        let mut header = [0; HEADER_SIZE];
        if !read_whole(&mut from, &mut header)? || header[..8] != MAGIC {
            return Err(LogError::Magic);
        }
        let found = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if found != VERSION {
            return Err(LogError::Version { found });
        }
        Ok(LogReader {
            from,
            at: HEADER_SIZE as u64,
            body: Vec::new(),
            position: 0,
            coder: Coder::default(),
            entries: 0,
            entry_size: 0,
        })
    }

    /// The next entry; `None` at the end, which is after the last whole frame: what a crash left
    /// of a frame is not an error.
    ///
    /// # Errors
    /// [`LogError::Damaged`] for a whole frame that is not what was written.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LogError> {
        if self.position == self.body.len() && !self.next_frame()? {
            return Ok(None);
        }
        let mut rest = &self.body[self.position..];
        let before = rest.len();
        let entry = self.coder.decode(&mut rest);
        self.entry_size = before - rest.len();
        self.position += self.entry_size;
        self.entries += 1;
        match entry {
            Ok(entry) => Ok(Some(entry)),
            Err(what) => Err(self.damaged(what.to_owned())),
        }
    }

    /// Entries read so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes that the last entry takes in the log.
    pub fn entry_size(&self) -> usize {
        self.entry_size
    }

    fn damaged(&self, what: String) -> LogError {
        LogError::Damaged { at: self.at, what }
    }

    /// Reads the next frame; false at the end.
    fn next_frame(&mut self) -> Result<bool, LogError> {
        self.at += if self.body.is_empty() { 0 } else { self.body.len() as u64 + 8 };
        self.position = 0;
        self.body.clear();
        let mut head = [0; 8];
        if !read_whole(&mut self.from, &mut head)? {
            return Ok(false);
        }
        let size = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if size == 0 || size > FRAME_SIZE_MAX {
            return Err(self.damaged(format!("a frame of {size} bytes")));
        }
        let mut body = Vec::new();
        // What is there decides how much is taken, not what is promised.
        (&mut self.from).take(u64::from(size)).read_to_end(&mut body)?;
        if body.len() < size as usize {
            return Ok(false);
        }
        if crc32fast::hash(&body) != crc {
            return Err(self.damaged("the checksum of a frame is wrong".to_owned()));
        }
        self.body = body;
        Ok(true)
    }
}

/// Fills `into`; false if the input ends before.
fn read_whole(from: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
