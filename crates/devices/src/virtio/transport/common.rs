//! The common configuration structure (section 4.1.4.3).

use super::VirtioPci;
use crate::DeviceContext;
use crate::virtio::{NO_VECTOR, VirtQueue, VirtioDevice, status};

/// Bytes of the structure.
const COMMON_SIZE: usize = 0x3c;

/// The registers of the structure that are not a queue's, and the ISR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Common {
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub config_vector: u16,
    pub status: u8,
    pub generation: u8,
    pub queue_select: u16,
    pub isr: u8,
}

impl Default for Common {
    fn default() -> Common {
        Common {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            isr: 0,
        }
    }
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Reads at `offset` of the structure; reads have no side effects.
    pub(super) fn common_read(&self, offset: u64, into: &mut [u8]) {
        let image = self.common_image();
        for (i, byte) in into.iter_mut().enumerate() {
            let at = usize::try_from(offset).unwrap_or(COMMON_SIZE).saturating_add(i);
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn common_image(&self) -> Vec<u8> {
        let common = &self.common;
        let selected = self.queues.get(usize::from(common.queue_select));
        let of = |f: fn(&VirtQueue) -> u16| selected.map_or(0, f);
        let address = |f: fn(&VirtQueue) -> u64| selected.map_or(0, f);
        let mut image = Vec::with_capacity(COMMON_SIZE);
        image.extend(common.device_feature_select.to_le_bytes());
        image.extend(half(self.offered(), common.device_feature_select).to_le_bytes());
        image.extend(common.driver_feature_select.to_le_bytes());
        image.extend(half(common.driver_features, common.driver_feature_select).to_le_bytes());
        image.extend(common.config_vector.to_le_bytes());
        image.extend((self.queues.len() as u16).to_le_bytes());
        image.extend([common.status, common.generation]);
        image.extend(common.queue_select.to_le_bytes());
        image.extend(of(|q| q.size).to_le_bytes());
        image.extend(selected.map_or(NO_VECTOR, |q| q.vector).to_le_bytes());
        image.extend(of(|q| q.enabled().into()).to_le_bytes());
        let notify_offset = if selected.is_some() { common.queue_select } else { 0 };
        image.extend(notify_offset.to_le_bytes());
        image.extend(address(|q| q.descriptors).to_le_bytes());
        image.extend(address(|q| q.driver_area).to_le_bytes());
        image.extend(address(|q| q.device_area).to_le_bytes());
        image.resize(COMMON_SIZE, 0);
        image
    }

    /// Writes at `offset` of the structure. A write that is not a whole field (or half of a
    /// 64-bit one) does nothing.
    pub(super) fn common_write(&mut self, cx: &mut DeviceContext<'_>, offset: u64, from: &[u8]) {
        match *from {
            [a] => self.common_write_u8(cx, offset, a),
            [a, b] => self.common_write_u16(cx, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.common_write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.common_write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.common_write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn common_write_u8(&mut self, cx: &mut DeviceContext<'_>, offset: u64, value: u8) {
        if offset == 0x14 {
            self.write_status(cx, value);
        }
    }

    fn common_write_u16(&mut self, cx: &mut DeviceContext<'_>, offset: u64, value: u16) {
        match offset {
            0x10 => self.common.config_vector = self.vector(value),
            0x16 => self.common.queue_select = value,
            0x18 => self.with_disabled_queue(|queue| queue.size = value),
            0x1a => {
                let vector = self.vector(value);
                if let Some(queue) = self.queues.get_mut(usize::from(self.common.queue_select)) {
                    queue.vector = vector;
                }
            }
            0x1c if value == 1 => self.enable_queue(cx),
            _ => {}
        }
    }

    fn common_write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => self.common.device_feature_select = value,
            0x08 => self.common.driver_feature_select = value,
            0x0c if self.common.status & status::FEATURES_OK == 0 => {
                let select = self.common.driver_feature_select;
                set_half(&mut self.common.driver_features, select, value);
            }
            0x20 | 0x24 => {
                let high = u32::from(offset == 0x24);
                self.with_disabled_queue(|queue| set_half(&mut queue.descriptors, high, value));
            }
            0x28 | 0x2c => {
                let high = u32::from(offset == 0x2c);
                self.with_disabled_queue(|queue| set_half(&mut queue.driver_area, high, value));
            }
            0x30 | 0x34 => {
                let high = u32::from(offset == 0x34);
                self.with_disabled_queue(|queue| set_half(&mut queue.device_area, high, value));
            }
            _ => {}
        }
    }

    fn with_disabled_queue(&mut self, f: impl FnOnce(&mut VirtQueue)) {
        let selected = self.queues.get_mut(usize::from(self.common.queue_select));
        if let Some(queue) = selected.filter(|queue| !queue.enabled()) {
            f(queue);
        }
    }

    /// A vector the driver may assign: one of the table's, or none.
    fn vector(&self, wanted: u16) -> u16 {
        let count = self.space.msix().map_or(0, |msix| msix.vectors());
        if wanted < count { wanted } else { NO_VECTOR }
    }
}

/// The low (0) or high (1) 32 bits of `value`; 0 for any other `select`.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the low (0) or high (1) 32 bits of `value`.
fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
