//! Configuration space, status, interrupts: what holds for every device.

use super::driver::{SLOT, messages};
use super::*;
use crate::Effect;
use crate::virtio::blk::{Blk, BlkSpec};
use crate::virtio::{VirtioPci, features, status};

fn disk() -> VirtioPci<Blk> {
    let spec = BlkSpec { disk: 0, size: 1 << 20, read_only: false, id: "test".to_owned() };
    VirtioPci::new(Blk::new(spec))
}

#[test]
fn bar_sizing_reads_back_the_size() {
    let mut rig = Rig::new(disk());
    let before = rig.config_read(0x10, 4);
    rig.config_write(4, 2, 0);
    rig.config_write(0x10, 4, 0xffff_ffff);
    assert_eq!(rig.config_read(0x10, 4), 0xffff_c000);
    rig.config_write(0x10, 4, before);
    assert!(!rig.bus.claims(types::Gpa(before.into())), "decoding is off");
    rig.config_write(4, 2, 2);
    assert!(rig.bus.claims(types::Gpa(before.into())));
    assert_eq!(rig.config_read(0x30, 4), 0, "no ROM");
}

#[test]
fn ports_of_others_are_not_swallowed() {
    let mut rig = Rig::new(disk());
    rig.with(|bus, cx| {
        assert_eq!(bus.port_read(cx, 0xcf9, 1), None);
        assert!(!bus.port_write(cx, 0xcf9, 1, 6));
        assert_eq!(bus.port_read(cx, 0xcfa, 2), None);
        assert_eq!(bus.port_read(cx, 0xcfe, 4), None);
        assert!(bus.port_write(cx, 0xcf8, 4, 0x8000_f800));
        assert_eq!(bus.port_read(cx, 0xcfc, 4), Some(u32::MAX), "empty slot");
        assert_eq!(bus.port_read(cx, 0xcfd, 1), Some(0xff));
    });
}

#[test]
fn features_not_offered_are_refused() {
    let mut rig = Rig::new(disk());
    let driver = Driver::probe(&mut rig);
    let offered = driver.offered(&mut rig);
    driver.negotiate(&mut rig, offered | 1 << 60);
    assert_eq!(driver.status(&mut rig) & status::FEATURES_OK, 0);
    driver.negotiate(&mut rig, offered & !features::VERSION_1);
    assert_eq!(driver.status(&mut rig) & status::FEATURES_OK, 0);
    driver.negotiate(&mut rig, offered);
    assert_ne!(driver.status(&mut rig) & status::FEATURES_OK, 0);
}

#[test]
fn config_window_reaches_the_registers() {
    let mut rig = Rig::new(disk());
    let driver = Driver::probe(&mut rig);
    rig.config_write(driver.window + 4, 1, 0);
    rig.config_write(driver.window + 8, 4, 0x14);
    rig.config_write(driver.window + 12, 4, 1);
    rig.config_write(driver.window + 16, 1, 3);
    assert_eq!(driver.status(&mut rig), 3);
    rig.config_write(driver.window + 8, 4, 0x12);
    rig.config_write(driver.window + 12, 4, 2);
    assert_eq!(rig.config_read(driver.window + 16, 2), 1, "num_queues");
    rig.config_write(driver.window + 8, 4, 0xffff_fffc);
    rig.config_read(driver.window + 16, 4);
}

