//! Armed timers of all devices, in virtual time.

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use types::VirtualTime;

/// Whose timer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct TimerId {
    /// Number of the device on the board.
    #[n(0)]
    pub source: u32,
    /// Number private to the device.
    #[n(1)]
    pub timer: u32,
}

/// The queue: few entries, so a list ordered by (time, id).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Timers {
    #[n(0)]
    armed: Vec<(u64, TimerId)>,
}

impl Timers {
    /// Arms `id` for `at`, or disarms it.
    pub fn set(&mut self, id: TimerId, at: Option<VirtualTime>) {
        self.armed.retain(|(_, other)| *other != id);
        if let Some(at) = at.filter(|&at| at != VirtualTime::MAX) {
            self.armed.push((at.0, id));
            self.armed.sort_unstable();
        }
    }

    /// Whether [`Timers::set`] could have made this queue: in order, each timer once.
    pub(crate) fn is_valid(&self) -> bool {
        let ids: BTreeSet<TimerId> = self.armed.iter().map(|(_, id)| *id).collect();
        self.armed.is_sorted() && ids.len() == self.armed.len()
    }

    /// When the next fires.
    pub fn deadline(&self) -> Option<VirtualTime> {
        self.armed.first().map(|(at, _)| VirtualTime(*at))
    }

    /// Removes and returns the next that fires at `now` or before.
    pub fn pop_due(&mut self, now: VirtualTime) -> Option<TimerId> {
        let (at, id) = *self.armed.first()?;
        (at <= now.0).then(|| {
            self.armed.remove(0);
            id
        })
    }

    /// Disarms all.
    pub fn clear(&mut self) {
        self.armed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_id() {
        let id = |source, timer| TimerId { source, timer };
        let mut timers = Timers::default();
        timers.set(id(2, 0), Some(VirtualTime(50)));
        timers.set(id(1, 1), Some(VirtualTime(50)));
        timers.set(id(1, 0), Some(VirtualTime(70)));
        timers.set(id(1, 0), Some(VirtualTime(10)));
        timers.set(id(9, 9), Some(VirtualTime::MAX));
        assert_eq!(timers.pop_due(VirtualTime(9)), None);
        assert_eq!(timers.pop_due(VirtualTime(60)), Some(id(1, 0)));
        assert_eq!(timers.pop_due(VirtualTime(60)), Some(id(1, 1)));
        assert_eq!(timers.pop_due(VirtualTime(60)), Some(id(2, 0)));
        assert_eq!(timers.deadline(), None);
    }
}
