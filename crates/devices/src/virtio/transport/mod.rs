//! The modern PCI transport (section 4.1): capabilities, notification, interrupts, status.
//!
//! ```text
//! reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK -> (a driver's mistake) NEEDS_RESET
//!   ^----------------------- status 0 from anywhere ---------------------------------------'
//! ```

mod common;
mod function;
mod layout;
mod saved;

use common::Common;
pub use saved::VirtioPciSaved;

use super::{Broken, NO_VECTOR, VirtQueue, VirtioContext, VirtioDevice, features, status};
use crate::pci::{ConfigSpace, command};
use crate::{DeviceContext, Effects};

/// ISR bits (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    space: ConfigSpace,
    /// Offset of the PCI configuration access capability.
    window: usize,
    common: Common,
    queues: Vec<VirtQueue>,
    device: D,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// `device` behind a transport.
    pub fn new(device: D) -> VirtioPci<D> {
        let kind = device.kind();
        let (space, window) = layout::config_space(&kind);
        let queues = kind.queue_sizes.iter().map(|&size| VirtQueue::new(size)).collect();
        VirtioPci { space, window, common: Common::default(), queues, device }
    }

    /// The device behind the transport.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Device status (section 2.1).
    pub fn status(&self) -> u8 {
        self.common.status
    }

    fn offered(&self) -> u64 {
        let transport =
            features::RING_INDIRECT_DESC | features::RING_EVENT_IDX | features::VERSION_1;
        self.device.features() | transport
    }

    fn active(&self) -> bool {
        let status = self.common.status;
        status & status::DRIVER_OK != 0
            && status & (status::NEEDS_RESET | status::FAILED) == 0
            && self.space.command() & command::MASTER != 0
    }

    /// Calls into the device, then tells the driver what came of it.
    fn enter(
        &mut self,
        cx: &mut DeviceContext<'_>,
        f: impl FnOnce(&mut D, &mut VirtioContext<'_>) -> Result<(), Broken>,
    ) {
        let mut inner = VirtioContext {
            now: cx.now,
            features: self.common.driver_features,
            active: self.active(),
            ram: &mut *cx.ram,
            effects: &mut *cx.effects,
            queues: &mut self.queues,
            config_changed: false,
        };
        let result = f(&mut self.device, &mut inner);
        let changed = inner.config_changed;
        if result.is_err() {
            self.fail(cx.effects);
        } else if changed {
            self.config_interrupt(cx.effects);
        }
        self.settle(cx);
    }

    /// Interrupts for the queues that had chains used.
    fn settle(&mut self, cx: &mut DeviceContext<'_>) {
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            let vector = queue.vector;
            match queue.settle(cx.ram) {
                Ok(false) => {}
                Ok(true) => self.interrupt(vector, ISR_QUEUE, cx.effects),
                Err(_) => self.fail(cx.effects),
            }
        }
    }

    /// The driver made a mistake: nothing more is done for it until it resets the device.
    fn fail(&mut self, effects: &mut Effects) {
        if self.common.status & status::NEEDS_RESET != 0 {
            return;
        }
        self.common.status |= status::NEEDS_RESET;
        if self.common.status & status::DRIVER_OK != 0 {
            self.config_interrupt(effects);
        }
    }

    fn config_interrupt(&mut self, effects: &mut Effects) {
        self.common.generation = self.common.generation.wrapping_add(1);
        self.interrupt(self.common.config_vector, ISR_CONFIG, effects);
    }

    fn interrupt(&mut self, vector: u16, isr: u8, effects: &mut Effects) {
        let master = self.space.command() & command::MASTER != 0;
        match self.space.msix_mut() {
            Some(msix) if msix.enabled() => {
                if master && vector != NO_VECTOR {
                    msix.trigger(vector, effects);
                }
            }
            _ => self.set_isr(self.common.isr | isr),
        }
    }

    fn set_isr(&mut self, isr: u8) {
        self.common.isr = isr;
        self.space.set_interrupt_status(isr != 0);
    }

    /// The driver writes the device status (section 3.1.1).
    fn write_status(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        if value == 0 {
            return self.reset_device(cx);
        }
        let driver_bits = status::ACKNOWLEDGE | status::DRIVER | status::FAILED;
        let added = value & !self.common.status;
        self.common.status |= value & driver_bits;
        if added & status::FEATURES_OK != 0 && self.features_agree() {
            self.common.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 {
            self.driver_ok(cx);
        }
    }

    fn features_agree(&self) -> bool {
        let accepted = self.common.driver_features;
        accepted & features::VERSION_1 != 0 && accepted & !self.offered() == 0
    }

    /// The driver is set up: what it made available before counts from now on.
    fn driver_ok(&mut self, cx: &mut DeviceContext<'_>) {
        if self.common.status & status::FEATURES_OK == 0 {
            return self.fail(cx.effects);
        }
        self.common.status |= status::DRIVER_OK;
        if self.common.status & status::NEEDS_RESET != 0 {
            return self.config_interrupt(cx.effects);
        }
        for queue in 0..self.queues.len() {
            self.enter(cx, |device, cx| device.notified(cx, queue));
        }
    }

    /// The driver writes a notification for queue `queue`.
    fn notify(&mut self, cx: &mut DeviceContext<'_>, queue: usize) {
        if self.active() && self.queues.get(queue).is_some_and(VirtQueue::enabled) {
            self.enter(cx, |device, cx| device.notified(cx, queue));
        }
    }

    /// The driver enables the selected queue; one that cannot work fails the device.
    fn enable_queue(&mut self, cx: &mut DeviceContext<'_>) {
        let event_idx = self.common.driver_features & features::RING_EVENT_IDX != 0;
        let negotiated = self.common.status & status::FEATURES_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.common.queue_select)) else {
            return;
        };
        if queue.enabled() || !negotiated {
            return;
        }
        if queue.enable(cx.ram, event_idx).is_err() {
            self.fail(cx.effects);
        }
    }

    /// Status 0 (section 2.4): as after power-up, but for what is PCI's.
    fn reset_device(&mut self, cx: &mut DeviceContext<'_>) {
        self.forget();
        // Lets the device re-arm timers for what is still under way outside.
        self.enter(cx, |device, cx| device.timer_fired(cx, 0));
    }

    fn forget(&mut self) {
        self.common = Common::default();
        self.set_isr(0);
        if let Some(msix) = self.space.msix_mut() {
            msix.clear_pending();
        }
        self.queues.iter_mut().for_each(VirtQueue::reset);
        self.device.reset();
    }
}
