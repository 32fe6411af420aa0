//! The transport as a PCI function: BAR and configuration access, and what passes through to the
//! device.

use journal::DiskRequest;
use saved::{RestoreError, Sections};
use types::VirtualTime;

use super::layout::{BAR_MSIX, BAR_REGISTERS, Block, NOTIFY_STRIDE};
use super::{VirtioPci, VirtioPciSaved};
use crate::DeviceContext;
use crate::pci::{ConfigSpace, Delivery, PciFunction, command};
use crate::virtio::VirtioDevice;

/// Offset of `pci_cfg_data` in the configuration access capability (section 4.1.4.9).
const WINDOW_DATA: usize = 16;

impl<D: VirtioDevice> VirtioPci<D> {
    /// What the configuration access capability points at: BAR, offset, length.
    fn window_target(&self) -> Option<(u8, u64, usize)> {
        let mut cap = [0; WINDOW_DATA];
        self.space.read(self.window, &mut cap);
        let word = |at: usize| u32::from_le_bytes([cap[at], cap[at + 1], cap[at + 2], cap[at + 3]]);
        let (bar, offset, len) = (cap[4], word(8), word(12));
        let size = self.space.bar(usize::from(bar))?.size;
        let fits = matches!(len, 1 | 2 | 4)
            && offset % len == 0
            && u64::from(offset) + u64::from(len) <= size;
        fits.then_some((bar, offset.into(), len as usize))
    }

    fn touches_window(&self, offset: usize, len: usize) -> bool {
        let data = self.window + WINDOW_DATA;
        offset < data + 4 && offset.saturating_add(len) > data
    }

    fn device_read(&self, offset: u64, into: &mut [u8]) {
        let config = self.device.config();
        for (i, byte) in into.iter_mut().enumerate() {
            let at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i);
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn read_isr(&mut self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        if offset == 0 && !into.is_empty() {
            into[0] = self.common.isr;
            self.set_isr(0);
        }
    }
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn name(&self) -> &'static str {
        self.device.kind().name
    }

    fn config(&self) -> &ConfigSpace {
        &self.space
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }

    fn config_read(&mut self, cx: &mut DeviceContext<'_>, offset: usize, into: &mut [u8]) {
        if self.touches_window(offset, into.len())
            && let Some((bar, at, len)) = self.window_target()
        {
            let mut data = [0; 4];
            self.bar_read(cx, bar, at, &mut data[..len]);
            self.space.write(self.window + WINDOW_DATA, &data[..len], cx.effects);
        }
        self.space.read(offset, into);
    }

    fn config_write(&mut self, cx: &mut DeviceContext<'_>, offset: usize, from: &[u8]) {
        self.space.write(offset, from, cx.effects);
        if self.touches_window(offset, from.len())
            && let Some((bar, at, len)) = self.window_target()
        {
            let mut data = [0; 4];
            self.space.read(self.window + WINDOW_DATA, &mut data);
            self.bar_write(cx, bar, at, &data[..len]);
        }
    }

    fn bar_read(&mut self, _: &mut DeviceContext<'_>, bar: u8, offset: u64, into: &mut [u8]) {
        match (bar, Block::at(offset)) {
            (BAR_MSIX, _) => {
                if let Some(msix) = self.space.msix() {
                    msix.read(offset, into);
                }
            }
            (BAR_REGISTERS, Some((Block::Common, offset))) => self.common_read(offset, into),
            (BAR_REGISTERS, Some((Block::Isr, offset))) => self.read_isr(offset, into),
            (BAR_REGISTERS, Some((Block::Device, offset))) => self.device_read(offset, into),
            _ => into.fill(0),
        }
    }

    fn bar_write(&mut self, cx: &mut DeviceContext<'_>, bar: u8, offset: u64, from: &[u8]) {
        match (bar, Block::at(offset)) {
            (BAR_MSIX, _) => {
                if let Some(msix) = self.space.msix_mut() {
                    msix.write(offset, from, cx.effects);
                }
            }
            (BAR_REGISTERS, Some((Block::Common, offset))) => self.common_write(cx, offset, from),
            (BAR_REGISTERS, Some((Block::Notify, offset))) => {
                self.notify(cx, (offset / NOTIFY_STRIDE) as usize);
            }
            (BAR_REGISTERS, Some((Block::Device, offset))) => {
                self.enter(cx, |device, cx| {
                    device.config_write(cx, offset, from);
                    Ok(())
                });
            }
            _ => {}
        }
    }

    fn timer_fired(&mut self, cx: &mut DeviceContext<'_>, timer: u32) {
        self.enter(cx, |device, cx| device.timer_fired(cx, timer));
    }

    fn deliver(&mut self, cx: &mut DeviceContext<'_>, what: Delivery) {
        self.enter(cx, |device, cx| device.deliver(cx, what));
    }

    fn frame_room(&self) -> usize {
        self.device.frame_room()
    }

    fn due(&self, now: VirtualTime) -> Vec<u64> {
        self.device.due(now)
    }

    fn outstanding(&self) -> Vec<DiskRequest> {
        self.device.outstanding()
    }

    fn intx(&self) -> bool {
        self.common.isr != 0
            && self.space.command() & command::INTX_DISABLE == 0
            && !self.space.msix().is_some_and(|msix| msix.enabled())
    }

    fn reset(&mut self) {
        self.forget();
        self.space.reset();
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        sections.save(instance, &self.to_saved());
        self.device.save(instance, sections);
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let saved: VirtioPciSaved = sections.restore(instance)?;
        self.take_saved(&saved)?;
        self.device.restore(instance, sections)
    }
}
