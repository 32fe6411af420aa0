//! Where the transport's structures lie: capabilities in configuration space, registers in BARs.

use crate::pci::{Bar, BarWidth, ConfigSpace, Identity};
use crate::virtio::Kind;

/// BAR of the registers.
pub(super) const BAR_REGISTERS: u8 = 0;
/// BAR of the MSI-X table and pending bits.
pub(super) const BAR_MSIX: u8 = 1;
/// Bytes between the starts of two register blocks.
const BLOCK_SIZE: u64 = 0x1000;
const BLOCKS: u64 = 4;
/// Bytes between two queues' notification registers.
pub(super) const NOTIFY_STRIDE: u64 = 4;
const PENDING_OFFSET: u32 = 0x800;

const CAPABILITY_VENDOR: u8 = 0x09;
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

/// A register block of [`BAR_REGISTERS`]; the number is its `cfg_type` (section 4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
}

impl Block {
    const ALL: [Block; BLOCKS as usize] = [Block::Common, Block::Notify, Block::Isr, Block::Device];

    fn start(self) -> u64 {
        (self as u64 - 1) * BLOCK_SIZE
    }

    /// The block at `offset` of the BAR, and the offset in it.
    pub(super) fn at(offset: u64) -> Option<(Block, u64)> {
        let block = *Block::ALL.get(usize::try_from(offset / BLOCK_SIZE).ok()?)?;
        Some((block, offset % BLOCK_SIZE))
    }
}

/// The configuration space of a device, and the offset of its configuration access capability.
pub(super) fn config_space(kind: &Kind) -> (ConfigSpace, usize) {
    let mut space = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind.id,
        revision: 1,
        class: kind.class,
        subsystem_vendor: VENDOR,
        subsystem: 0x1100,
        pin: 1,
    });
    let width = BarWidth::Bits32;
    space.add_bar(BAR_REGISTERS.into(), Bar { size: BLOCK_SIZE * BLOCKS, width });
    space.add_bar(BAR_MSIX.into(), Bar { size: 0x1000, width });
    space.add_msix(kind.queue_sizes.len() as u16 + 1, BAR_MSIX, 0, PENDING_OFFSET);
    for block in Block::ALL {
        let tail: &[u8] =
            if block == Block::Notify { &(NOTIFY_STRIDE as u32).to_le_bytes() } else { &[] };
        let body = body(block as u8, block.start() as u32, BLOCK_SIZE as u32, tail);
        space.add_capability(CAPABILITY_VENDOR, &body, &vec![0; body.len()]);
    }
    let window = body(5, 0, 0, &[0; 4]);
    let mut writable = vec![0; window.len()];
    writable[2] = 0xff;
    writable[6..18].fill(0xff);
    let window = space.add_capability(CAPABILITY_VENDOR, &window, &writable);
    (space, window)
}

/// A `virtio_pci_cap` after its first two bytes: length, type, BAR, id, padding, offset, length.
fn body(cfg_type: u8, offset: u32, len: u32, tail: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + tail.len() as u8, cfg_type, BAR_REGISTERS, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(tail);
    body
}
