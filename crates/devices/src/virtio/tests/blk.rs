//! The block device, from requests in a ring to bytes in RAM.

use journal::{DiskCompletion, DiskFailed, DiskOperation, DiskRequest, Output};
use types::VirtualTime;

use super::driver::{SLOT, messages};
use super::*;
use crate::Effect;
use crate::pci::{Delivery, timer_slot};
use crate::virtio::blk::{Blk, BlkSpec};
use crate::virtio::{VirtioPci, features};

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const STATUS: u64 = 0x12_0000;
const DISK_SIZE: u64 = 1 << 20;

fn disk(read_only: bool) -> VirtioPci<Blk> {
    let id = "serial-number-0123456789".to_owned();
    VirtioPci::new(Blk::new(BlkSpec { disk: 3, size: DISK_SIZE, read_only, id }))
}

/// Submits a request with its header at `HEADER + 16 n` and its status byte at `STATUS + n`.
fn request(
    rig: &mut Rig,
    queue: &mut GuestQueue,
    n: u64,
    kind: u32,
    sector: u64,
    data: &[(u64, u32, bool)],
) -> u16 {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    rig.put(HEADER + 16 * n, &header);
    rig.put(STATUS + n, &[0xaa]);
    let mut buffers = vec![(HEADER + 16 * n, 16, false)];
    buffers.extend(data);
    buffers.push((STATUS + n, 1, true));
    queue.submit(rig, &buffers, n % 2 == 1)
}

