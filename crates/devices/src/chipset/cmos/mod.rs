//! CMOS: the MC146818 real-time clock and 128 bytes of battery-backed memory (Motorola MC146818
//! data sheet; layout of the memory-size bytes as PC firmware leaves them).
//!
//! The time of day is [`WallClock`] at virtual time plus an offset of whole seconds that the guest
//! changes by setting the clock. Flags of register C are made up when somebody looks; timers are
//! armed only while an enabled interrupt is not yet pending.

mod calendar;

use journal::WallClock;
use memory::Layout;
use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};
use types::VirtualTime;

use super::ports;
use super::rate::{ticks_at, time_of_tick};
use crate::{Device, DeviceContext, PortRange};
use calendar::{Fields, alarm_matches, fields_of, seconds_of};

const NS_PER_SECOND: u64 = 1_000_000_000;
/// Frequency of the crystal, Hz.
const CRYSTAL_HZ: u64 = 32_768;
/// How long before an update the update-in-progress bit is set, ns (MC146818, table 6: 244 µs).
const UPDATE_WARNING_NS: u64 = 244_000;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Register A: update in progress.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A after reset: 32 kHz crystal, 1024 Hz periodic rate.
const REGISTER_A_RESET: u8 = 0x26;
/// Register B: the guest sets the clock, no updates.
const SET: u8 = 1 << 7;
/// Registers B and C: periodic, alarm and update interrupts.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
/// Register C: the interrupt line is active.
const REQUEST: u8 = 1 << 7;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

const TIMER_PERIODIC: u32 = 0;
const TIMER_SECOND: u32 = 1;

/// The clock and its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmos {
    wall: WallClock,
    /// Added to the wall clock, seconds.
    offset: i64,
    /// Time registers while the guest sets them.
    setting: Option<Fields>,
    index: u8,
    /// Bytes that are just memory, alarms among them. Registers with a meaning are 0 here.
    memory: [u8; 128],
    a: u8,
    b: u8,
    /// Register C but for its request bit.
    flags: u8,
    /// When `flags` was last brought up to date.
    settled: VirtualTime,
    irq_high: bool,
}

impl Cmos {
    /// A clock that shows `wall`, with the memory sizes of `layout`.
    pub fn new(wall: WallClock, layout: Layout) -> Cmos {
        Cmos {
            wall,
            offset: 0,
            setting: None,
            index: 0,
            memory: memory_sizes(layout),
            a: REGISTER_A_RESET,
            b: calendar::HOURS_24,
            flags: 0,
            settled: VirtualTime(0),
            irq_high: false,
        }
    }

    /// Seconds since 1970 on the guest's clock.
    fn seconds(&self, at: VirtualTime) -> i64 {
        ((self.wall.at(at) / NS_PER_SECOND) as i64).saturating_add(self.offset)
    }

    /// Virtual time at which the second after `at`'s begins.
    fn next_second(&self, at: VirtualTime) -> VirtualTime {
        at.saturating_add_ns(NS_PER_SECOND - self.wall.at(at) % NS_PER_SECOND)
    }

    fn fields(&self, at: VirtualTime) -> Fields {
        self.setting.unwrap_or_else(|| fields_of(self.seconds(at), self.b))
    }

    fn alarm(&self) -> [u8; 3] {
        [self.memory[1], self.memory[3], self.memory[5]]
    }

