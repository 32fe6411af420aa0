//! Receive: frames wait in a bounded queue until the driver has buffers for them.

use std::collections::VecDeque;

use super::device::{F_MRG_RXBUF, NetCounts};
use super::header::{HEADER_SIZE, received};
use super::tx::{FRAME_LEN_MAX, FRAME_LEN_MIN};
use crate::virtio::chain::len_of;
use crate::virtio::{Broken, Chain, VirtioContext};

/// The receive queue of the first pair.
pub(super) const QUEUE: usize = 0;
/// Most frames that wait for buffers; what comes beyond is dropped and counted.
pub(super) const WAITING_MAX: usize = 256;

/// What came of trying to place a frame.
enum Placed {
    /// It is in the driver's buffers.
    Yes,
    /// The driver has too few buffers now.
    Later,
    /// No buffer of this driver can hold it.
    Never,
}

/// Queues a frame for the driver; false if it was dropped.
pub(super) fn accept(waiting: &mut VecDeque<Vec<u8>>, frame: Vec<u8>) -> bool {
    let fits = (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&(frame.len() as u64));
    let taken = fits && waiting.len() < WAITING_MAX;
    if taken {
        waiting.push_back(frame);
    }
    taken
}

/// Moves waiting frames into the driver's buffers as far as there are any.
pub(super) fn fill(
    cx: &mut VirtioContext<'_>,
    waiting: &mut VecDeque<Vec<u8>>,
    counts: &mut NetCounts,
) -> Result<(), Broken> {
    // Counted once: a driver whose rings overlap makes chains available as fast as we use them.
    let mut budget = cx.available(QUEUE)?;
    while let Some(frame) = waiting.front() {
        match place(cx, frame, &mut budget)? {
            Placed::Yes => counts.received += 1,
            Placed::Never => counts.receive_dropped += 1,
            Placed::Later => break,
        }
        waiting.pop_front();
    }
    Ok(())
}

/// Puts one frame into as few chains as hold it, if there are enough among `budget`.
fn place(cx: &mut VirtioContext<'_>, frame: &[u8], budget: &mut u16) -> Result<Placed, Broken> {
    let mergeable = cx.features & F_MRG_RXBUF != 0;
    let needed = HEADER_SIZE + frame.len() as u64;
    let (mut chains, mut room) = (Vec::new(), 0);
    while *budget > 0 {
        *budget -= 1;
        let Some(chain) = cx.pop(QUEUE)? else { break };
        let len = len_of(&chain.writable);
        if len < HEADER_SIZE {
            return Err(Broken::Request);
        }
        room += len;
        chains.push(chain);
        if room >= needed || !mergeable {
            break;
        }
    }
    if room >= needed {
        put(cx, &chains, frame)?;
        return Ok(Placed::Yes);
    }
    let count = chains.len() as u16;
    cx.unpop(QUEUE, count);
    *budget += count;
    Ok(if count == 0 || mergeable { Placed::Later } else { Placed::Never })
}

fn put(cx: &mut VirtioContext<'_>, chains: &[Chain], frame: &[u8]) -> Result<(), Broken> {
    let mut bytes = received(chains.len() as u16).to_vec();
    bytes.extend(frame);
    let mut rest = bytes.as_slice();
    for chain in chains {
        let written = cx.write(&chain.writable, rest)?;
        rest = &rest[written as usize..];
        cx.push(QUEUE, chain.head, written)?;
    }
    Ok(())
}
