//! What Linux's 8250 driver probes for, interrupts, and input that is not lost.

use super::super::testing::{Bench, fuzz};
use super::*;

fn receive(bench: &mut Bench, serial: &mut Serial, bytes: &[u8]) {
    bench.with(|cx| serial.receive(cx, bytes));
}

#[test]
fn transmit_leaves_at_once() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com2());
    bench.write(&mut serial, 0x2f8, b'x');
    let output = Output::Console { port: 1, bytes: vec![b'x'] };
    assert_eq!(bench.effects(), [Effect::Output(output)]);
    assert_eq!(bench.read(&mut serial, 0x2fd), 0x60);
}

#[test]
fn autodetection_finds_a_16550a() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    let mut check = |register: u16, write: Option<u8>, expected: Option<u8>| {
        if let Some(value) = write {
            bench.write(&mut serial, 0x3f8 + register, value);
        }
        if let Some(expected) = expected {
            assert_eq!(bench.read(&mut serial, 0x3f8 + register), expected, "{register}");
        }
    };
    check(1, Some(0xff), Some(0x0f));
    check(1, Some(0), Some(0));
    check(4, Some(0x1a), None);
    check(6, None, Some(0x92));
    check(6, None, Some(0x90));
    check(4, Some(0x00), Some(0x00));
    check(2, Some(0x01), Some(0xc1));
    check(2, Some(0x21), Some(0xc1));
    check(3, Some(0x80), None);
    check(2, None, Some(0xc1));
    check(3, Some(0xbf), None);
    check(2, None, Some(0xc1));
    check(3, Some(0), None);
    check(7, Some(0xa5), Some(0xa5));
    check(1, Some(0x40), Some(0));
}

#[test]
fn empty_transmitter_interrupts_when_enabled_and_after_each_byte() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    bench.write(&mut serial, 0x3fc, 0x08);
    bench.write(&mut serial, 0x3f9, 0x02);
    assert_eq!(bench.line(4), Some(true));
    assert_eq!(bench.read(&mut serial, 0x3fa), 0x02);
    assert_eq!(bench.line(4), Some(false));
    assert_eq!(bench.read(&mut serial, 0x3fa), 0x01);
    bench.write(&mut serial, 0x3f8, b'x');
    assert_eq!(bench.line(4), Some(true));
}

#[test]
fn out2_gates_the_interrupt() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    bench.write(&mut serial, 0x3f9, 0x01);
    receive(&mut bench, &mut serial, b"a");
    assert_eq!(bench.line(4), None);
    bench.write(&mut serial, 0x3fc, 0x08);
    assert_eq!(bench.line(4), Some(true));
}

#[test]
fn pasted_input_arrives_whole_and_in_order() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    bench.write(&mut serial, 0x3fa, 0xc1);
    bench.write(&mut serial, 0x3f9, 0x01);
    bench.write(&mut serial, 0x3fc, 0x08);
    let pasted: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    receive(&mut bench, &mut serial, &pasted);
    assert_eq!(serial.fifo.len(), 16);
    assert_eq!(bench.read(&mut serial, 0x3fa), 0xc4);
    let mut got = Vec::new();
    while bench.read(&mut serial, 0x3fd) & 1 != 0 {
        got.push(bench.read(&mut serial, 0x3f8));
    }
    assert_eq!(got, pasted);
    assert_eq!(bench.line(4), Some(false));
}

#[test]
fn few_bytes_time_out() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    bench.write(&mut serial, 0x3fa, 0xc1);
    bench.write(&mut serial, 0x3f9, 0x01);
    receive(&mut bench, &mut serial, b"abc");
    assert_eq!(bench.read(&mut serial, 0x3fa), 0xcc);
}

#[test]
fn input_past_the_limit_is_dropped() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    receive(&mut bench, &mut serial, &vec![0; RECEIVE_QUEUE_MAX + 10]);
    receive(&mut bench, &mut serial, b"x");
    receive(&mut bench, &mut serial, b"y");
    assert_eq!(serial.receive_room(), 0);
}

#[test]
fn loopback_returns_what_was_sent_and_nothing_leaves() {
    let (mut bench, mut serial) = (Bench::new(), Serial::com1());
    bench.write(&mut serial, 0x3fc, 0x10);
    bench.effects();
    bench.write(&mut serial, 0x3f8, 0x5a);
    receive(&mut bench, &mut serial, b"later");
    assert_eq!(bench.effects(), []);
    assert_eq!(bench.read(&mut serial, 0x3f8), 0x5a);
    assert_eq!(bench.read(&mut serial, 0x3fd) & 1, 0);
    bench.write(&mut serial, 0x3fc, 0x00);
    assert_eq!(bench.read(&mut serial, 0x3f8), b'l');
}

#[test]
fn hostile_guest_is_survived() {
    fuzz(Serial::com1, 9, 50_000);
}
