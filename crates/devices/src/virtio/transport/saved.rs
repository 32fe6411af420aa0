//! Saved form of the transport; the device behind it has a section of its own.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved};

use super::{Common, VirtioPci};
use crate::pci::ConfigSpaceSaved;
use crate::virtio::{NO_VECTOR, QueueSaved, VirtioDevice};

/// Saved form of a virtio PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VirtioPciSaved {
    /// Configuration space.
    #[n(0)]
    pub space: ConfigSpaceSaved,
    /// Which half of the offered features the driver reads.
    #[n(1)]
    pub device_feature_select: u32,
    /// Which half of the accepted features the driver accesses.
    #[n(2)]
    pub driver_feature_select: u32,
    /// Features the driver accepted.
    #[n(3)]
    pub driver_features: u64,
    /// MSI-X vector of configuration changes.
    #[n(4)]
    pub config_vector: u16,
    /// Device status.
    #[n(5)]
    pub status: u8,
    /// Configuration generation.
    #[n(6)]
    pub generation: u8,
    /// Selected queue.
    #[n(7)]
    pub queue_select: u16,
    /// Interrupt status.
    #[n(8)]
    pub isr: u8,
    /// The queues.
    #[n(9)]
    pub queues: Vec<QueueSaved>,
}

impl Saved for VirtioPciSaved {
    const NAME: &'static str = "virtio-pci";
    const VERSION: u16 = 1;
}

impl<D: VirtioDevice> VirtioPci<D> {
    pub(super) fn to_saved(&self) -> VirtioPciSaved {
        let VirtioPci { space, window: _, common, queues, device: _ } = self;
        let Common {
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            generation,
            queue_select,
            isr,
        } = *common;
        VirtioPciSaved {
            space: space.save(),
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            generation,
            queue_select,
            isr,
            queues: queues.iter().map(|queue| queue.save()).collect(),
        }
    }

    pub(super) fn take_saved(&mut self, saved: &VirtioPciSaved) -> Result<(), RestoreError> {
        let malformed = |detail: &str| RestoreError::Malformed {
            name: VirtioPciSaved::NAME.to_owned(),
            detail: detail.to_owned(),
        };
        if saved.queues.len() != self.queues.len() {
            return Err(malformed("another number of queues"));
        }
        let vectors = self.space.msix().map_or(0, |msix| msix.vectors());
        let known = |vector: u16| vector < vectors || vector == NO_VECTOR;
        if !known(saved.config_vector) || !saved.queues.iter().all(|q| known(q.vector)) {
            return Err(malformed("an interrupt vector that does not exist"));
        }
        self.space.restore(&saved.space)?;
        self.common = Common {
            device_feature_select: saved.device_feature_select,
            driver_feature_select: saved.driver_feature_select,
            driver_features: saved.driver_features,
            config_vector: saved.config_vector,
            status: saved.status,
            generation: saved.generation,
            queue_select: saved.queue_select,
            isr: 0,
        };
        self.set_isr(saved.isr & 3);
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            queue.restore(saved).map_err(|e| malformed(&e.to_string()))?;
        }
        Ok(())
    }
}
