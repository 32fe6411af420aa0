//! The 256 configuration bytes of a type-0 function (PCI 3.0 section 6.1): identity, command,
//! BARs, the capability list and MSI-X.

use saved::RestoreError;

use super::{ConfigSpaceSaved, Msix, MsixSaved};
use crate::Effects;

/// Bits of the command register (PCI 3.0 section 6.2.2).
pub mod command {
    /// The function answers at its memory BARs.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may access memory and send messages.
    pub const MASTER: u16 = 1 << 2;
    /// The function must not assert its INTx pin.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// What software may set: the above, parity and SERR reporting.
    pub(super) const WRITABLE: u16 = MEMORY | MASTER | INTX_DISABLE | 1 << 6 | 1 << 8;
}

const CONFIG_SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CACHE_LINE: usize = 0x0c;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const CAPABILITY_FIRST: usize = 0x40;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u8 = 0x80;
const MSIX_MASK: u8 = 0x40;

/// Who the function says it is (PCI 3.0 section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and interface: 0xCCSSII.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Pin it can assert: 0 none, 1..=4 for INTA..INTD.
    pub pin: u8,
}

/// How wide a memory BAR's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarWidth {
    /// Below 4 GiB, one register.
    Bits32,
    /// Anywhere, two registers.
    Bits64,
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes; a power of two, 4096 or more so that no two functions share a page.
    pub size: u64,
    /// Width of the address.
    pub width: BarWidth,
}

