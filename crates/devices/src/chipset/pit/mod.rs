//! The 8254 interval timer and port 0x61 (Intel 8254 data sheet; port 0x61 as in the ICH data
//! sheets).
//!
//! Channel 0's output is IRQ 0: its rising edges are timers, one armed at a time. Channel 1
//! (refresh) only counts. Channel 2's gate is port 0x61 bit 0 and its output bit 5.

mod channel;

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use super::ports;
use super::rate::{ticks_at, time_of_tick};
use crate::{Device, DeviceContext, PortRange};
use channel::Channel;
pub use channel::ChannelSaved;

/// Input frequency, Hz (8254 data sheet; a third of the NTSC colour subcarrier).
pub const PIT_HZ: u64 = 1_193_182;

/// Half a period of the refresh bit, ns (ICH data sheet: toggles every 15.085 µs).
const REFRESH_NS: u64 = 15_085;

/// Port 0x61: bits the guest writes (gate of channel 2, speaker, parity and I/O check masks).
const CONTROL_WRITABLE: u8 = 0x0f;
/// Port 0x61: gate of channel 2.
const CONTROL_GATE: u8 = 1 << 0;

/// The timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pit {
    channels: [Channel; 3],
    control: u8,
    irq_high: bool,
    /// Tick of channel 0's next rising edge.
    next_edge: Option<u64>,
}

impl Default for Pit {
    fn default() -> Pit {
        Pit {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            control: 0,
            irq_high: false,
            next_edge: None,
        }
    }
}

impl Pit {
    fn write_control_word(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        let tick = ticks_at(cx.now, PIT_HZ);
        match value >> 6 {
            3 => {
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & (2 << index) != 0 {
                        channel.read_back(tick, value & 0x20 == 0, value & 0x10 == 0);
                    }
                }
            }
            select => {
                self.channels[usize::from(select)].write_control(tick, value & 0x3f);
                if select == 0 && value & 0x30 != 0 {
                    self.follow_output(cx);
                }
            }
        }
    }

    /// After channel 0 was programmed: drives the line and arms the next edge.
    fn follow_output(&mut self, cx: &mut DeviceContext<'_>) {
        let tick = ticks_at(cx.now, PIT_HZ);
        self.set_irq(cx, self.channels[0].output(tick));
        self.arm(cx);
    }

    fn set_irq(&mut self, cx: &mut DeviceContext<'_>, high: bool) {
        if self.irq_high != high {
            self.irq_high = high;
            cx.effects.line(ports::PIT_IRQ, high);
        }
    }

    fn arm(&mut self, cx: &mut DeviceContext<'_>) {
        self.next_edge = self.channels[0].next_rise(ticks_at(cx.now, PIT_HZ));
        cx.effects.timer(0, self.next_edge.and_then(|tick| time_of_tick(tick, PIT_HZ)));
    }

    fn read_control(&self, cx: &DeviceContext<'_>) -> u8 {
        let refresh = (cx.now.0 / REFRESH_NS) as u8 & 1;
        let output = u8::from(self.channels[2].output(ticks_at(cx.now, PIT_HZ)));
        self.control | (refresh << 4) | (output << 5)
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        "pit"
    }

    fn reset(&mut self) {
        *self = Pit::default();
    }

    fn ports(&self) -> &[PortRange] {
        const { &[ports::range(ports::PIT, 4), ports::range(ports::SYSTEM_CONTROL_B, 1)] }
    }

    fn port_read(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8) -> u32 {
        let tick = ticks_at(cx.now, PIT_HZ);
        u32::from(match port {
            ports::SYSTEM_CONTROL_B => self.read_control(cx),
            // The control word cannot be read.
            0x43 => 0xff,
            _ => self.channels[usize::from(port & 3) % 3].read(tick),
        })
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8, value: u32) {
        let (tick, value) = (ticks_at(cx.now, PIT_HZ), value as u8);
        match port {
            ports::SYSTEM_CONTROL_B => {
                self.control = value & CONTROL_WRITABLE;
                self.channels[2].set_gate(tick, value & CONTROL_GATE != 0);
            }
            0x43 => self.write_control_word(cx, value),
            ports::PIT => {
                if self.channels[0].write(tick, value) {
                    self.follow_output(cx);
                }
            }
            _ => _ = self.channels[usize::from(port & 3) % 3].write(tick, value),
        }
    }

    fn timer_fired(&mut self, cx: &mut DeviceContext<'_>, _timer: u32) {
        if self.next_edge.is_some_and(|edge| ticks_at(cx.now, PIT_HZ) >= edge) {
            // The low part of a periodic output is not a timer of its own.
            self.set_irq(cx, false);
            self.set_irq(cx, true);
            self.arm(cx);
        }
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let Pit { channels, control, irq_high, next_edge } = self;
        let saved = PitSaved {
            channels: channels.each_ref().map(Channel::save),
            control: *control,
            irq_high: *irq_high,
            next_edge: *next_edge,
        };
        sections.save(instance, &saved);
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let PitSaved { channels, control, irq_high, next_edge } = sections.restore(instance)?;
        *self = Pit { channels: channels.map(Channel::restore), control, irq_high, next_edge };
        Ok(())
    }
}