fn outputs(effects: &[Effect]) -> Vec<DiskRequest> {
    let of = |effect: &Effect| match effect {
        Effect::Output(Output::Disk { disk: 3, request }) => Some(request.clone()),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn timer(effects: &[Effect]) -> Option<VirtualTime> {
    let of = |effect: &Effect| match effect {
        Effect::Timer { timer, at } if timer_slot(*timer) == SLOT => Some(*at),
        _ => None,
    };
    effects.iter().filter_map(of).next_back().flatten()
}

fn complete(rig: &mut Rig, id: u64, result: Result<Vec<u8>, DiskFailed>) {
    rig.deliver(Delivery::Disk(DiskCompletion { id, result }));
}

#[test]
fn read_delivers_data_at_its_due_time() {
    for indirect in [0, 1] {
        let mut rig = Rig::new(disk(false));
        let (driver, mut queues) = Driver::start(&mut rig, &[64], u64::MAX);
        rig.drain();
        let buffers = [(DATA, 512, true), (DATA + 0x2ffe, 512, true)];
        let head = request(&mut rig, &mut queues[0], indirect, 0, 5, &buffers);
        driver.kick(&mut rig, &queues[0]);
        let effects = rig.drain();
        let operation = DiskOperation::Read { offset: 5 * 512, len: 1024 };
        assert_eq!(outputs(&effects), [DiskRequest { id: 0, operation }]);
        let due = timer(&effects).expect("a timer");
        assert!(due > rig.now && rig.bus.due(SLOT, rig.now).is_empty());
        rig.now = due;
        rig.with(|bus, cx| bus.timer_fired(cx, crate::pci::timer_name(SLOT, 0)));
        assert_eq!(rig.bus.due(SLOT, rig.now), [0]);
        let bytes: Vec<u8> = (0..1024).map(|i| (i / 4) as u8).collect();
        complete(&mut rig, 0, Ok(bytes.clone()));
        let effects = rig.drain();
        assert_eq!(messages(&effects), [0x41]);
        assert_eq!(timer(&effects), None);
        assert_eq!(rig.get(DATA, 512), bytes[..512]);
        assert_eq!(rig.get(DATA + 0x2ffe, 512), bytes[512..]);
        assert_eq!(rig.get(STATUS + indirect, 1), [0]);
        assert_eq!(queues[0].take_used(&rig), [(head.into(), 1025)]);
    }
}

#[test]
fn write_carries_private_data() {
    let mut rig = Rig::new(disk(false));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
    rig.drain();
    rig.put(DATA, &[7; 1024]);
    request(&mut rig, &mut queues[0], 0, 1, 1, &[(DATA, 100, false), (DATA + 100, 924, false)]);
    driver.kick(&mut rig, &queues[0]);
    rig.put(DATA, &[8; 1024]);
    let operation = DiskOperation::Write { offset: 512, data: vec![7; 1024] };
    assert_eq!(outputs(&rig.drain()), [DiskRequest { id: 0, operation }]);
    complete(&mut rig, 0, Ok(Vec::new()));
    assert_eq!(rig.get(STATUS, 1), [0]);
    assert_eq!(queues[0].take_used(&rig), [(0, 1)]);
}

#[test]
fn requests_that_cannot_be_are_answered_at_once() {
    let range = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    let (ioerr, unsupported) = (1, 2);
    let out = |len| (DATA, len, false);
    let cases = [
        (0, DISK_SIZE / 512, (DATA, 512, true), vec![], ioerr),
        (0, u64::MAX, (DATA, 512, true), vec![], ioerr),
        (0, u64::MAX / 512, (DATA, 1024, true), vec![], ioerr),
        (0, 0, (DATA, 511, true), vec![], ioerr),
        (1, DISK_SIZE / 512 - 1, out(1024), vec![], ioerr),
        (11, 0, out(16), range(0, 8, 1), unsupported),
        (11, 0, out(16), range(u64::MAX, 8, 0), ioerr),
        (13, 0, out(16), range(0, u32::MAX, 0), ioerr),
        (13, 0, out(32), range(0, 8, 0), ioerr),
        (77, 0, out(16), vec![], unsupported),
    ];
    for (kind, sector, buffer, bytes, code) in cases {
        let mut rig = Rig::new(disk(false));
        let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
        rig.put(DATA, &bytes);
        request(&mut rig, &mut queues[0], 0, kind, sector, &[buffer]);
        driver.kick(&mut rig, &queues[0]);
        assert_eq!(rig.get(STATUS, 1), [code], "type {kind} sector {sector}");
        assert!(outputs(&rig.drain()).is_empty());
        assert_eq!(queues[0].take_used(&rig).len(), 1);
    }
}

#[test]
fn read_only_disk_refuses_writes() {
    let mut rig = Rig::new(disk(true));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
    assert_ne!(driver.offered(&mut rig) & 1 << 5, 0);
    request(&mut rig, &mut queues[0], 0, 1, 0, &[(DATA, 512, false)]);
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(rig.get(STATUS, 1), [1]);
}

#[test]
fn flush_discard_zeroes_and_identity() {
    let mut rig = Rig::new(disk(false));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
    rig.drain();
    rig.put(DATA, &[16, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    request(&mut rig, &mut queues[0], 0, 4, 0, &[]);
    request(&mut rig, &mut queues[0], 1, 11, 0, &[(DATA, 16, false)]);
    request(&mut rig, &mut queues[0], 2, 13, 0, &[(DATA, 16, false)]);
    request(&mut rig, &mut queues[0], 3, 8, 0, &[(DATA + 0x100, 20, true)]);
    driver.kick(&mut rig, &queues[0]);
    let operations: Vec<_> = outputs(&rig.drain()).into_iter().map(|r| r.operation).collect();
    let (offset, len) = (16 * 512, 8 * 512);
    assert_eq!(
        operations,
        [
            DiskOperation::Flush,
            DiskOperation::Discard { offset, len },
            DiskOperation::WriteZeroes { offset, len }
        ]
    );
    assert_eq!(rig.get(DATA + 0x100, 20), b"serial-number-012345");
    complete(&mut rig, 1, Err(DiskFailed));
    complete(&mut rig, 1, Ok(Vec::new()));
    assert_eq!(rig.get(STATUS, 3), [0xaa, 1, 0xaa]);
}

#[test]
fn interrupts_follow_the_event_index() {
    let mut rig = Rig::new(disk(false));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], features::RING_EVENT_IDX);
    queues[0].set_used_event(&mut rig, 1);
    for n in [0, 2, 4] {
        request(&mut rig, &mut queues[0], n, 4, 0, &[]);
    }
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(queues[0].avail_event(&rig), 3, "the next kick is wanted at once");
    let mut seen = Vec::new();
    for id in 0..3 {
        rig.drain();
        complete(&mut rig, id, Ok(Vec::new()));
        seen.push(messages(&rig.drain()).len());
    }
    assert_eq!(seen, [0, 1, 0]);
}

#[test]
fn interrupts_follow_the_flag_without_event_index() {
    let mut rig = Rig::new(disk(false));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
    rig.put(queues[0].avail(), &[1, 0]);
    request(&mut rig, &mut queues[0], 0, 4, 0, &[]);
    driver.kick(&mut rig, &queues[0]);
    rig.drain();
    complete(&mut rig, 0, Ok(Vec::new()));
    assert!(messages(&rig.drain()).is_empty());
    assert_eq!(queues[0].take_used(&rig).len(), 1);
}

#[test]
fn reset_with_requests_in_flight_drops_their_completions() {
    let mut rig = Rig::new(disk(false));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
    request(&mut rig, &mut queues[0], 0, 0, 0, &[(DATA, 512, true)]);
    driver.kick(&mut rig, &queues[0]);
    driver.set_status(&mut rig, 0);
    assert_eq!(rig.bus.outstanding(SLOT).len(), 1, "still awaited");
    assert!(timer(&rig.drain()).is_some());
    let (_, mut queues) = Driver::start(&mut rig, &[64], 0);
    complete(&mut rig, 0, Ok(vec![1; 512]));
    assert_eq!(rig.get(DATA, 4), [0; 4]);
    assert_eq!(rig.get(STATUS, 1), [0xaa]);
    assert!(queues[0].take_used(&rig).is_empty());
    assert!(rig.bus.outstanding(SLOT).is_empty());
}

#[test]
fn large_requests_wait_for_room() {
    let mut rig = Rig::new(VirtioPci::new(Blk::new(BlkSpec {
        disk: 3,
        size: 1 << 40,
        read_only: false,
        id: String::new(),
    })));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], 0);
    for n in [0, 2, 4, 6, 8, 10] {
        let piece = (0x20_0000, 1 << 20, true);
        request(&mut rig, &mut queues[0], n, 0, 0, &[piece, piece, piece]);
    }
    rig.drain();
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(outputs(&rig.drain()).len(), 5, "five times 3 MiB");
    complete(&mut rig, 2, Err(DiskFailed));
    assert_eq!(outputs(&rig.drain()).len(), 1);
}

