//! The clock shows and keeps time, interrupts, and survives.

use super::super::testing::{Bench, fuzz};
use super::*;

/// 2024-03-01 00:00:00.25.
const WALL: WallClock = WallClock(1_709_251_200_250_000_000);

fn cmos() -> Cmos {
    Cmos::new(WALL, Layout::of(5 << 30))
}

fn get(bench: &mut Bench, cmos: &mut Cmos, index: u8) -> u8 {
    bench.write(cmos, 0x70, index);
    bench.read(cmos, 0x71)
}

fn set(bench: &mut Bench, cmos: &mut Cmos, index: u8, value: u8) {
    bench.write(cmos, 0x70, index);
    bench.write(cmos, 0x71, value);
}

#[test]
fn clock_shows_wall_time() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    bench.now = VirtualTime(59_750_000_000);
    for (index, value) in [(0, 0), (2, 1), (4, 0), (6, 6), (7, 1), (8, 3), (9, 0x24), (0x32, 0x20)]
    {
        assert_eq!(get(&mut bench, &mut cmos, index), value, "{index}");
    }
}

#[test]
fn update_in_progress_precedes_each_second() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    for (now, expected) in [(0, 0x26), (749_800_000, 0xa6), (750_000_000, 0x26)] {
        bench.now = VirtualTime(now);
        assert_eq!(get(&mut bench, &mut cmos, 0x0a), expected, "{now}");
    }
}

#[test]
fn clock_set_by_the_guest_runs_on_from_there() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    set(&mut bench, &mut cmos, 0x0b, 0x82);
    for (index, value) in
        [(0, 0x58), (2, 0x59), (4, 0x23), (7, 0x31), (8, 0x12), (9, 0x99), (0x32, 0x19)]
    {
        set(&mut bench, &mut cmos, index, value);
    }
    bench.now = VirtualTime(10_000_000_000);
    assert_eq!(get(&mut bench, &mut cmos, 0), 0x58, "stands still");
    set(&mut bench, &mut cmos, 0x0b, 0x02);
    bench.now = VirtualTime(12_000_000_000);
    for (index, value) in [(0, 0), (2, 0), (4, 0), (7, 1), (8, 1), (9, 0), (0x32, 0x20)] {
        assert_eq!(get(&mut bench, &mut cmos, index), value, "{index}");
    }
    cmos.reset();
    assert_eq!(get(&mut bench, &mut cmos, 0x32), 0x20, "kept over reset");
}

#[test]
fn update_interrupt_comes_each_second_until_c_is_not_read() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    set(&mut bench, &mut cmos, 0x0b, 0x12);
    assert_eq!(bench.armed(TIMER_SECOND), Some(VirtualTime(750_000_000)));
    bench.now = VirtualTime(750_000_000);
    bench.with(|cx| cmos.timer_fired(cx, TIMER_SECOND));
    assert_eq!(bench.line(8), Some(true));
    assert_eq!(get(&mut bench, &mut cmos, 0x0c) & 0x90, 0x90);
    let effects = bench.effects();
    let again = VirtualTime(1_750_000_000);
    assert!(effects.contains(&crate::Effect::Line { gsi: 8, high: false }));
    assert!(effects.contains(&crate::Effect::Timer { timer: TIMER_SECOND, at: Some(again) }));
}

#[test]
fn periodic_interrupt_comes_at_its_rate() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    set(&mut bench, &mut cmos, 0x0b, 0x42);
    let at = bench.armed(TIMER_PERIODIC).unwrap();
    assert_eq!(at, VirtualTime(976_563), "1024 Hz");
    bench.now = at;
    bench.with(|cx| cmos.timer_fired(cx, TIMER_PERIODIC));
    assert_eq!(bench.line(8), Some(true));
    assert_eq!(get(&mut bench, &mut cmos, 0x0c), 0xc0);
    assert_eq!(bench.line(8), Some(false));
}

#[test]
fn alarm_interrupt_comes_at_its_second() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    for (index, value) in [(1, 0x03), (3, 0x00), (5, 0xff), (0x0b, 0x22)] {
        set(&mut bench, &mut cmos, index, value);
    }
    let mut seconds = 0;
    while let Some(at) = bench.armed(TIMER_SECOND) {
        bench.now = at;
        bench.with(|cx| cmos.timer_fired(cx, TIMER_SECOND));
        seconds += 1;
    }
    assert_eq!(seconds, 3);
    assert_eq!(get(&mut bench, &mut cmos, 0x0c) & 0xa0, 0xa0);
}

#[test]
fn flags_are_set_with_interrupts_disabled() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    bench.now = VirtualTime(2_000_000_000);
    assert_eq!(get(&mut bench, &mut cmos, 0x0c), 0x50);
    assert_eq!(get(&mut bench, &mut cmos, 0x0c), 0x00);
}

#[test]
fn memory_size_is_where_firmware_leaves_it() {
    let (mut bench, mut cmos) = (Bench::new(), cmos());
    for (index, value) in [(0x15, 0x80), (0x16, 0x02), (0x17, 0xff), (0x18, 0xff)] {
        assert_eq!(get(&mut bench, &mut cmos, index), value, "{index:#x}");
    }
    let units = [0x34, 0x35].map(|index| u32::from(get(&mut bench, &mut cmos, index)));
    assert_eq!(units[0] + 256 * units[1], (3 << 14) - 256);
    assert_eq!([0x5b, 0x5c, 0x5d].map(|index| get(&mut bench, &mut cmos, index)), [0, 0x80, 0]);
}

#[test]
fn hostile_guest_is_survived() {
    fuzz(cmos, 8, 30_000);
}
