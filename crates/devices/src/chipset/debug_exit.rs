//! The debug-exit test device: one port whose writes end the run with a status.

use saved::{RestoreError, Sections};

use super::ports;
use crate::{Device, DeviceContext, Effect, PortRange, PowerEvent};

/// The device; opt-in, as any guest program may end the run with it.
pub struct DebugExit {
    ports: [PortRange; 1],
}

impl DebugExit {
    /// The device at `port` and the three after it (fewer at the end of port space).
    pub fn new(port: u16) -> DebugExit {
        DebugExit { ports: [PortRange { first: port, last: port.saturating_add(3) }] }
    }
}

impl Default for DebugExit {
    fn default() -> DebugExit {
        DebugExit::new(ports::DEBUG_EXIT)
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "debug-exit"
    }

    fn reset(&mut self) {}

    fn ports(&self) -> &[PortRange] {
        &self.ports
    }

    fn port_read(&mut self, _cx: &mut DeviceContext<'_>, _port: u16, _size: u8) -> u32 {
        0
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, _port: u16, _size: u8, value: u32) {
        cx.effects.push(Effect::Power(PowerEvent::DebugExit(value)));
    }

    /// Nothing: the device has no state.
    fn save(&self, _instance: u32, _sections: &mut Sections) {
        let DebugExit { ports: _ } = self;
    }

    fn restore(&mut self, _instance: u32, _: &mut Sections) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, fuzz};
    use super::*;

    #[test]
    fn write_ends_the_run_with_its_value() {
        let mut bench = Bench::new();
        bench.write(&mut DebugExit::default(), 0xf4, 0x31);
        assert_eq!(bench.effects(), [Effect::Power(PowerEvent::DebugExit(0x31))]);
    }

    #[test]
    fn hostile_guest_is_survived() {
        fuzz(|| DebugExit::new(0xffff), 1, 1000);
    }
}
