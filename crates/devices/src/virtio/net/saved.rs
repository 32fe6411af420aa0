//! Saved form of a network card.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved};

use super::device::{Net, NetCounts, NetSpec};
use super::rx::WAITING_MAX;
use super::tx::FRAME_LEN_MAX;

/// Saved form of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NetSaved {
    /// Ethernet address, to refuse another card's state.
    #[n(0)]
    pub mac: [u8; 6],
    /// Whether the link is up.
    #[n(1)]
    pub link: bool,
    /// Frames that wait for buffers, oldest first.
    #[n(2)]
    pub waiting: Vec<ByteVec>,
    /// Frames sent.
    #[n(3)]
    pub sent: u64,
    /// Frames not sent.
    #[n(4)]
    pub send_dropped: u64,
    /// Frames delivered.
    #[n(5)]
    pub received: u64,
    /// Frames not delivered.
    #[n(6)]
    pub receive_dropped: u64,
}

impl Saved for NetSaved {
    const NAME: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

/// Counters beyond this are not ours; it keeps them from overflowing.
const COUNT_MAX: u64 = 1 << 62;

impl Net {
    pub(super) fn to_saved(&self) -> NetSaved {
        let Net { spec, link, waiting, counts } = self;
        let NetSpec { nic: _, mac, mtu: _ } = spec;
        let NetCounts { sent, send_dropped, received, receive_dropped } = *counts;
        NetSaved {
            mac: *mac,
            link: *link,
            waiting: waiting.iter().cloned().map(ByteVec::from).collect(),
            sent,
            send_dropped,
            received,
            receive_dropped,
        }
    }

    pub(super) fn take_saved(&mut self, saved: NetSaved) -> Result<(), RestoreError> {
        let NetSaved { mac, link, waiting, sent, send_dropped, received, receive_dropped } = saved;
        let malformed = |detail: &str| {
            let detail = detail.to_owned();
            Err(RestoreError::Malformed { name: NetSaved::NAME.to_owned(), detail })
        };
        if mac != self.spec.mac {
            return malformed("saved with another Ethernet address");
        }
        let too_long = waiting.iter().any(|frame| frame.len() as u64 > FRAME_LEN_MAX);
        if waiting.len() > WAITING_MAX || too_long {
            return malformed("more waiting frames than a card keeps");
        }
        if [sent, send_dropped, received, receive_dropped].into_iter().any(|n| n > COUNT_MAX) {
            return malformed("impossible counts");
        }
        self.link = link;
        self.waiting = waiting.into_iter().map(Vec::from).collect();
        self.counts = NetCounts { sent, send_dropped, received, receive_dropped };
        Ok(())
    }
}
