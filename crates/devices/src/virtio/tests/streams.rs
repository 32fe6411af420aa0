//! Console and entropy: bytes through chains.

use journal::Output;

use super::*;
use crate::Effect;
use crate::pci::Delivery;
use crate::virtio::VirtioPci;
use crate::virtio::console::Console;
use crate::virtio::rng::Rng;

const BUFFER: u64 = 0x10_0000;

#[test]
fn console_writes_and_reads() {
    let mut rig = Rig::new(VirtioPci::new(Console::new(5)));
    let (driver, mut queues) = Driver::start(&mut rig, &[32, 32], u64::MAX);
    rig.drain();
    rig.put(BUFFER, b"hello world");
    queues[1].submit(&mut rig, &[(BUFFER, 6, false), (BUFFER + 6, 5, false)], true);
    driver.kick(&mut rig, &queues[1]);
    let output = Output::Console { port: 5, bytes: b"hello world".to_vec() };
    assert_eq!(rig.drain()[0], Effect::Output(output));
    rig.deliver(Delivery::Console(b"typed".to_vec()));
    assert!(rig.drain().is_empty(), "no buffers yet");
    queues[0].submit(&mut rig, &[(BUFFER + 0x100, 3, true)], false);
    queues[0].submit(&mut rig, &[(BUFFER + 0x200, 3, true)], false);
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(queues[0].take_used(&rig), [(0, 3), (1, 2)]);
    assert_eq!(rig.get(BUFFER + 0x100, 3), b"typ");
    assert_eq!(rig.get(BUFFER + 0x200, 2), b"ed");
}

#[test]
fn console_keeps_bounded_input() {
    let mut rig = Rig::new(VirtioPci::new(Console::new(5)));
    Driver::start(&mut rig, &[32, 32], u64::MAX);
    for _ in 0..3 {
        rig.deliver(Delivery::Console(vec![b'x'; 50_000]));
    }
    let saved = rig.save();
    let len: usize = saved.iter().map(|section| section.body.len()).sum();
    assert!(len < 70_000, "{len}");
    let mut twin = Rig::new(VirtioPci::new(Console::new(5)));
    twin.bus.restore(&mut saved.clone()).unwrap();
    assert!(twin.save() == saved);
}

#[test]
fn entropy_is_a_function_of_the_seed_and_survives_a_save() {
    let draw = |rig: &mut Rig, driver: &Driver, queue: &mut GuestQueue| {
        queue.submit(rig, &[(BUFFER, 100, true)], false);
        driver.kick(rig, queue);
        assert_eq!(queue.take_used(rig).last().unwrap().1, 100);
        rig.get(BUFFER, 100)
    };
    let start = |seed| {
        let mut rig = Rig::new(VirtioPci::new(Rng::new([seed; 32])));
        let (driver, mut queues) = Driver::start(&mut rig, &[32], u64::MAX);
        (rig, driver, queues.remove(0))
    };
    let (mut a, driver, mut queue) = start(1);
    let first = draw(&mut a, &driver, &mut queue);
    let (mut b, _, mut other) = start(1);
    assert_eq!(draw(&mut b, &driver, &mut other), first);
    let (mut c, _, mut other) = start(2);
    assert_ne!(draw(&mut c, &driver, &mut other), first);
    b.bus.restore(&mut a.save()).unwrap();
    let second = draw(&mut a, &driver, &mut queue);
    assert_ne!(second, first);
    b.ram.write(types::Gpa(0), &a.get(0, 0x10_0000)).unwrap();
    b.bus.restore(&mut a.save()).unwrap();
    let third = draw(&mut a, &driver, &mut queue);
    b.put(queue.base, &a.get(queue.base, 0x2000));
    driver.kick(&mut b, &queue);
    assert_eq!(b.get(BUFFER, 100), third);
}

#[test]
fn entropy_of_a_huge_buffer_is_bounded() {
    let mut rig = Rig::new(VirtioPci::new(Rng::new([0; 32])));
    let (driver, mut queues) = Driver::start(&mut rig, &[32], u64::MAX);
    queues[0].submit(&mut rig, &[(BUFFER, 2 << 20, true)], false);
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(queues[0].take_used(&rig), [(0, 4096)]);
}
