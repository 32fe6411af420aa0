//! The network card: frames out, frames in, the link.

use journal::Output;

use super::driver::{SLOT, messages};
use super::*;
use crate::Effect;
use crate::pci::Delivery;
use crate::virtio::VirtioPci;
use crate::virtio::net::{Net, NetSpec};

const BUFFER: u64 = 0x10_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const MRG_RXBUF: u64 = 1 << 15;

fn card() -> VirtioPci<Net> {
    VirtioPci::new(Net::new(NetSpec { nic: 2, mac: MAC, mtu: 1500 }))
}

fn start(mask: u64) -> (Rig, Driver, Vec<GuestQueue>) {
    let mut rig = Rig::new(card());
    let (driver, queues) = Driver::start(&mut rig, &[64, 64], mask);
    rig.drain();
    (rig, driver, queues)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

fn sent(effects: &[Effect]) -> Vec<Vec<u8>> {
    let of = |effect: &Effect| match effect {
        Effect::Output(Output::NetTransmit { nic: 2, frame }) => Some(frame.clone()),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn config_shows_address_link_and_mtu() {
    let (mut rig, driver, _) = start(u64::MAX);
    assert_eq!(rig.read(driver.device, 4).to_le_bytes()[..4], MAC[..4]);
    assert_eq!(rig.read(driver.device + 6, 2), 1);
    assert_eq!(rig.read(driver.device + 10, 2), 1500);
    let generation = rig.read(driver.common + 0x15, 1);
    rig.deliver(Delivery::Link(false));
    assert_eq!(messages(&rig.drain()), [0x40]);
    assert_eq!(rig.read(driver.device + 6, 2), 0);
    assert_ne!(rig.read(driver.common + 0x15, 1), generation);
    rig.deliver(Delivery::Link(false));
    assert!(rig.drain().is_empty());
}

#[test]
fn transmit_sends_a_batch_in_order() {
    let (mut rig, driver, mut queues) = start(u64::MAX);
    let frames = [frame(60), frame(1514), frame(100)];
    for (i, frame) in frames.iter().enumerate() {
        let at = BUFFER + 0x1000 * i as u64 + 0xfff0 * (i as u64 & 1);
        rig.put(at, &[0; 12]);
        rig.put(at + 12, frame);
        let len = frame.len() as u32;
        let buffers = [(at, 12, false), (at + 12, 20, false), (at + 32, len - 20, false)];
        queues[1].submit(&mut rig, &buffers, i == 1);
    }
    driver.kick(&mut rig, &queues[1]);
    let effects = rig.drain();
    assert_eq!(sent(&effects), frames);
    assert_eq!(messages(&effects), [0x42], "one interrupt for the batch");
    assert_eq!(queues[1].take_used(&rig).len(), 3);
}

#[test]
fn transmit_of_bad_length_or_without_link_is_dropped() {
    let (mut rig, driver, mut queues) = start(u64::MAX);
    queues[1].submit(&mut rig, &[(BUFFER, 12 + 13, false)], false);
    queues[1].submit(&mut rig, &[(BUFFER, 1 << 20, false)], false);
    driver.kick(&mut rig, &queues[1]);
    rig.deliver(Delivery::Link(false));
    queues[1].submit(&mut rig, &[(BUFFER, 12 + 60, false)], false);
    driver.kick(&mut rig, &queues[1]);
    assert!(sent(&rig.drain()).is_empty());
    assert_eq!(queues[1].take_used(&rig).len(), 3);
}

#[test]
fn receive_spreads_a_frame_over_merged_buffers() {
    let (mut rig, _, mut queues) = start(u64::MAX);
    for i in 0..3 {
        queues[0].submit(&mut rig, &[(BUFFER + 0x1000 * i, 1000, true)], false);
    }
    rig.deliver(Delivery::Frame(frame(1500)));
    assert_eq!(messages(&rig.drain()), [0x41]);
    assert_eq!(queues[0].take_used(&rig), [(0, 1000), (1, 512)]);
    let mut bytes = rig.get(BUFFER, 1000);
    bytes.extend(rig.get(BUFFER + 0x1000, 512));
    assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(bytes[12..], frame(1500));
}

#[test]
fn receive_without_merging_takes_one_chain_or_drops() {
    let (mut rig, _, mut queues) = start(!MRG_RXBUF);
    queues[0].submit(&mut rig, &[(BUFFER, 12, true), (BUFFER + 0x100, 100, true)], false);
    rig.deliver(Delivery::Frame(frame(101)));
    assert!(queues[0].take_used(&rig).is_empty());
    rig.deliver(Delivery::Frame(frame(100)));
    assert_eq!(queues[0].take_used(&rig), [(0, 112)]);
    assert_eq!(rig.get(BUFFER + 0x100, 100), frame(100));
}

#[test]
fn receive_without_buffers_waits_then_drops() {
    let (mut rig, driver, mut queues) = start(u64::MAX);
    assert_eq!(rig.bus.frame_room(SLOT), 256);
    for _ in 0..300 {
        rig.deliver(Delivery::Frame(frame(60)));
    }
    assert_eq!(rig.bus.frame_room(SLOT), 0);
    assert!(rig.drain().is_empty());
    let saved = rig.save();
    for i in 0..40 {
        queues[0].submit(&mut rig, &[(BUFFER + 0x1000 * i, 1526, true)], false);
    }
    driver.kick(&mut rig, &queues[0]);
    assert_eq!(queues[0].take_used(&rig).len(), 40);
    assert_eq!(queues[0].avail_event(&rig), 40);
    // Exactly what the driver took.
    assert_eq!(rig.bus.frame_room(SLOT), 40);
    let mut twin = Rig::new(card());
    twin.bus.restore(&mut saved.clone()).unwrap();
    assert!(twin.save() == saved);
}

#[test]
fn frames_for_a_card_without_driver_are_dropped() {
    let mut rig = Rig::new(card());
    rig.deliver(Delivery::Frame(frame(60)));
    rig.deliver(Delivery::Console(vec![1]));
    rig.with(|bus, cx| bus.timer_fired(cx, crate::pci::timer_name(SLOT, 7)));
    assert!(rig.drain().is_empty());
}
