//! Sending and receiving messages: the interrupt command register, destinations (SDM vol. 3,
//! 11.6).

use super::regs::{error, icr};
use super::{ApicMessage, DeliveryMode, Lapic, LapicEffects, Signal, Target};

impl Lapic {
    /// Whether `message` is for this local APIC; of its sender it says so only where the message
    /// does not leave the sender out.
    pub fn is_target(&self, message: &ApicMessage) -> bool {
        self.enabled()
            && match message.target {
                Target::Physical(u32::MAX) | Target::Everyone | Target::Others => true,
                Target::Physical(id) => id == self.id,
                Target::Logical(destination) => self.is_logical_target(destination),
            }
    }

    fn is_logical_target(&self, destination: u32) -> bool {
        if self.x2apic() {
            let ldr = self.logical_id();
            return destination == u32::MAX
                || (destination ^ ldr) >> 16 == 0 && destination & ldr & 0xffff != 0;
        }
        let (destination, ldr) = (destination as u8, (self.ldr >> 24) as u8);
        match self.dfr >> 28 {
            0xf => destination & ldr != 0,
            // Cluster model: a cluster, and members of it (SDM 11.6.2.2).
            0 => {
                let cluster = destination >> 4;
                (cluster == 0xf || cluster == ldr >> 4) && destination & ldr & 0xf != 0
            }
            _ => false,
        }
    }

    /// The logical destination register; in x2APIC mode as SDM 11.12.10.2 derives it.
    pub(super) fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 15) } else { self.ldr }
    }

    /// Takes a message meant for this local APIC.
    pub fn deliver(&mut self, message: &ApicMessage) -> Option<Signal> {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept(message.vector, message.level);
                None
            }
            DeliveryMode::Smi => None,
            DeliveryMode::Nmi => Some(Signal::Nmi),
            DeliveryMode::Init => Some(Signal::Init),
            DeliveryMode::Startup => Some(Signal::Startup(message.vector)),
            DeliveryMode::ExtInt => Some(Signal::ExtInt),
        }
    }

    /// Sends what the interrupt command register says.
    pub(super) fn send(&mut self) -> LapicEffects {
        let vector = self.icr as u8;
        let Some(mode) = DeliveryMode::of(self.icr as u32 >> 8) else {
            return LapicEffects::default();
        };
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => {
                self.note_error(error::SEND_ILLEGAL_VECTOR);
                return LapicEffects::default();
            }
            // INIT level de-assert does nothing on this family; ExtINT is not for ICR.
            DeliveryMode::Init if self.icr & icr::ASSERT == 0 => return LapicEffects::default(),
            DeliveryMode::ExtInt => return LapicEffects::default(),
            _ => {}
        }
        // The trigger mode counts only for INIT level de-assert.
        let message = |target| ApicMessage { target, mode, vector, level: false };
        match self.icr >> icr::SHORTHAND_SHIFT & 3 {
            0 => self.route(message(self.icr_target())),
            1 => {
                let signal = self.deliver(&message(Target::Physical(self.id)));
                LapicEffects { signal, ..LapicEffects::default() }
            }
            2 => self.route(message(Target::Everyone)),
            _ => LapicEffects { ipi: Some(message(Target::Others)), ..LapicEffects::default() },
        }
    }

    fn icr_target(&self) -> Target {
        let logical = self.icr & icr::LOGICAL != 0;
        let destination = (self.icr >> icr::DESTINATION_SHIFT) as u32;
        match (self.x2apic(), logical) {
            (false, _) => Target::of_8_bits((destination >> 24) as u8, logical),
            (true, true) => Target::Logical(destination),
            (true, false) => Target::Physical(destination),
        }
    }

    /// Delivers to this processor if it is meant, and passes on what others may be meant by.
    fn route(&mut self, message: ApicMessage) -> LapicEffects {
        let mine = self.is_target(&message);
        let alone = message.target == Target::Physical(self.id)
            || (mine && message.mode == DeliveryMode::LowestPriority);
        LapicEffects {
            signal: if mine { self.deliver(&message) } else { None },
            ipi: (!alone).then_some(message),
            eoi: None,
        }
    }
}
