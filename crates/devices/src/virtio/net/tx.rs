//! Transmit: the driver's address pointers are gathered first, then handled together.
//!
//! Now each frame is copied out and its chain handed back at once. A back-end that sends from guest
//! memory takes the gathered [`Frame`]s instead and hands chains back when the wire is done with
//! them (mechanisms N1 to N7); nothing before [`send`] changes for that.

use journal::Output;

use super::device::{NetCounts, NetSpec};
use super::header::HEADER_SIZE;
use crate::virtio::chain::{len_of, part};
use crate::virtio::{Broken, Piece, VirtioContext};

/// The transmit queue of the first pair.
pub(super) const QUEUE: usize = 1;
/// Least bytes of a frame: two addresses and a type.
pub(super) const FRAME_LEN_MIN: u64 = 14;
/// Most bytes of a frame.
pub(super) const FRAME_LEN_MAX: u64 = 65_550;

/// A frame as the driver left it: where its bytes are, after the header.
struct Frame {
    head: u16,
    pieces: Vec<Piece>,
}

/// Takes all chains available: the pointers of a batch.
fn gather(cx: &mut VirtioContext<'_>) -> Result<Vec<Frame>, Broken> {
    let mut frames = Vec::new();
    for _ in 0..cx.available(QUEUE)? {
        let Some(chain) = cx.pop(QUEUE)? else { break };
        if len_of(&chain.readable) < HEADER_SIZE {
            return Err(Broken::Request);
        }
        let pieces = part(&chain.readable, HEADER_SIZE, u64::MAX);
        frames.push(Frame { head: chain.head, pieces });
    }
    Ok(frames)
}

/// Sends what is in the queue.
pub(super) fn send(
    cx: &mut VirtioContext<'_>,
    spec: &NetSpec,
    link: bool,
    counts: &mut NetCounts,
) -> Result<(), Broken> {
    for frame in gather(cx)? {
        let len = len_of(&frame.pieces);
        if link && (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len) {
            let bytes = cx.read(&frame.pieces, FRAME_LEN_MAX)?;
            cx.output(Output::NetTransmit { nic: spec.nic, frame: bytes });
            counts.sent += 1;
        } else {
            counts.send_dropped += 1;
        }
        cx.push(QUEUE, frame.head, 0)?;
    }
    Ok(())
}
