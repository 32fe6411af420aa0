//! Repeated TCP acknowledgements of the guest, of which passt gets few.
//!
//! When passt's socket is full it loses frames, and the guest acknowledges the same byte again for
//! each frame behind the gap. To passt each of them says to send the whole window once more, which
//! fills the socket again: what arrives is the same megabyte, for ever. One is enough.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::segment::{ACK, Segment};

/// Flows remembered.
const FLOWS_MAX: usize = 128;
/// A repetition this long after the last one that passed does so, too: what was sent again may have
/// been lost again.
const PATIENCE: Duration = Duration::from_millis(100);

/// What tells an acknowledgement from the next: addresses and ports; sequence and acknowledgement
/// number; window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Acknowledgement {
    flow: [u8; 12],
    numbers: [u8; 8],
    window: [u8; 2],
}

/// The last acknowledgement of each flow.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// The flow used last is at the end. With when a repetition passed.
    flows: VecDeque<(Acknowledgement, Option<Instant>)>,
}

impl Repeats {
    /// Whether `frame`, which the guest sends at `now`, is a repetition to be left out.
    pub fn swallow(&mut self, frame: &[u8], now: Instant) -> bool {
        let Some(segment) = Segment::of(frame) else { return false };
        let Some(ack) = parse(&segment) else { return false };
        let known = self.flows.iter().rposition(|(known, _)| known.flow == ack.flow);
        let before = known.and_then(|index| self.flows.remove(index));
        if self.flows.len() >= FLOWS_MAX {
            self.flows.pop_front();
        }
        let (passed, swallow) = match before {
            Some((known, passed)) if known == ack && !segment.has_data() => match passed {
                Some(at) if now.saturating_duration_since(at) < PATIENCE => (passed, true),
                _ => (Some(now), false),
            },
            _ => (None, false),
        };
        self.flows.push_back((ack, passed));
        swallow
    }
}

/// The acknowledgement that `segment` is, if it has no flag but ACK.
fn parse(segment: &Segment<'_>) -> Option<Acknowledgement> {
    let Segment { ip, tcp } = segment;
    if segment.flags() != ACK {
        return None;
    }
    let mut flow = [0; 12];
    flow[..8].copy_from_slice(&ip[12..20]);
    flow[8..].copy_from_slice(&tcp[..4]);
    let numbers = tcp[4..12].try_into().ok()?;
    Some(Acknowledgement { flow, numbers, window: [tcp[14], tcp[15]] })
}

#[cfg(test)]
mod tests {
    use super::super::segment::{ETHERNET_SIZE, IP_SIZE, PROTOCOL_TCP, TCP_SIZE};
    use super::*;

    /// A segment from `port` that acknowledges `ack`, with `len` bytes of data.
    fn segment(port: u16, ack: u32, len: usize) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_SIZE + IP_SIZE + TCP_SIZE + len];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&((IP_SIZE + TCP_SIZE + len) as u16).to_be_bytes());
        frame[23] = PROTOCOL_TCP;
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame[42..46].copy_from_slice(&ack.to_be_bytes());
        frame[46] = 5 << 4;
        frame[47] = ACK;
        frame
    }

    #[test]
    fn one_repetition_passes_in_a_while() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let mut swallowed = |port, ack, len, ms| {
            repeats.swallow(&segment(port, ack, len), start + Duration::from_millis(ms))
        };
        assert!(!swallowed(1, 5, 0, 0));
        assert!(!swallowed(1, 5, 0, 1));
        assert!(!swallowed(2, 5, 0, 1), "another flow");
        assert!(swallowed(1, 5, 0, 2));
        assert!(swallowed(1, 5, 0, 100));
        assert!(!swallowed(1, 5, 0, 101));
        assert!(swallowed(1, 5, 0, 102));
        assert!(!swallowed(1, 5, 3, 103), "data is not a repetition");
        assert!(!swallowed(1, 6, 0, 103));
        assert!(!swallowed(1, 6, 0, 103));
        assert!(swallowed(1, 6, 0, 103));
    }

    #[test]
    fn what_is_no_acknowledgement_passes_and_flows_are_bounded() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let whole = segment(1, 5, 0);
        for len in 0..whole.len() {
            assert!(!repeats.swallow(&whole[..len], now), "{len} bytes");
        }
        for flags in [0x11, 0x12, 0x14, 0x18, 0x02] {
            let mut frame = whole.clone();
            frame[47] = flags;
            assert!((0..3).all(|_| !repeats.swallow(&frame, now)), "{flags:#x}");
        }
        for port in 0..10_000 {
            repeats.swallow(&segment(port, 5, 0), now);
        }
        assert_eq!(repeats.flows.len(), FLOWS_MAX);
    }
}