/// The configuration space of one function.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    bars: [Option<Bar>; 6],
    capability_next: usize,
    capability_link: usize,
    msix: Option<(usize, Msix)>,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: &Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            bars: [None; 6],
            capability_next: CAPABILITY_FIRST,
            capability_link: CAPABILITIES,
            msix: None,
        };
        space.set_u16(0x00, identity.vendor);
        space.set_u16(0x02, identity.device);
        space.set_u32(0x08, identity.class << 8 | u32::from(identity.revision));
        space.set_u16(0x2c, identity.subsystem_vendor);
        space.set_u16(0x2e, identity.subsystem);
        space.bytes[INTERRUPT_PIN] = identity.pin;
        space.writable[COMMAND..STATUS].copy_from_slice(&command::WRITABLE.to_le_bytes());
        space.writable[CACHE_LINE..CACHE_LINE + 2].fill(0xff);
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Declares memory BAR `index` (a 64-bit one takes `index + 1` too).
    pub fn add_bar(&mut self, index: usize, bar: Bar) {
        assert!(bar.size.is_power_of_two() && bar.size >= 4096, "BAR of {} bytes", bar.size);
        let at = BARS + 4 * index;
        let mask = !(bar.size - 1);
        self.writable[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
        if bar.width == BarWidth::Bits64 {
            assert!(index < 5 && self.bars[index + 1].is_none(), "no room for a 64-bit BAR");
            self.bytes[at] |= 0x4;
            self.writable[at + 4..at + 8].copy_from_slice(&((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[index] = Some(bar);
    }

    /// Appends a capability of `body` after its two header bytes, with `writable` saying which
    /// bits of the body software may set; returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        assert_eq!(body.len(), writable.len());
        let at = self.capability_next;
        let end = at + 2 + body.len();
        assert!(end <= CONFIG_SIZE, "capabilities fill the configuration space");
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[self.capability_link] = at as u8;
        self.bytes[at] = id;
        self.bytes[at + 2..end].copy_from_slice(body);
        self.writable[at + 2..end].copy_from_slice(writable);
        self.capability_link = at + 1;
        self.capability_next = end.next_multiple_of(4);
        at
    }

    /// Appends the MSI-X capability: `vectors` vectors, table and pending bits at byte offsets of
    /// BAR `bar`.
    pub fn add_msix(&mut self, vectors: u16, bar: u8, table_offset: u32, pending_offset: u32) {
        let msix = Msix::new(vectors, table_offset.into(), pending_offset.into());
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table_offset | u32::from(bar)).to_le_bytes());
        body.extend((pending_offset | u32::from(bar)).to_le_bytes());
        let mut writable = [0; 10];
        writable[1] = MSIX_ENABLE | MSIX_MASK;
        let at = self.add_capability(CAPABILITY_MSIX, &body, &writable);
        self.msix = Some((at, msix));
    }

    /// Reads bytes at `offset`; what lies beyond the space reads as ones.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        for (i, byte) in into.iter_mut().enumerate() {
            *byte = self.bytes.get(offset.wrapping_add(i)).copied().unwrap_or(0xff);
        }
    }

    /// Writes bytes at `offset` as software does: read-only bits stay.
    pub fn write(&mut self, offset: usize, from: &[u8], effects: &mut Effects) {
        for (i, &byte) in from.iter().enumerate() {
            self.set_writable(offset.wrapping_add(i), byte);
        }
        self.sync_msix(effects);
    }

    fn set_writable(&mut self, at: usize, byte: u8) {
        if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
            *old = (*old & !mask) | (byte & mask);
        }
    }

    fn sync_msix(&mut self, effects: &mut Effects) {
        if let Some((at, msix)) = &mut self.msix {
            let control = self.bytes[*at + 3];
            msix.set_control(control & MSIX_ENABLE != 0, control & MSIX_MASK != 0, effects);
        }
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// Sets bits of the command register, as firmware does.
    pub fn enable(&mut self, bits: u16) {
        self.set_u16(COMMAND, self.command() | (bits & command::WRITABLE));
    }

    /// Shows in the status register whether an INTx interrupt is pending.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        self.bytes[STATUS] &= !STATUS_INTERRUPT;
        if pending {
            self.bytes[STATUS] |= STATUS_INTERRUPT;
        }
    }

    /// Pin the function asserts: 0 none, 1..=4.
    pub fn interrupt_pin(&self) -> u8 {
        self.bytes[INTERRUPT_PIN]
    }

    /// Tells software which interrupt the pin is routed to.
    pub fn set_interrupt_line(&mut self, line: u8) {
        self.bytes[INTERRUPT_LINE] = line;
    }

    /// BAR `index`, if the function has it.
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// Address that BAR `index` holds, decoded or not.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let at = BARS + 4 * index;
        let low = u64::from(self.u32_at(at) & !0xf);
        match bar.width {
            BarWidth::Bits32 => Some(low),
            BarWidth::Bits64 => Some(low | u64::from(self.u32_at(at + 4)) << 32),
        }
    }

    /// Puts BAR `index` at `address`, as firmware does.
    pub fn place_bar(&mut self, index: usize, address: u64) {
        let at = BARS + 4 * index;
        let count =
            if self.bar(index).is_some_and(|b| b.width == BarWidth::Bits64) { 8 } else { 4 };
        for (i, byte) in address.to_le_bytes().into_iter().take(count).enumerate() {
            self.set_writable(at + i, byte);
        }
    }

    /// First and last address at which BAR `index` is decoded now.
    pub fn window(&self, index: usize) -> Option<(u64, u64)> {
        if self.command() & command::MEMORY == 0 {
            return None;
        }
        let (bar, first) = (self.bar(index)?, self.bar_address(index)?);
        Some((first, first | (bar.size - 1)))
    }

    /// The MSI-X state, if the function has the capability.
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref().map(|(_, msix)| msix)
    }

    /// The MSI-X state, to trigger vectors or to serve its BAR.
    pub fn msix_mut(&mut self) -> Option<&mut Msix> {
        self.msix.as_mut().map(|(_, msix)| msix)
    }

    /// Power-up state: every bit software can set is 0.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(self.writable) {
            *byte &= !mask;
        }
        self.set_interrupt_status(false);
        if let Some((_, msix)) = &mut self.msix {
            msix.reset();
        }
    }

    /// The saved form.
    pub fn save(&self) -> ConfigSpaceSaved {
        let ConfigSpace {
            bytes,
            writable: _,
            bars: _,
            capability_next: _,
            capability_link: _,
            msix,
        } = self;
        let msix = msix.as_ref().map(|(_, msix)| msix.save());
        ConfigSpaceSaved { bytes: bytes.to_vec(), msix }
    }

    /// Takes over saved state; read-only bytes stay what this release makes them.
    ///
    /// # Errors
    /// [`RestoreError::Malformed`] if it is of another function.
    pub fn restore(&mut self, saved: &ConfigSpaceSaved) -> Result<(), RestoreError> {
        let ConfigSpaceSaved { bytes, msix } = saved;
        let malformed = |detail: &str| RestoreError::Malformed {
            name: "pci configuration".to_owned(),
            detail: detail.to_owned(),
        };
        if bytes.len() != CONFIG_SIZE || bytes[..4] != self.bytes[..4] {
            return Err(malformed("another PCI function"));
        }
        for (at, &byte) in bytes.iter().enumerate() {
            self.set_writable(at, byte);
        }
        self.set_interrupt_status(bytes[STATUS] & STATUS_INTERRUPT != 0);
        let fits = match (self.msix_mut(), msix) {
            (None, None) => true,
            (Some(own), Some(MsixSaved { table, pending })) => own.load(table, *pending),
            _ => false,
        };
        self.rederive();
        if fits { Ok(()) } else { Err(malformed("another MSI-X table")) }
    }

    /// Brings MSI-X's copy of its control bits up to date without sending anything.
    fn rederive(&mut self) {
        if let Some((_, msix)) = &mut self.msix {
            let pending = std::mem::take(&mut msix.pending);
            self.sync_msix(&mut Effects::default());
            if let Some(msix) = self.msix_mut() {
                msix.pending = pending;
            }
        }
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn u32_at(&self, at: usize) -> u32 {
        let bytes = &self.bytes[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}
