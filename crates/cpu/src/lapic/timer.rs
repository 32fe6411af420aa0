//! The timer: a counter of the bus clock, or a deadline of the TSC (SDM vol. 3, 11.5.4).

use minicbor::{Decode, Encode};
use types::VirtualTime;

/// Frequency of the clock that the divide configuration divides, Hz: a tick is a virtual
/// nanosecond.
pub const BUS_HZ: u64 = 1_000_000_000;

/// LVT timer bits 18:17 (SDM figure 11-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub fn of(entry: u32) -> Mode {
        match entry >> 17 & 3 {
            1 => Mode::Periodic,
            2 => Mode::TscDeadline,
            _ => Mode::OneShot,
        }
    }
}

/// The timer's registers and what it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timer {
    initial: u32,
    divide: u8,
    /// The count as it was at `left_at`; 0 when stopped.
    left: u32,
    left_at: VirtualTime,
    tsc_deadline: u64,
    /// Virtual time of the TSC deadline while it is armed and before the end of time.
    deadline: Option<VirtualTime>,
}

impl Timer {
    /// log2 of nanoseconds per count (SDM figure 11-10).
    fn shift(&self) -> u32 {
        let bits = u32::from(self.divide & 3 | (self.divide & 8) >> 1);
        (bits + 1) & 7
    }

    fn ns(&self, count: u32) -> u64 {
        u64::from(count) << self.shift()
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    pub fn divide(&self) -> u8 {
        self.divide
    }

    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// When the timer next expires.
    pub fn expiry(&self, mode: Mode) -> Option<VirtualTime> {
        if mode == Mode::TscDeadline {
            return self.deadline;
        }
        let at = self.left_at.0.checked_add(self.ns(self.left))?;
        (self.left != 0).then_some(VirtualTime(at))
    }

    /// Expires if it is time to, and says whether it did. Periods missed are one.
    pub fn expire(&mut self, now: VirtualTime, mode: Mode) -> bool {
        let Some(at) = self.expiry(mode).filter(|&at| at <= now) else { return false };
        match mode {
            Mode::TscDeadline => self.disarm(),
            Mode::Periodic if self.initial != 0 => {
                let period = self.ns(self.initial);
                self.left = self.initial;
                self.left_at = at.saturating_add_ns(now.ns_since(at) / period * period);
            }
            _ => self.left = 0,
        }
        true
    }

    /// The current-count register.
    pub fn count(&self, now: VirtualTime, mode: Mode) -> u32 {
        if mode == Mode::TscDeadline || self.left == 0 {
            return 0;
        }
        let counted = now.ns_since(self.left_at) >> self.shift();
        match counted.checked_sub(u64::from(self.left)) {
            None => self.left - counted as u32,
            Some(past) if mode == Mode::Periodic && self.initial != 0 => {
                self.initial - (past % u64::from(self.initial)) as u32
            }
            Some(_) => 0,
        }
    }

    /// Writes the initial count, which starts the timer; 0 stops it.
    pub fn start(&mut self, now: VirtualTime, initial: u32) {
        self.initial = initial;
        self.left = initial;
        self.left_at = now;
    }

    /// Stops whatever runs, as a change to or from TSC-deadline mode does.
    pub fn stop(&mut self) {
        *self = Timer { divide: self.divide, ..Timer::default() };
    }

    /// Writes the divide configuration; the count goes on from where it is.
    pub fn set_divide(&mut self, now: VirtualTime, mode: Mode, divide: u8) {
        self.left = self.count(now, mode);
        self.left_at = now;
        self.divide = divide & 0x0b;
    }

    fn disarm(&mut self) {
        self.tsc_deadline = 0;
        self.deadline = None;
    }

    /// Arms the deadline, in TSC units; 0 disarms.
    pub fn set_tsc_deadline(&mut self, now: VirtualTime, deadline: u64, tsc_offset: u64) {
        let tsc = now.0.wrapping_add(tsc_offset);
        self.tsc_deadline = deadline;
        self.deadline = match deadline {
            0 => None,
            _ => now.0.checked_add(deadline.saturating_sub(tsc)).map(VirtualTime),
        };
    }

    pub fn save(&self) -> TimerSaved {
        let &Timer { initial, divide, left, left_at, tsc_deadline, deadline } = self;
        TimerSaved {
            initial,
            divide,
            left,
            left_at_ns: left_at.0,
            tsc_deadline,
            deadline_ns: deadline.map(|at| at.0),
        }
    }

    pub fn restore(saved: TimerSaved) -> Timer {
        let TimerSaved { initial, divide, left, left_at_ns, tsc_deadline, deadline_ns } = saved;
        Timer {
            initial,
            divide: divide & 0x0b,
            left,
            left_at: VirtualTime(left_at_ns),
            tsc_deadline,
            deadline: deadline_ns.map(VirtualTime),
        }
    }
}

/// Saved form of the timer.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct TimerSaved {
    /// Initial count.
    #[n(0)]
    pub initial: u32,
    /// Divide configuration.
    #[n(1)]
    pub divide: u8,
    /// The count at `left_at_ns`, 0 when stopped.
    #[n(2)]
    pub left: u32,
    /// Virtual time of `left`.
    #[n(3)]
    pub left_at_ns: u64,
    /// IA32_TSC_DEADLINE.
    #[n(4)]
    pub tsc_deadline: u64,
    /// Virtual time of the TSC deadline.
    #[n(5)]
    pub deadline_ns: Option<u64>,
}
