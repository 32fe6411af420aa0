//! Event logs as anybody may write them: read to the end or refused with words, and what is read
//! is written and read again the same.

use journal::{LogReader, LogWriter};

/// Bytes are a log's body of frames; those that do not begin as a log does get a header and one
/// frame with a right checksum, so that what is behind the checksum is reached as well.
pub fn run(bytes: &[u8]) {
    read(bytes);
    let mut framed = Vec::new();
    let header = LogWriter::new(&mut framed).map(drop);
    header.expect("writing to memory");
    framed.extend((bytes.len() as u32).to_le_bytes());
    framed.extend(crc32fast::hash(bytes).to_le_bytes());
    framed.extend(bytes);
    read(&framed);
}

fn read(bytes: &[u8]) {
    let Ok(mut reader) = LogReader::new(bytes) else { return };
    let mut entries = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        entries.push(entry);
    }
    let mut written = Vec::new();
    let mut writer = LogWriter::new(&mut written).expect("writing to memory");
    for entry in &entries {
        writer.append(entry).expect("writing to memory");
    }
    writer.flush().expect("writing to memory");
    let mut again = LogReader::new(&written[..]).expect("a log");
    for entry in &entries {
        assert_eq!(again.next_entry().expect("readable").as_ref(), Some(entry));
    }
    assert!(again.next_entry().expect("readable").is_none());
}
