//! Bridges that only have an identity: the host bridge, and an ISA bridge for software that looks
//! for one.

use saved::{RestoreError, Sections};

use super::saved::BridgeSaved;
use super::{ConfigSpace, Identity, PciFunction};

/// A bridge without registers of its own.
pub struct Bridge {
    name: &'static str,
    config: ConfigSpace,
}

impl Bridge {
    /// The host bridge (the generic one of vendor 0x1b36, which no kernel has quirks for).
    pub fn host() -> Bridge {
        Bridge::new("host bridge", 0x0008, 0x06_0000)
    }

    /// An ISA bridge.
    pub fn isa() -> Bridge {
        Bridge::new("isa bridge", 0x000b, 0x06_0100)
    }

    fn new(name: &'static str, device: u16, class: u32) -> Bridge {
        let identity = Identity {
            vendor: 0x1b36,
            device,
            revision: 0,
            class,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            pin: 0,
        };
        Bridge { name, config: ConfigSpace::new(&identity) }
    }
}

impl PciFunction for Bridge {
    fn name(&self) -> &'static str {
        self.name
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let Bridge { name: _, config } = self;
        sections.save(instance, &BridgeSaved { config: config.save() });
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let BridgeSaved { config } = sections.restore(instance)?;
        self.config.restore(&config)
    }
}