fn get_id(rig: &mut Rig, driver: &Driver, queue: &mut GuestQueue) {
    rig.put(0x10_0000, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    queue.submit(rig, &[(0x10_0000, 16, false), (0x10_1000, 21, true)], false);
    driver.kick(rig, queue);
}

#[test]
fn msix_masked_vector_is_pending_until_unmasked() {
    let mut rig = Rig::new(disk());
    let (driver, mut queues) = Driver::start(&mut rig, &[16], 0);
    let table = driver.msix_table(&mut rig);
    rig.write(table + 16 + 12, 4, 1);
    rig.drain();
    get_id(&mut rig, &driver, &mut queues[0]);
    assert!(messages(&rig.drain()).is_empty());
    assert_eq!(rig.read(table + 0x800, 8), 2, "pending bit");
    rig.write(table + 16 + 12, 4, 0);
    assert_eq!(messages(&rig.drain()), [0x41]);
    assert_eq!(rig.read(table + 0x800, 8), 0);
    rig.config_write(driver.msix + 2, 2, 0xc000);
    get_id(&mut rig, &driver, &mut queues[0]);
    assert!(messages(&rig.drain()).is_empty());
    rig.config_write(driver.msix + 2, 2, 0x8000);
    assert_eq!(messages(&rig.drain()), [0x41]);
}

#[test]
fn intx_is_a_level_that_reading_the_isr_lowers() {
    let mut rig = Rig::new(disk());
    let (driver, mut queues) = Driver::start(&mut rig, &[16], 0);
    rig.config_write(driver.msix + 2, 2, 0);
    rig.config_write(4, 2, 6);
    rig.drain();
    get_id(&mut rig, &driver, &mut queues[0]);
    let gsi = crate::pci::interrupt_gsi(SLOT, 1);
    assert!(rig.drain().contains(&Effect::Line { gsi, high: true }));
    assert_ne!(rig.config_read(6, 2) & 8, 0, "interrupt status");
    rig.config_write(4, 2, 0x406);
    assert_eq!(rig.drain(), [Effect::Line { gsi, high: false }], "disable bit");
    rig.config_write(4, 2, 6);
    assert_eq!(rig.drain(), [Effect::Line { gsi, high: true }]);
    assert_eq!(rig.read(driver.isr, 1), 1);
    assert_eq!(rig.drain(), [Effect::Line { gsi, high: false }]);
    assert_eq!(rig.read(driver.isr, 1), 0);
    assert_eq!(rig.config_read(6, 2) & 8, 0);
}

#[test]
fn notification_before_driver_ok_is_served_at_driver_ok() {
    let mut rig = Rig::new(disk());
    let driver = Driver::probe(&mut rig);
    driver.negotiate(&mut rig, features::VERSION_1);
    let mut queue = GuestQueue::new(0, 16);
    driver.enable_queue(&mut rig, &queue);
    get_id(&mut rig, &driver, &mut queue);
    assert!(queue.take_used(&rig).is_empty());
    driver.set_status(&mut rig, 15);
    assert_eq!(queue.take_used(&rig).len(), 1);
}

#[test]
fn queue_that_cannot_work_fails_the_device() {
    type Spoil = fn(&mut GuestQueue);
    let cases: [(&str, Spoil); 5] = [
        ("size", |q| q.size = 3),
        ("size 0", |q| q.size = 0),
        ("size beyond the most", |q| q.size = 512),
        ("descriptors outside RAM", |q| q.base = (4 << 20) - 0x1000),
        ("misaligned", |q| q.base += 1),
    ];
    for (what, spoil) in cases {
        let mut rig = Rig::new(disk());
        let driver = Driver::probe(&mut rig);
        driver.negotiate(&mut rig, features::VERSION_1);
        let mut queue = GuestQueue::new(0, 16);
        spoil(&mut queue);
        rig.write(driver.common + 0x16, 2, 0);
        rig.write(driver.common + 0x18, 2, queue.size.into());
        rig.write(driver.common + 0x20, 8, queue.descriptors());
        rig.write(driver.common + 0x28, 8, queue.avail());
        rig.write(driver.common + 0x30, 8, queue.used());
        rig.write(driver.common + 0x1c, 2, 1);
        assert_ne!(driver.status(&mut rig) & status::NEEDS_RESET, 0, "{what}");
        assert_eq!(rig.read(driver.common + 0x1c, 2), 0, "{what}");
        driver.negotiate(&mut rig, features::VERSION_1);
        assert_eq!(driver.status(&mut rig), 11, "{what}: a reset heals");
    }
}

#[test]
fn malformed_chain_fails_the_device_with_a_config_interrupt() {
    for (gpa, len, flags, next) in [
        (0x10_0000, 16, 1, 0),       // a chain that bites its tail
        (0x10_0000, 16, 1, 99),      // next beyond the table
        (0x10_0000, 0x20, 4, 0),     // an indirect table of zeroes: no status byte
        (0x10_0000, 15, 4, 0),       // an indirect table of odd size
        (u64::MAX - 3, 16, 0, 0),    // not RAM
        (0x10_0000, u32::MAX, 2, 0), // runs out of RAM
        (0x10_0000, 8, 0, 0),        // too short for a header
    ] {
        let mut rig = Rig::new(disk());
        let (driver, mut queues) = Driver::start(&mut rig, &[16], u64::MAX);
        rig.drain();
        GuestQueue::describe(&mut rig, queues[0].base, 0, gpa, len, flags, next);
        queues[0].offer(&mut rig, 0);
        driver.kick(&mut rig, &queues[0]);
        let case = format!("{gpa:#x} {len} {flags} {next}");
        assert_eq!(driver.status(&mut rig), 15 | status::NEEDS_RESET, "{case}");
        assert_eq!(messages(&rig.drain()), [0x40], "{case}");
        assert!(queues[0].take_used(&rig).is_empty(), "{case}");
    }
}

#[test]
fn bus_mastering_off_keeps_the_device_quiet() {
    let mut rig = Rig::new(disk());
    let (driver, mut queues) = Driver::start(&mut rig, &[16], 0);
    rig.config_write(4, 2, 2);
    rig.drain();
    get_id(&mut rig, &driver, &mut queues[0]);
    assert!(queues[0].take_used(&rig).is_empty());
    rig.config_write(4, 2, 6);
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(queues[0].take_used(&rig).len(), 1);
}
