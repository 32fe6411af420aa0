//! The event log's wire format: append-only, framed, checksummed, readable to the last whole frame
//! (mechanisms L1, L5). See docs/formats/event-log.md.
//!
//! ```text
//! magic "DOPPELEV"  version u32  | frame | frame | ...
//! frame: size u32  crc32 u32  body   body: entries, CBOR, points delta-coded from the last entry
//! ```

use std::io::{self, Read, Write};

use minicbor::decode::Error as DecodeError;
use minicbor::{Decode, Decoder, Encode, Encoder};
use types::ExecutionPoint;

use crate::Input;

const MAGIC: [u8; 8] = *b"DOPPELEV";
/// Version this release writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// Largest body of a frame, bytes: one input of the largest size fits.
const FRAME_SIZE_MAX: u32 = 4 << 20;
/// Bytes of entries gathered before a frame is written.
const FRAME_SIZE: usize = 32 << 10;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An input entered.
    Input {
        /// Where.
        point: ExecutionPoint,
        /// What.
        input: Input,
    },
    /// Hashes of RAM and every section, in their order, as the machine was.
    Hashes {
        /// Where.
        point: ExecutionPoint,
        /// Low 64 bits of each hash.
        hashes: Vec<u64>,
    },
    /// The recording ended here in good order.
    End {
        /// Where.
        point: ExecutionPoint,
    },
}

impl Entry {
    /// Where it belongs.
    pub fn point(&self) -> ExecutionPoint {
        match self {
            Entry::Input { point, .. } | Entry::Hashes { point, .. } | Entry::End { point } => {
                *point
            }
        }
    }
}

/// Why a log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file does not begin as a log does.
    #[error("not an event log: it does not begin with DOPPELEV")]
    Magic,
    /// Written by a newer release.
    #[error("the event log has version {found}; this release reads up to {VERSION}")]
    Version {
        /// Version in the file.
        found: u32,
    },
    /// A frame is not what was written.
    #[error("the event log is damaged at byte {at}: {what}")]
    Damaged {
        /// Offset of the frame.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// The host failed.
    #[error("the event log cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// Writes a log.
pub struct LogWriter<W: Write> {
    to: W,
    body: Vec<u8>,
    last: ExecutionPoint,
    written: u64,
}

impl<W: Write> LogWriter<W> {
    /// Begins a log.
    ///
    /// # Errors
    /// When the header cannot be written.
    pub fn new(mut to: W) -> Result<LogWriter<W>, LogError> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        let written = (MAGIC.len() + 4) as u64;
        Ok(LogWriter { to, body: Vec::new(), last: ExecutionPoint::default(), written })
    }

    /// Adds an entry; a frame is written now and then.
    ///
    /// # Errors
    /// When a frame cannot be written.
    pub fn append(&mut self, entry: &Entry) -> Result<(), LogError> {
        encode(entry, self.last, &mut self.body);
        self.last = entry.point();
        if self.body.len() >= FRAME_SIZE { self.flush() } else { Ok(()) }
    }

    /// Writes what was gathered as a frame.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<(), LogError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let size = self.body.len() as u32;
        self.to.write_all(&size.to_le_bytes())?;
        self.to.write_all(&crc32fast::hash(&self.body).to_le_bytes())?;
        self.to.write_all(&self.body)?;
        self.to.flush()?;
        self.written += u64::from(size) + 8;
        self.body.clear();
        Ok(())
    }

    /// Bytes in the log so far, those not yet in a frame included.
    pub fn size(&self) -> u64 {
        self.written + self.body.len() as u64
    }
}

fn encode(entry: &Entry, last: ExecutionPoint, body: &mut Vec<u8>) {
    const INFALLIBLE: &str = "encoding into memory cannot fail";
    let point = entry.point();
    let mut encoder = Encoder::new(body);
    let kind = match entry {
        Entry::Input { .. } => 0,
        Entry::Hashes { .. } => 1,
        Entry::End { .. } => 2,
    };
    // A point goes forward only, so that the difference is small and never negative.
    let branches = point.branches.saturating_sub(last.branches);
    encoder.u8(kind).expect(INFALLIBLE);
    encoder.u64(branches).expect(INFALLIBLE);
    encoder.u64(point.rip).expect(INFALLIBLE).u64(point.iterations).expect(INFALLIBLE);
    match entry {
        Entry::Input { input, .. } => input.encode(&mut encoder, &mut ()).expect(INFALLIBLE),
        Entry::Hashes { hashes, .. } => hashes.encode(&mut encoder, &mut ()).expect(INFALLIBLE),
        Entry::End { .. } => {}
    }
}

fn decode(decoder: &mut Decoder<'_>, last: ExecutionPoint) -> Result<Entry, DecodeError> {
    let kind = decoder.u8()?;
    let branches = last.branches.checked_add(decoder.u64()?);
    let branches = branches.ok_or_else(|| DecodeError::message("branches beyond 2^64"))?;
    let (rip, iterations) = (decoder.u64()?, decoder.u64()?);
    let point = ExecutionPoint { vcpu: 0, branches, rip, iterations };
    match kind {
        0 => Ok(Entry::Input { point, input: Input::decode(decoder, &mut ())? }),
        1 => Ok(Entry::Hashes { point, hashes: Vec::decode(decoder, &mut ())? }),
        2 => Ok(Entry::End { point }),
        other => Err(DecodeError::message(format!("entry of unknown kind {other}"))),
    }
}

