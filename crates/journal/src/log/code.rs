//! How an entry is coded: a head byte, the difference of its place to the last, and what happened.

use types::{ExecutionPoint, VirtualTime};

use super::{Check, Entry, FRAME_SIZE_MAX, HASHES_MAX, What};
use crate::Input;

/// Kinds of entry, the low three bits of the head.
mod kind {
    pub const ANCHOR: u8 = 0;
    pub const CONSOLE: u8 = 1;
    pub const FRAME: u8 = 2;
    pub const EVENT: u8 = 3;
    pub const CHECK: u8 = 4;
    pub const CHECKPOINT: u8 = 5;
    pub const END: u8 = 6;
}
const KIND: u8 = 0b111;
/// Head: the place is the last entry's; no place follows.
const SAME_PLACE: u8 = 1 << 3;
/// Head: which of the last instruction pointers, or that it follows.
const RIP_SHIFT: u32 = 4;
const RIP_FOLLOWS: u8 = 7;
/// Head: iterations follow.
const ITERATIONS: u8 = 1 << 7;
/// Events without data.
mod event {
    pub const POWER_BUTTON: u64 = 0;
    pub const LINK_DOWN: u64 = 1;
    pub const LINK_UP: u64 = 2;
    pub const GENERATION: u64 = 3;
    pub const NET_ADDRESS: u64 = 4;
}

/// What coding an entry depends on: the same for writer and reader after the same entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Coder {
    point: ExecutionPoint,
    at_us: u64,
    /// The last instruction pointers, the latest first: an idle guest has few.
    rips: Vec<u64>,
    rate_millins: u64,
}

impl Coder {
    /// Appends `entry`. Places go forward only, so differences are small and never negative.
    pub fn encode(&mut self, entry: &Entry, body: &mut Vec<u8>) {
        let head = body.len();
        body.push(match &entry.what {
            What::Input(Input::ClockAnchor { .. }) => kind::ANCHOR,
            What::Input(Input::Console { .. }) => kind::CONSOLE,
            What::Input(Input::NetReceive { .. }) => kind::FRAME,
            What::Input(
                Input::PowerButton
                | Input::NetLink { .. }
                | Input::Generation { .. }
                | Input::NetAddress { .. },
            ) => kind::EVENT,
            What::Check(_) => kind::CHECK,
            What::Checkpoint(_) => kind::CHECKPOINT,
            What::End => kind::END,
        });
        body[head] |= self.encode_place(entry, body);
        match &entry.what {
            What::Input(input) => self.encode_input(input, body),
            What::Check(check) => {
                put(body, check.sections.len() as u64);
                let hashes = check.sections.iter().chain([&check.output]);
                hashes.for_each(|hash| body.extend(hash.to_le_bytes()));
            }
            What::Checkpoint(number) => put(body, u64::from(*number)),
            What::End => {}
        }
    }

    fn encode_place(&mut self, entry: &Entry, body: &mut Vec<u8>) -> u8 {
        let (point, at_us) = (entry.point, entry.at.0 / 1000);
        if (point, at_us) == (self.point, self.at_us) {
            return SAME_PLACE;
        }
        put(body, point.branches.wrapping_sub(self.point.branches));
        put(body, at_us.wrapping_sub(self.at_us));
        let mut head = match self.rips.iter().position(|&rip| rip == point.rip) {
            Some(index) => (index as u8) << RIP_SHIFT,
            None => {
                put(body, zigzag(point.rip.wrapping_sub(self.point.rip)));
                RIP_FOLLOWS << RIP_SHIFT
            }
        };
        if point.iterations != 0 {
            put(body, point.iterations);
            head |= ITERATIONS;
        }
        self.move_to(point, at_us);
        head
    }

    fn move_to(&mut self, point: ExecutionPoint, at_us: u64) {
        (self.point, self.at_us) = (point, at_us);
        self.rips.retain(|&rip| rip != point.rip);
        self.rips.insert(0, point.rip);
        self.rips.truncate(usize::from(RIP_FOLLOWS));
    }

    fn encode_input(&mut self, input: &Input, body: &mut Vec<u8>) {
        match input {
            Input::ClockAnchor { advance_ns, rate_millins } => {
                // Whole microseconds are common, and shorter.
                let whole = advance_ns % 1000 == 0;
                put(body, if whole { advance_ns / 1000 * 2 } else { 1 });
                if !whole {
                    put(body, *advance_ns);
                }
                put(body, zigzag(rate_millins.wrapping_sub(self.rate_millins)));
                self.rate_millins = *rate_millins;
            }
            Input::Console { port, bytes } => put_bytes(body, *port, bytes),
            Input::NetReceive { nic, frame } => put_bytes(body, *nic, frame),
            Input::PowerButton => put(body, event::POWER_BUTTON),
            Input::NetLink { nic, up } => {
                put(body, if *up { event::LINK_UP } else { event::LINK_DOWN });
                put(body, u64::from(*nic));
            }
            Input::Generation { id } => {
                put(body, event::GENERATION);
                body.extend(id);
            }
            Input::NetAddress { nic, mac } => {
                put(body, event::NET_ADDRESS);
                put(body, u64::from(*nic));
                body.extend(mac);
            }
        }
    }

