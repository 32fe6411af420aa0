//! The thread's queue, on a disk in memory.

use std::sync::mpsc;
use std::time::Duration;

use super::*;

struct Memory {
    bytes: Vec<u8>,
    log: mpsc::Sender<&'static str>,
    gate: Option<mpsc::Receiver<()>>,
}

impl Memory {
    fn note(&self, what: &'static str) {
        let _ = self.log.send(what);
    }
}

impl BlockBackend for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        self.note("read");
        buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.note("write");
        assert_ne!(data[0], 0xee, "a planted bug");
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.note("flush");
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::FlushLost { path: "x".into() })
    }
    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.bytes[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

fn disk(size: usize) -> (DiskIo, mpsc::Receiver<&'static str>) {
    let (log, seen) = mpsc::channel();
    let backend = Memory { bytes: vec![0; size], log, gate: None };
    (DiskIo::spawn(Box::new(backend)), seen)
}

fn read(id: u64, offset: u64, len: u32) -> DiskRequest {
    DiskRequest { id, operation: DiskOperation::Read { offset, len } }
}

fn write(id: u64, offset: u64, byte: u8, len: usize) -> DiskRequest {
    DiskRequest { id, operation: DiskOperation::Write { offset, data: vec![byte; len] } }
}

#[test]
fn requests_are_done_in_order_and_fetched_in_any() {
    let (io, _log) = disk(1 << 20);
    for id in 0..100 {
        io.submit(write(2 * id, 512, id as u8, 512));
        io.submit(read(2 * id + 1, 512, 512));
    }
    for id in (0..100).rev() {
        assert_eq!(io.wait(2 * id + 1).result, Ok(vec![id as u8; 512]));
        assert_eq!(io.wait(2 * id).result, Ok(vec![]));
    }
    assert_eq!(io.try_wait(1), None);
}

#[test]
fn impossible_requests_fail_and_the_disk_goes_on() {
    let (io, _log) = disk(1 << 20);
    let operations = [
        DiskOperation::Read { offset: 1 << 20, len: 512 },
        DiskOperation::Read { offset: 0, len: 513 },
        DiskOperation::Read { offset: 0, len: u32::MAX - 511 },
        DiskOperation::Read { offset: u64::MAX - 511, len: 1024 },
        DiskOperation::Write { offset: (1 << 20) - 512, data: vec![0; 1024] },
        DiskOperation::Write { offset: 0, data: vec![0xee; 512] },
        DiskOperation::Discard { offset: 512, len: u64::MAX - 511 },
        DiskOperation::Discard { offset: 0, len: 512 },
        DiskOperation::WriteZeroes { offset: 7, len: 512 },
    ];
    let count = operations.len() as u64;
    for (id, operation) in (0..).zip(operations) {
        io.submit(DiskRequest { id, operation });
    }
    for id in 0..count {
        assert_eq!(io.wait(id), DiskCompletion { id, result: Err(DiskFailed) });
    }
    assert_eq!(io.failures().0, count);
    io.submit(read(count, 0, 512));
    assert_eq!(io.wait(count).result, Ok(vec![0; 512]));
}

#[test]
fn waiting_for_what_was_never_submitted_fails_at_once() {
    let (io, _log) = disk(1024);
    assert_eq!(io.wait(7).result, Err(DiskFailed));
}

#[test]
fn more_than_the_limits_passes_through_without_deadlock() {
    let (io, _log) = disk(REQUEST_LEN_MAX);
    for id in 0..8 {
        io.submit(read(id, 0, REQUEST_LEN_MAX as u32));
    }
    for id in 8..16 {
        io.submit(write(id, 0, id as u8, REQUEST_LEN_MAX));
    }
    assert_eq!(io.wait(15).result, Ok(vec![]));
    for id in 0..15 {
        assert!(io.wait(id).result.is_ok());
    }
    io.drain();
}

#[test]
fn unfetched_reads_hold_the_thread_back() {
    let (io, log) = disk(REQUEST_LEN_MAX);
    for id in 0..8 {
        io.submit(read(id, 0, REQUEST_LEN_MAX as u32));
    }
    std::thread::sleep(Duration::from_millis(300));
    let done = log.try_iter().count();
    assert!(done * REQUEST_LEN_MAX <= PENDING_BYTES_MAX + REQUEST_LEN_MAX, "{done} reads");
    assert!(io.wait(7).result.is_ok());
}

#[test]
fn dropping_finishes_the_queue_and_flushes_last() {
    let (io, log) = disk(1024);
    for id in 0..50 {
        io.submit(write(id, 0, 1, 512));
    }
    drop(io);
    let seen: Vec<_> = log.iter().collect();
    assert_eq!(seen.len(), 51);
    assert_eq!(seen.last(), Some(&"flush"));
}

#[test]
fn try_wait_does_not_block() {
    let (log, _seen) = mpsc::channel();
    let (open, gate) = mpsc::channel();
    let io = DiskIo::spawn(Box::new(Memory { bytes: vec![0; 512], log, gate: Some(gate) }));
    io.submit(read(1, 0, 512));
    assert_eq!(io.try_wait(1), None);
    open.send(()).unwrap();
    assert!(io.wait(1).result.is_ok());
    drop(open);
    assert_eq!(io.shutdown().unwrap().size(), 512);
}

#[test]
#[should_panic(expected = "disk request 3 twice")]
fn an_id_in_flight_twice_is_our_bug() {
    let (io, _log) = disk(512);
    io.submit(read(3, 0, 512));
    io.submit(read(3, 0, 512));
}
