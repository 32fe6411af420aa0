//! Writing a log.

use std::io::Write;

use super::code::Coder;
use super::{Entry, FRAME_SIZE, HEADER_SIZE, LogError, MAGIC, VERSION};

/// Writes a log.
pub struct LogWriter<W: Write> {
    to: W,
    body: Vec<u8>,
    coder: Coder,
    written: u64,
    entries: u64,
}

impl<W: Write> LogWriter<W> {
    /// Begins a log.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn new(mut to: W) -> Result<LogWriter<W>, LogError> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        let (body, coder) = (Vec::new(), Coder::default());
        Ok(LogWriter { to, body, coder, written: HEADER_SIZE as u64, entries: 0 })
    }

    /// Adds an entry; a frame is written now and then.
    ///
    /// # Errors
    /// When a frame cannot be written.
    pub fn append(&mut self, entry: &Entry) -> Result<(), LogError> {
        self.coder.encode(entry, &mut self.body);
        self.entries += 1;
        if self.body.len() >= FRAME_SIZE { self.flush() } else { Ok(()) }
    }

    /// Writes what was gathered as a frame, in one write.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<(), LogError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let mut frame = Vec::with_capacity(self.body.len() + 8);
        frame.extend((self.body.len() as u32).to_le_bytes());
        frame.extend(crc32fast::hash(&self.body).to_le_bytes());
        frame.append(&mut self.body);
        self.to.write_all(&frame)?;
        self.to.flush()?;
        self.written += frame.len() as u64;
        Ok(())
    }

    /// Bytes in the log so far, those not yet in a frame included.
    pub fn size(&self) -> u64 {
        self.written + self.body.len() as u64
    }

    /// Entries so far: the number the next one will have.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}