#[test]
fn save_restore_with_requests_in_flight() {
    let mut rig = Rig::new(disk(false));
    let (driver, mut queues) = Driver::start(&mut rig, &[64], u64::MAX);
    rig.put(DATA, &[9; 1024]);
    request(&mut rig, &mut queues[0], 0, 1, 0, &[(DATA, 1024, false)]);
    request(&mut rig, &mut queues[0], 1, 0, 7, &[(DATA + 0x1000, 512, true)]);
    driver.kick(&mut rig, &queues[0]);
    let issued = outputs(&rig.drain());
    let saved = rig.save();
    let mut twin = Rig::new(disk(false));
    let mut sections = saved.clone();
    twin.bus.restore(&mut sections).unwrap();
    sections.finish().unwrap();
    assert!(twin.save() == saved, "saved again, the bytes are the same");
    assert_eq!(twin.bus.outstanding(SLOT), issued);
    twin.ram.write(types::Gpa(0), &rig.get(0, 4 << 20)).unwrap();
    twin.now = rig.now;
    for rig in [&mut rig, &mut twin] {
        complete(rig, 1, Ok(vec![3; 512]));
        complete(rig, 0, Ok(Vec::new()));
    }
    assert_eq!(rig.drain(), twin.drain());
    assert_eq!(rig.ram.hash(), twin.ram.hash());
    assert!(rig.save() == twin.save());
    let mut other = Rig::new(disk(true));
    assert!(other.bus.restore(&mut saved.clone()).is_err(), "another disk");
}
