//! pvpanic: the guest kernel says that it panicked (QEMU docs/specs/pvpanic).

use saved::{RestoreError, Sections};

use super::ports;
use crate::{Device, DeviceContext, Effect, PortRange, PowerEvent};

/// Event bit: the guest has panicked and nothing will handle it.
const PANICKED: u32 = 1 << 0;

/// The device; ACPI announces it as QEMU0001.
#[derive(Default)]
pub struct Pvpanic;

impl Device for Pvpanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn reset(&mut self) {}

    fn ports(&self) -> &[PortRange] {
        const { &[ports::range(ports::PVPANIC, 1)] }
    }

    /// The events it knows.
    fn port_read(&mut self, _cx: &mut DeviceContext<'_>, _port: u16, _size: u8) -> u32 {
        PANICKED
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, _port: u16, _size: u8, value: u32) {
        if value & PANICKED != 0 {
            cx.effects.push(Effect::Power(PowerEvent::Panicked));
        }
    }

    /// Nothing: the device has no state.
    fn save(&self, _instance: u32, _sections: &mut Sections) {}

    fn restore(&mut self, _instance: u32, _: &mut Sections) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, fuzz};
    use super::*;

    #[test]
    fn panicked_bit_is_reported_and_others_are_not() {
        let mut bench = Bench::new();
        bench.write(&mut Pvpanic, ports::PVPANIC, 2);
        assert_eq!(bench.effects(), []);
        bench.write(&mut Pvpanic, ports::PVPANIC, 1);
        assert_eq!(bench.effects(), [Effect::Power(PowerEvent::Panicked)]);
    }

    #[test]
    fn hostile_guest_is_survived() {
        fuzz(|| Pvpanic, 2, 1000);
    }
}
