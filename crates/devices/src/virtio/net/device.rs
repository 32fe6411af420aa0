//! The network card's state machine.

use std::collections::VecDeque;

use saved::{RestoreError, Sections};

use super::{rx, tx};
use crate::pci::Delivery;
use crate::virtio::{Broken, Kind, VirtioContext, VirtioDevice};

const QUEUE_SIZE: u16 = 256;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
/// Frames may be spread over several receive chains.
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
/// Link bit of the configuration's status.
const STATUS_LINK: u16 = 1;

/// What a network card is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Index of the card in inputs and outputs.
    pub nic: u32,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Most bytes of a packet without its Ethernet header.
    pub mtu: u16,
}

/// Frames counted since the card was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounts {
    /// Sent.
    pub sent: u64,
    /// Not sent: too short, too long, or the link was down.
    pub send_dropped: u64,
    /// Delivered to the driver.
    pub received: u64,
    /// Not delivered: no driver, no buffers for too long, no link, or a bad length.
    pub receive_dropped: u64,
}

/// A network card.
pub struct Net {
    pub(super) spec: NetSpec,
    pub(super) link: bool,
    pub(super) waiting: VecDeque<Vec<u8>>,
    pub(super) counts: NetCounts,
}

impl Net {
    /// A card whose link is up.
    pub fn new(spec: NetSpec) -> Net {
        Net { spec, link: true, waiting: VecDeque::new(), counts: NetCounts::default() }
    }

    /// Frames counted so far.
    pub fn counts(&self) -> NetCounts {
        self.counts
    }

    fn receive(&mut self, cx: &mut VirtioContext<'_>, frame: Vec<u8>) -> Result<(), Broken> {
        if !self.link || !cx.active() || !rx::accept(&mut self.waiting, frame) {
            self.counts.receive_dropped += 1;
            return Ok(());
        }
        rx::fill(cx, &mut self.waiting, &mut self.counts)
    }

    fn set_link(&mut self, cx: &mut VirtioContext<'_>, up: bool) {
        if self.link != up {
            self.link = up;
            cx.config_changed();
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        let queue_sizes = &[QUEUE_SIZE, QUEUE_SIZE];
        Kind { name: "virtio-net", id: 1, class: 0x02_0000, queue_sizes }
    }

    fn features(&self) -> u64 {
        F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS
    }

    /// `virtio_net_config` (section 5.1.4): mac, status, queue pairs, mtu.
    fn config(&self) -> Vec<u8> {
        let mut config = self.spec.mac.to_vec();
        let status = if self.link { STATUS_LINK } else { 0 };
        config.extend(status.to_le_bytes());
        config.extend(1u16.to_le_bytes());
        config.extend(self.spec.mtu.to_le_bytes());
        config
    }

    fn notified(&mut self, cx: &mut VirtioContext<'_>, queue: usize) -> Result<(), Broken> {
        match queue {
            rx::QUEUE => rx::fill(cx, &mut self.waiting, &mut self.counts),
            _ => tx::send(cx, &self.spec, self.link, &mut self.counts),
        }
    }

    fn frame_room(&self) -> usize {
        rx::WAITING_MAX - self.waiting.len().min(rx::WAITING_MAX)
    }

    fn deliver(&mut self, cx: &mut VirtioContext<'_>, what: Delivery) -> Result<(), Broken> {
        match what {
            Delivery::Frame(frame) => self.receive(cx, frame),
            Delivery::Link(up) => {
                self.set_link(cx, up);
                Ok(())
            }
            Delivery::Address(mac) => {
                self.spec.mac = mac;
                cx.config_changed();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Waiting frames are dropped; the link is the world's and stays.
    fn reset(&mut self) {
        self.counts.receive_dropped += self.waiting.len() as u64;
        self.waiting.clear();
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        sections.save(instance, &self.to_saved());
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let saved = sections.restore(instance)?;
        self.take_saved(saved)
    }
}