    /// Takes an entry off the front of `body`.
    pub fn decode(&mut self, body: &mut &[u8]) -> Result<Entry, &'static str> {
        let head = take(body, 1)?[0];
        self.decode_place(head, body)?;
        let what = match head & KIND {
            kind::CHECK => {
                let count = get(body)?;
                if count > HASHES_MAX {
                    return Err("a check of too many sections");
                }
                let sections = (0..count).map(|_| get_hash(body)).collect::<Result<_, _>>()?;
                What::Check(Check { sections, output: get_hash(body)? })
            }
            kind::CHECKPOINT => What::Checkpoint(get_u32(body)?),
            kind::END => What::End,
            kind => What::Input(self.decode_input(kind, body)?),
        };
        Ok(Entry { point: self.point, at: VirtualTime(self.at_us * 1000), what })
    }

    fn decode_place(&mut self, head: u8, body: &mut &[u8]) -> Result<(), &'static str> {
        if head & SAME_PLACE != 0 {
            return Ok(());
        }
        let forward = "a place beyond the end of time";
        let branches = self.point.branches.checked_add(get(body)?).ok_or(forward)?;
        let at_us = self.at_us.checked_add(get(body)?).filter(|at| *at <= u64::MAX / 1000);
        let at_us = at_us.ok_or(forward)?;
        let rip = match (head >> RIP_SHIFT) & RIP_FOLLOWS {
            RIP_FOLLOWS => self.point.rip.wrapping_add(unzigzag(get(body)?)),
            index => {
                *self.rips.get(usize::from(index)).ok_or("an instruction pointer not given")?
            }
        };
        let iterations = if head & ITERATIONS != 0 { get(body)? } else { 0 };
        self.move_to(ExecutionPoint { vcpu: 0, branches, rip, iterations }, at_us);
        Ok(())
    }

    fn decode_input(&mut self, kind: u8, body: &mut &[u8]) -> Result<Input, &'static str> {
        match kind {
            kind::ANCHOR => {
                let advance = get(body)?;
                let whole = advance & 1 == 0;
                let advance_ns =
                    if whole { (advance / 2).saturating_mul(1000) } else { get(body)? };
                self.rate_millins = self.rate_millins.wrapping_add(unzigzag(get(body)?));
                Ok(Input::ClockAnchor { advance_ns, rate_millins: self.rate_millins })
            }
            kind::CONSOLE => {
                let (port, bytes) = get_bytes(body)?;
                Ok(Input::Console { port, bytes })
            }
            kind::FRAME => {
                let (nic, frame) = get_bytes(body)?;
                Ok(Input::NetReceive { nic, frame })
            }
            kind::EVENT => match get(body)? {
                event::POWER_BUTTON => Ok(Input::PowerButton),
                event::LINK_DOWN => Ok(Input::NetLink { nic: get_u32(body)?, up: false }),
                event::LINK_UP => Ok(Input::NetLink { nic: get_u32(body)?, up: true }),
                event::GENERATION => Ok(Input::Generation { id: get_array(body)? }),
                event::NET_ADDRESS => {
                    Ok(Input::NetAddress { nic: get_u32(body)?, mac: get_array(body)? })
                }
                _ => Err("an event of unknown kind"),
            },
            _ => Err("an entry of unknown kind"),
        }
    }
}

/// Signed differences near zero become small numbers.
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ ((difference as i64 >> 63) as u64)
}

fn unzigzag(coded: u64) -> u64 {
    (coded >> 1) ^ (coded & 1).wrapping_neg()
}

/// Seven bits a byte, the low ones first.
fn put(body: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        body.push(value as u8 | 0x80);
        value >>= 7;
    }
    body.push(value as u8);
}

/// Which device, in two bits if it is one of the first three, and bytes.
fn put_bytes(body: &mut Vec<u8>, device: u32, bytes: &[u8]) {
    let short = device.min(3);
    put(body, ((bytes.len() as u64) << 2) | u64::from(short));
    if short == 3 {
        put(body, u64::from(device));
    }
    body.extend(bytes);
}

fn take<'a>(body: &mut &'a [u8], len: usize) -> Result<&'a [u8], &'static str> {
    let (taken, rest) = body.split_at_checked(len).ok_or("an entry that is cut short")?;
    *body = rest;
    Ok(taken)
}

fn get_array<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let mut array = [0; N];
    array.copy_from_slice(take(body, N)?);
    Ok(array)
}

fn get(body: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(body, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number of more than 64 bits")
}

fn get_u32(body: &mut &[u8]) -> Result<u32, &'static str> {
    u32::try_from(get(body)?).map_err(|_| "a number of more than 32 bits")
}

fn get_hash(body: &mut &[u8]) -> Result<u64, &'static str> {
    let bytes = take(body, 8)?;
    Ok(bytes.iter().rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte)))
}

fn get_bytes(body: &mut &[u8]) -> Result<(u32, Vec<u8>), &'static str> {
    let coded = get(body)?;
    let device = if coded & 3 == 3 { get_u32(body)? } else { (coded & 3) as u32 };
    let len = coded >> 2;
    if len > u64::from(FRAME_SIZE_MAX) {
        return Err("an input of more bytes than fit");
    }
    Ok((device, take(body, len as usize)?.to_vec()))
}
