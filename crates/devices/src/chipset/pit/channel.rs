//! One channel of the 8254: a count, its output and its latches as functions of the input tick.

use minicbor::{Decode, Encode};

/// Whether the counting element counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// No count loaded, or modes 1 and 5 before their trigger. The output is the mode's idle one.
    Idle,
    /// Since this tick.
    Since(u64),
    /// Stopped by the gate after so many ticks.
    Held(u64),
}

/// A channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Channel {
    /// 0 to 5.
    mode: u8,
    /// 1 low byte, 2 high byte, 3 low then high.
    access: u8,
    bcd: bool,
    gate: bool,
    /// As last written by the guest.
    reload: u16,
    /// Ticks of the count being counted; 1 or more.
    period: u64,
    run: Run,
    /// The low byte of a count whose high byte is due.
    written_low: Option<u8>,
    /// The next read is of the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    /// A channel never programmed, output high.
    pub fn new(gate: bool) -> Channel {
        Channel {
            mode: 3,
            access: 3,
            bcd: false,
            gate,
            reload: 0,
            period: 1 << 16,
            run: Run::Idle,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// The low six bits of a control word for this channel (8254, figure 7); access 0 latches.
    pub fn write_control(&mut self, tick: u64, word: u8) {
        let access = (word >> 4) & 3;
        if access == 0 {
            self.latch_count(tick);
            return;
        }
        let mode = (word >> 1) & 7;
        *self = Channel {
            access,
            // Modes 6 and 7 are 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: word & 1 != 0,
            reload: self.reload,
            ..Channel::new(self.gate)
        };
    }

    /// The read-back command.
    pub fn read_back(&mut self, tick: u64, count: bool, status: bool) {
        if count {
            self.latch_count(tick);
        }
        if status && self.latched_status.is_none() {
            let output = u8::from(self.output(tick)) << 7;
            let null_count = u8::from(self.run == Run::Idle) << 6;
            let programmed = (self.access << 4) | (self.mode << 1) | u8::from(self.bcd);
            self.latched_status = Some(output | null_count | programmed);
        }
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(tick));
            self.read_high = false;
        }
    }

    /// Reads the data port.
    pub fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(tick)).to_le_bytes();
        let reads_high = self.access == 2 || (self.access == 3 && self.read_high);
        self.read_high = self.access == 3 && !self.read_high;
        if !self.read_high {
            self.latched_count = None;
        }
        if reads_high { high } else { low }
    }

    /// Writes the data port; returns whether that loaded a count.
    pub fn write(&mut self, tick: u64, value: u8) -> bool {
        let reload = match (self.access, self.written_low.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, None) => {
                self.written_low = Some(value);
                return false;
            }
            (_, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.reload = reload;
        // Modes 1 and 5 load at their trigger.
        if !matches!(self.mode, 1 | 5) {
            self.period = self.ticks_of(reload);
            self.run = if self.gate { Run::Since(tick) } else { Run::Held(0) };
        }
        true
    }

    /// Drives the gate input (8254, figure 21).
    pub fn set_gate(&mut self, tick: u64, gate: bool) {
        let rose = gate && !self.gate;
        let fell = !gate && self.gate;
        self.gate = gate;
        self.run = match (self.mode, self.run) {
            (1 | 5, _) if rose => {
                self.period = self.ticks_of(self.reload);
                Run::Since(tick)
            }
            (0 | 4, Run::Held(elapsed)) if rose => Run::Since(tick.wrapping_sub(elapsed)),
            (0 | 4, Run::Since(since)) if fell => Run::Held(tick.wrapping_sub(since)),
            (2 | 3, Run::Held(_)) if rose => Run::Since(tick),
            (2 | 3, Run::Since(_)) if fell => Run::Held(0),
            (_, run) => run,
        };
    }

    /// Ticks a written count stands for: 0 is the largest.
    fn ticks_of(&self, reload: u16) -> u64 {
        if !self.bcd {
            return if reload == 0 { 1 << 16 } else { u64::from(reload) };
        }
        let digit = |place: u32| u64::from((reload >> (4 * place)) & 15);
        let ticks = digit(0) + 10 * digit(1) + 100 * digit(2) + 1000 * digit(3);
        if ticks == 0 { 10_000 } else { ticks }
    }

    fn elapsed(&self, tick: u64) -> Option<u64> {
        match self.run {
            Run::Idle => None,
            Run::Since(since) => Some(tick.wrapping_sub(since)),
            Run::Held(elapsed) => Some(elapsed),
        }
    }

    /// The counting element as the guest reads it.
    fn count(&self, tick: u64) -> u16 {
        let (period, elapsed) = (self.period, self.elapsed(tick).unwrap_or(0));
        let modulus = if self.bcd { 10_000 } else { 1 << 16 };
        let left = match self.mode {
            2 => period - elapsed % period,
            3 => period - 2 * (elapsed % period) % period,
            // Counts on below zero.
            _ => (period + modulus - elapsed % modulus) % modulus,
        };
        if !self.bcd {
            return left as u16;
        }
        let digit = |place: u32| ((left / 10u64.pow(place) % 10) << (4 * place)) as u16;
        digit(0) | digit(1) | digit(2) | digit(3)
    }

    /// The output pin.
    pub fn output(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else { return self.mode != 0 };
        let held = matches!(self.run, Run::Held(_));
        match self.mode {
            0 | 1 => elapsed >= self.period,
            2 => held || elapsed % self.period != self.period - 1,
            3 => held || elapsed % self.period < self.period.div_ceil(2),
            _ => elapsed != self.period,
        }
    }

    /// The first tick after `tick` at which the output rises.
    pub fn next_rise(&self, tick: u64) -> Option<u64> {
        let Run::Since(since) = self.run else { return None };
        let elapsed = tick.wrapping_sub(since);
        let at = match self.mode {
            0 | 1 => self.period,
            2 | 3 => (elapsed / self.period).checked_add(1)?.checked_mul(self.period)?,
            _ => self.period + 1,
        };
        (elapsed < at).then(|| since.checked_add(at)).flatten()
    }

    pub fn save(&self) -> ChannelSaved {
        let &Channel {
            mode,
            access,
            bcd,
            gate,
            reload,
            period,
            run,
            written_low,
            read_high,
            latched_count,
            latched_status,
        } = self;
        let (since, held) = match run {
            Run::Idle => (None, None),
            Run::Since(tick) => (Some(tick), None),
            Run::Held(elapsed) => (None, Some(elapsed)),
        };
        ChannelSaved {
            mode,
            access,
            bcd,
            gate,
            reload,
            period,
            since,
            held,
            written_low,
            read_high,
            latched_count,
            latched_status,
        }
    }

    pub fn restore(saved: ChannelSaved) -> Channel {
        let ChannelSaved {
            mode,
            access,
            bcd,
            gate,
            reload,
            period,
            since,
            held,
            written_low,
            read_high,
            latched_count,
            latched_status,
        } = saved;
        let run = match (since, held) {
            (Some(tick), _) => Run::Since(tick),
            (None, Some(elapsed)) => Run::Held(elapsed),
            (None, None) => Run::Idle,
        };
        Channel {
            mode: mode.min(5),
            access: access.clamp(1, 3),
            bcd,
            gate,
            reload,
            period: period.clamp(1, 1 << 16),
            run,
            written_low,
            read_high,
            latched_count,
            latched_status,
        }
    }
}

/// Saved form of one channel; ticks are of [`super::PIT_HZ`] since virtual time zero.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChannelSaved {
    /// Mode, 0 to 5.
    #[n(0)]
    pub mode: u8,
    /// Access, 1 to 3.
    #[n(1)]
    pub access: u8,
    /// Counts in BCD.
    #[n(2)]
    pub bcd: bool,
    /// Gate input.
    #[n(3)]
    pub gate: bool,
    /// Count last written.
    #[n(4)]
    pub reload: u16,
    /// Ticks of the count being counted.
    #[n(5)]
    pub period: u64,
    /// Tick at which counting began.
    #[n(6)]
    pub since: Option<u64>,
    /// Ticks counted when the gate stopped it.
    #[n(7)]
    pub held: Option<u64>,
    /// Low byte of a half-written count.
    #[n(8)]
    pub written_low: Option<u8>,
    /// Next read is of the high byte.
    #[n(9)]
    pub read_high: bool,
    /// Latched count.
    #[n(10)]
    pub latched_count: Option<u16>,
    /// Latched status.
    #[n(11)]
    pub latched_status: Option<u8>,
}
