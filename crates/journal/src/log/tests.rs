//! Logs written, read back, cut, damaged, and what entries cost.

use types::{ExecutionPoint, VirtualTime};

use super::*;

fn entry(branches: u64, rip: u64, at_us: u64, what: What) -> Entry {
    let point = ExecutionPoint { vcpu: 0, branches, rip, iterations: branches & 1 };
    Entry { point, at: VirtualTime(at_us * 1000), what }
}

fn anchor(advance_ns: u64, rate_millins: u64) -> What {
    What::Input(Input::ClockAnchor { advance_ns, rate_millins })
}

fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = (0..3000u64)
        .map(|n| {
            let what = anchor(n % 3 * 500 + n % 7 * 1000, 20_000 - n % 5);
            entry(n * 1000, 0xffff_ffff_8100_0000 + n % 9 * 0x1000, n * 1100, what)
        })
        .collect();
    let frame = Input::NetReceive { nic: 9, frame: vec![7; 9000] };
    let typed = Input::Console { port: 2, bytes: Vec::new() };
    let check = Check { sections: vec![1, u64::MAX], output: 3 };
    for what in [
        What::Input(frame),
        What::Input(typed),
        What::Input(Input::PowerButton),
        What::Input(Input::NetLink { nic: 1, up: true }),
        What::Input(Input::NetLink { nic: 300, up: false }),
        What::Input(Input::Generation { id: [7; 16] }),
        What::Input(Input::NetAddress { nic: 1, mac: [2, 0, 0, 0, 0, 9] }),
        What::Checkpoint(4),
        What::Check(check),
        anchor(u64::MAX, u64::MAX),
        What::End,
    ] {
        entries.push(entry(1 << 40, 1, u64::MAX / 1000, what));
    }
    entries
}

fn written(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes).unwrap();
    for entry in entries {
        writer.append(entry).unwrap();
    }
    writer.flush().unwrap();
    assert_eq!(writer.entries(), entries.len() as u64);
    assert_eq!(writer.size(), bytes.len() as u64);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>, LogError> {
    let mut reader = LogReader::new(bytes)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    assert_eq!(reader.entries(), entries.len() as u64);
    Ok(entries)
}

#[test]
fn log_reads_back_what_was_written() {
    assert_eq!(read(&written(&entries())).unwrap(), entries());
}

#[test]
fn log_cut_at_any_byte_reads_as_a_prefix() {
    let (bytes, all) = (written(&entries()), entries());
    for len in (12..bytes.len()).step_by(7) {
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
fn log_of_another_release_is_refused_by_its_version() {
    for version in [VERSION - 1, VERSION + 1] {
        let mut bytes = written(&[]);
        bytes[8] = version as u8;
        let error = read(&bytes).unwrap_err();
        assert!(matches!(error, LogError::Version { found } if found == version));
        assert!(error.to_string().contains(&format!("version {version}")), "{error}");
    }
}

/// A frame with a right checksum around any bytes.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = written(&[]);
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(body).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn hostile_bodies_are_damage() {
    let endless = [0xff; 11];
    for body in [
        &[0x87, 1, 1][..],
        &[0x00, 1, 1],
        &[0x0f],
        &[0x0c, 0xff, 0xff, 0x7f],
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x0b, 7],
        &endless,
    ] {
        let error = read(&framed(body)).unwrap_err();
        assert!(matches!(error, LogError::Damaged { at: 12, .. }), "{body:?}: {error}");
    }
    assert!(matches!(read(&framed(&[])), Err(LogError::Damaged { .. })));
}

#[test]
fn clock_anchor_costs_few_bytes() {
    let busy: Vec<Entry> = (1..1000u64)
        .map(|n| {
            let rip = 0xffff_ffff_8100_0000 + n * 7919 % 0x10_0000;
            entry(n * 2_000_000, rip, n * 40_000, anchor(n % 4000 * 1000, 20_000 + n % 100))
        })
        .collect();
    let bytes = written(&busy).len() as u64;
    assert!(bytes <= 17 * 1000, "{bytes} bytes");
}

#[test]
fn frame_for_an_idle_guest_costs_few_bytes_beside_its_own() {
    let frame = |n: u64| {
        let frame = Input::NetReceive { nic: 0, frame: vec![n as u8; 66] };
        entry(n * 5_000, 0xffff_ffff_8100_1234, n * 900, What::Input(frame))
    };
    let frames: Vec<Entry> = (1..1000).map(frame).collect();
    let overhead = written(&frames).len() as u64 - 66 * 999;
    assert!(overhead <= 9 * 1000, "{overhead} bytes");
}