    /// Crystal ticks of a periodic interrupt's period; `None` if it is off (MC146818, table 5).
    fn period(&self) -> Option<u64> {
        match self.a & 15 {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Brings the flags up to `now`.
    fn settle(&mut self, now: VirtualTime) {
        let (then, now) = (self.settled, now.max(self.settled));
        self.settled = now;
        if let Some(period) = self.period()
            && ticks_at(then, CRYSTAL_HZ) / period != ticks_at(now, CRYSTAL_HZ) / period
        {
            self.flags |= PERIODIC;
        }
        let (from, to) = (self.seconds(then), self.seconds(now));
        if self.b & SET == 0 && from != to {
            self.flags |= UPDATE;
            // An alarm matches at least once a day or never.
            let first = (from + 1).max(to.saturating_sub(calendar::SECONDS_PER_DAY));
            let mut passed = first..=to;
            if self.flags & ALARM == 0
                && passed.any(|second| alarm_matches(self.alarm(), &fields_of(second, self.b)))
            {
                self.flags |= ALARM;
            }
        }
    }

    /// After a change: drives the line and arms what may change it next.
    fn update(&mut self, cx: &mut DeviceContext<'_>) {
        let high = self.flags & self.b & INTERRUPTS != 0;
        if high != self.irq_high {
            self.irq_high = high;
            cx.effects.line(ports::CMOS_IRQ, high);
        }
        let wanted = if high { 0 } else { self.b & INTERRUPTS };
        let periodic = self.period().filter(|_| wanted & PERIODIC != 0).and_then(|period| {
            let tick = (ticks_at(cx.now, CRYSTAL_HZ) / period + 1) * period;
            time_of_tick(tick, CRYSTAL_HZ)
        });
        let second =
            (wanted & (ALARM | UPDATE) != 0 && self.b & SET == 0).then(|| self.next_second(cx.now));
        cx.effects.timer(TIMER_PERIODIC, periodic);
        cx.effects.timer(TIMER_SECOND, second);
    }

    /// Where a register is in [`Fields`].
    fn field_of(index: u8) -> Option<usize> {
        match index {
            0 | 2 | 4 => Some(usize::from(index / 2)),
            6..=9 => Some(usize::from(index - 3)),
            ports::CENTURY_REGISTER => Some(7),
            _ => None,
        }
    }

    fn read_data(&mut self, cx: &mut DeviceContext<'_>) -> u8 {
        if let Some(field) = Cmos::field_of(self.index) {
            return self.fields(cx.now)[field];
        }
        match self.index {
            REGISTER_A => self.a | self.update_in_progress(cx.now),
            REGISTER_B => self.b,
            REGISTER_C => {
                self.settle(cx.now);
                let request = if self.flags & self.b & INTERRUPTS != 0 { REQUEST } else { 0 };
                let value = self.flags | request;
                self.flags = 0;
                if self.b & INTERRUPTS != 0 || self.irq_high {
                    self.update(cx);
                }
                value
            }
            REGISTER_D => VALID,
            index => self.memory[usize::from(index & 0x7f)],
        }
    }

    fn update_in_progress(&self, now: VirtualTime) -> u8 {
        let to_update = self.next_second(now).ns_since(now);
        let soon = self.b & SET == 0 && to_update <= UPDATE_WARNING_NS;
        if soon { UPDATE_IN_PROGRESS } else { 0 }
    }

    fn write_data(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        self.settle(cx.now);
        if let Some(field) = Cmos::field_of(self.index) {
            self.set_field(cx.now, field, value);
            return;
        }
        match self.index {
            REGISTER_A => {
                self.a = value & !UPDATE_IN_PROGRESS;
                self.update(cx);
            }
            REGISTER_B => {
                self.write_b(cx.now, value);
                self.update(cx);
            }
            REGISTER_C | REGISTER_D => {}
            index => self.memory[usize::from(index & 0x7f)] = value,
        }
    }

    fn set_field(&mut self, now: VirtualTime, field: usize, value: u8) {
        let mut fields = self.fields(now);
        fields[field] = value;
        if self.setting.is_some() {
            self.setting = Some(fields);
        } else {
            self.set_clock(now, fields);
        }
    }

    fn set_clock(&mut self, now: VirtualTime, fields: Fields) {
        let base = self.seconds(now).saturating_sub(self.offset);
        self.offset = seconds_of(fields, self.b).saturating_sub(base);
    }

    fn write_b(&mut self, now: VirtualTime, value: u8) {
        let (was, is) = (self.b & SET != 0, value & SET != 0);
        if is && !was {
            self.setting = Some(self.fields(now));
        }
        // SET clears the update interrupt (MC146818, register B).
        self.b = if is { value & !UPDATE } else { value };
        if was
            && !is
            && let Some(fields) = self.setting.take()
        {
            self.set_clock(now, fields);
        }
    }
}

/// The bytes in which firmware leaves the size of memory.
fn memory_sizes(layout: Layout) -> [u8; 128] {
    let mut memory = [0; 128];
    let mut put = |at: usize, size: u64, unit: u64, len: usize| {
        let count = (size / unit).min((1 << (8 * len)) - 1);
        memory[at..at + len].copy_from_slice(&count.to_le_bytes()[..len]);
    };
    let (kib, mib) = (1 << 10, 1 << 20);
    put(0x15, layout.low_size.min(640 * kib), kib, 2);
    put(0x17, layout.low_size.saturating_sub(mib), kib, 2);
    put(0x30, layout.low_size.saturating_sub(mib), kib, 2);
    put(0x34, layout.low_size.saturating_sub(16 * mib), 64 * kib, 2);
    put(0x5b, layout.high_size, 64 * kib, 3);
    memory
}

impl Device for Cmos {
    fn name(&self) -> &'static str {
        "cmos"
    }

    /// The battery keeps time and memory; interrupts are disabled.
    fn reset(&mut self) {
        self.b &= !INTERRUPTS;
        self.flags = 0;
        self.index = 0;
        self.irq_high = false;
    }

    fn ports(&self) -> &[PortRange] {
        const { &[ports::range(ports::CMOS, 2)] }
    }

    fn port_read(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8) -> u32 {
        u32::from(if port == ports::CMOS { 0xff } else { self.read_data(cx) })
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8, value: u32) {
        if port == ports::CMOS {
            // Bit 7 masks NMIs, of which there are none.
            self.index = value as u8 & 0x7f;
        } else {
            self.write_data(cx, value as u8);
        }
    }

    fn timer_fired(&mut self, cx: &mut DeviceContext<'_>, _timer: u32) {
        self.settle(cx.now);
        self.update(cx);
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let &Cmos { wall, offset, setting, index, memory, a, b, flags, settled, irq_high } = self;
        let saved = CmosSaved {
            wall,
            offset,
            setting,
            index,
            memory: memory.to_vec(),
            a,
            b,
            flags,
            settled_ns: settled.0,
            irq_high,
        };
        sections.save(instance, &saved);
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let CmosSaved { wall, offset, setting, index, memory, a, b, flags, settled_ns, irq_high } =
            sections.restore(instance)?;
        let memory = memory.try_into().map_err(|memory: Vec<u8>| RestoreError::Malformed {
            name: CmosSaved::NAME.to_owned(),
            detail: format!("{} bytes of memory, not 128", memory.len()),
        })?;
        let (index, settled) = (index & 0x7f, VirtualTime(settled_ns));
        *self = Cmos { wall, offset, setting, index, memory, a, b, flags, settled, irq_high };
        Ok(())
    }
}

/// Saved form of [`Cmos`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct CmosSaved {
    /// Wall clock at virtual time zero.
    #[n(0)]
    pub wall: WallClock,
    /// Seconds the guest's clock is ahead of it.
    #[n(1)]
    pub offset: i64,
    /// Time registers while the guest sets them.
    #[n(2)]
    pub setting: Option<[u8; 8]>,
    /// Index register.
    #[n(3)]
    pub index: u8,
    /// The 128 bytes.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub memory: Vec<u8>,
    /// Register A.
    #[n(5)]
    pub a: u8,
    /// Register B.
    #[n(6)]
    pub b: u8,
    /// Register C but for its request bit.
    #[n(7)]
    pub flags: u8,
    /// When the flags were last brought up to date, virtual ns.
    #[n(8)]
    pub settled_ns: u64,
    /// Level of IRQ 8 as last driven.
    #[n(9)]
    pub irq_high: bool,
}

impl Saved for CmosSaved {
    const NAME: &'static str = "cmos";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests;