/// Reads a log, entry by entry.
pub struct LogReader<R: Read> {
    from: R,
    at: u64,
    body: Vec<u8>,
    position: usize,
    last: ExecutionPoint,
}

impl<R: Read> LogReader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// [`LogError::Magic`], [`LogError::Version`], or the host's.
    pub fn new(mut from: R) -> Result<LogReader<R>, LogError> {
        let mut header = [0; 12];
        from.read_exact(&mut header).map_err(|_| LogError::Magic)?;
        if header[..8] != MAGIC {
            return Err(LogError::Magic);
        }
        let found = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if found == 0 || found > VERSION {
            return Err(LogError::Version { found });
        }
        let last = ExecutionPoint::default();
        Ok(LogReader { from, at: 12, body: Vec::new(), position: 0, last })
    }

    /// The next entry; `None` at the end, which is after the last whole frame: what a crash left
    /// of a frame is not an error.
    ///
    /// # Errors
    /// [`LogError::Damaged`] for a whole frame that is not what was written.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LogError> {
        while self.position == self.body.len() {
            if !self.next_frame()? {
                return Ok(None);
            }
        }
        let mut decoder = Decoder::new(&self.body[self.position..]);
        let entry = decode(&mut decoder, self.last).map_err(|e| self.damaged(e.to_string()))?;
        self.position += decoder.position();
        self.last = entry.point();
        Ok(Some(entry))
    }

    fn damaged(&self, what: String) -> LogError {
        LogError::Damaged { at: self.at, what }
    }

    /// Reads the next frame; false at the end.
    fn next_frame(&mut self) -> Result<bool, LogError> {
        let mut head = [0; 8];
        if !read_whole(&mut self.from, &mut head)? {
            return Ok(false);
        }
        let size = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if size > FRAME_SIZE_MAX {
            return Err(self.damaged(format!("a frame of {size} bytes")));
        }
        self.body.resize(size as usize, 0);
        self.position = 0;
        if !read_whole(&mut self.from, &mut self.body)? {
            self.body.clear();
            return Ok(false);
        }
        if crc32fast::hash(&self.body) != crc {
            return Err(self.damaged("the checksum of a frame is wrong".to_owned()));
        }
        self.at += u64::from(size) + 8;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn point(branches: u64, rip: u64) -> ExecutionPoint {
        ExecutionPoint { vcpu: 0, branches, rip, iterations: branches & 1 }
    }

    fn entries() -> Vec<Entry> {
        let mut entries: Vec<Entry> = (0..3000u64)
            .map(|n| Entry::Input {
                point: point(n * 1000, 0xffff_ffff_8100_0000 + n),
                input: Input::ClockAnchor { vtime_ns: n * 1_000_000, rate_millins: 20_000 },
            })
            .collect();
        let frame = Input::NetReceive { nic: 1, frame: vec![7; 9000] };
        entries.push(Entry::Input { point: point(3_000_000, 1), input: frame });
        entries.push(Entry::Hashes { point: point(3_000_000, 1), hashes: vec![1, u64::MAX] });
        entries.push(Entry::End { point: point(3_000_001, 2) });
        entries
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = LogWriter::new(&mut bytes).unwrap();
        for entry in entries {
            writer.append(entry).unwrap();
        }
        writer.flush().unwrap();
        assert_eq!(writer.size(), bytes.len() as u64);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, LogError> {
        let mut reader = LogReader::new(bytes)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn log_reads_back_what_was_written() {
        assert_eq!(read(&written(&entries())).unwrap(), entries());
    }

    #[test]
    fn log_cut_at_any_byte_reads_as_a_prefix() {
        let (bytes, all) = (written(&entries()), entries());
        for len in (12..bytes.len()).step_by(97) {
            let prefix = read(&bytes[..len]).unwrap();
            assert_eq!(prefix[..], all[..prefix.len()], "cut at {len}");
        }
        assert!(matches!(read(&bytes[..11]), Err(LogError::Magic)));
    }

    #[test]
    fn log_with_a_flipped_bit_is_damaged_or_short() {
        let (bytes, all) = (written(&entries()), entries());
        for at in (0..bytes.len()).step_by(61) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            match read(&damaged) {
                Ok(prefix) => assert!(prefix.len() < all.len(), "flip at {at} not noticed"),
                Err(LogError::Io(error)) => panic!("{error}"),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn log_of_a_newer_release_is_refused() {
        let mut bytes = written(&[]);
        bytes[8] = VERSION as u8 + 1;
        assert!(matches!(read(&bytes), Err(LogError::Version { found }) if found == VERSION + 1));
    }

    #[test]
    fn clock_anchor_costs_few_bytes() {
        let bytes = written(&entries()[..1000]);
        assert!(bytes.len() < 32 * 1000, "{} bytes", bytes.len());
    }
}