/// Saved form of [`Pit`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct PitSaved {
    /// Channels 0 to 2.
    #[n(0)]
    pub channels: [ChannelSaved; 3],
    /// The writable bits of port 0x61.
    #[n(1)]
    pub control: u8,
    /// Level of IRQ 0 as last driven.
    #[n(2)]
    pub irq_high: bool,
    /// Tick of the next rising edge of channel 0.
    #[n(3)]
    pub next_edge: Option<u64>,
}

impl Saved for PitSaved {
    const NAME: &'static str = "pit";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use types::VirtualTime;

    use super::super::testing::{Bench, fuzz};
    use super::*;

    fn at_tick(bench: &mut Bench, tick: u64) {
        bench.now = time_of_tick(tick, PIT_HZ).unwrap();
    }

    fn program(bench: &mut Bench, pit: &mut Pit, control: u8, count: u16) {
        bench.write(pit, 0x43, control);
        let port = 0x40 + u16::from(control >> 6);
        bench.write(pit, port, count as u8);
        bench.write(pit, port, (count >> 8) as u8);
    }

    fn counter(bench: &mut Bench, pit: &mut Pit, port: u16) -> u16 {
        u16::from_le_bytes([bench.read(pit, port), bench.read(pit, port)])
    }

    #[test]
    fn rate_generator_interrupts_every_period() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        program(&mut bench, &mut pit, 0x34, 1193);
        for period in 1..5 {
            let at = bench.armed(0).unwrap();
            assert_eq!(at, time_of_tick(1193 * period, PIT_HZ).unwrap());
            bench.now = at;
            bench.with(|cx| pit.timer_fired(cx, 0));
            assert!(pit.irq_high);
        }
    }

    #[test]
    fn late_timer_makes_one_edge_and_skips_to_the_next_period() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        program(&mut bench, &mut pit, 0x34, 1000);
        bench.effects();
        at_tick(&mut bench, 5500);
        bench.with(|cx| pit.timer_fired(cx, 0));
        assert_eq!(bench.armed(0), time_of_tick(6000, PIT_HZ));
    }

    #[test]
    fn one_shot_modes_interrupt_once() {
        for (control, ticks) in [(0x30, 500), (0x38, 501)] {
            let (mut bench, mut pit) = (Bench::new(), Pit::default());
            program(&mut bench, &mut pit, control, 500);
            bench.now = bench.armed(0).unwrap();
            assert_eq!(bench.now, time_of_tick(ticks, PIT_HZ).unwrap());
            bench.with(|cx| pit.timer_fired(cx, 0));
            assert!(pit.irq_high);
            assert_eq!(bench.armed(0), None);
        }
    }

    #[test]
    fn timer_fired_early_does_nothing() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        program(&mut bench, &mut pit, 0x30, 500);
        bench.effects();
        bench.with(|cx| pit.timer_fired(cx, 0));
        assert_eq!(bench.effects(), []);
    }

    #[test]
    fn channel_2_counts_while_gated_and_port_61_shows_its_output() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        bench.write(&mut pit, 0x61, 0x01);
        program(&mut bench, &mut pit, 0xb0, 1000);
        at_tick(&mut bench, 400);
        assert_eq!(counter(&mut bench, &mut pit, 0x42), 600);
        assert_eq!(bench.read(&mut pit, 0x61) & 0x21, 0x01);
        bench.write(&mut pit, 0x61, 0x00);
        at_tick(&mut bench, 5000);
        assert_eq!(counter(&mut bench, &mut pit, 0x42), 600, "held");
        bench.write(&mut pit, 0x61, 0x01);
        at_tick(&mut bench, 5599);
        assert_eq!(bench.read(&mut pit, 0x61) & 0x20, 0);
        at_tick(&mut bench, 5600);
        assert_eq!(bench.read(&mut pit, 0x61) & 0x20, 0x20);
    }

    #[test]
    fn latch_holds_the_count_until_read() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        program(&mut bench, &mut pit, 0x34, 10_000);
        at_tick(&mut bench, 1);
        bench.write(&mut pit, 0x43, 0x00);
        at_tick(&mut bench, 100);
        assert_eq!(counter(&mut bench, &mut pit, 0x40), 9999);
        assert_eq!(counter(&mut bench, &mut pit, 0x40), 9900);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        program(&mut bench, &mut pit, 0x36, 10_000);
        at_tick(&mut bench, 10);
        bench.write(&mut pit, 0x43, 0xc2);
        assert_eq!(bench.read(&mut pit, 0x40), 0xb6);
        assert_eq!(counter(&mut bench, &mut pit, 0x40), 9980, "square wave counts by two");
    }

    #[test]
    fn bcd_counts_in_tens() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        program(&mut bench, &mut pit, 0x35, 0x1000);
        at_tick(&mut bench, 1);
        assert_eq!(counter(&mut bench, &mut pit, 0x40), 0x0999);
    }

    #[test]
    fn refresh_bit_toggles() {
        let (mut bench, mut pit) = (Bench::new(), Pit::default());
        let before = bench.read(&mut pit, 0x61) & 0x10;
        bench.now = VirtualTime(15_085);
        assert_ne!(bench.read(&mut pit, 0x61) & 0x10, before);
    }

    #[test]
    fn hostile_guest_is_survived() {
        fuzz(Pit::default, 6, 100_000);
    }
}
