//! Ports that are written to for their slowness or their lamps: they swallow everything.

use saved::{RestoreError, Sections};

use super::ports;
use crate::{Device, DeviceContext, PortRange};

/// POST code display, delay port, and the coprocessor's busy latch (0xf0, 0xf1).
#[derive(Default)]
pub struct Post;

impl Device for Post {
    fn name(&self) -> &'static str {
        "post"
    }

    fn reset(&mut self) {}

    fn ports(&self) -> &[PortRange] {
        const {
            &[
                ports::range(ports::POST, 1),
                ports::range(ports::DELAY, 1),
                ports::range(ports::COPROCESSOR, 2),
            ]
        }
    }

    /// All ones, as if nothing answered.
    fn port_read(&mut self, _cx: &mut DeviceContext<'_>, _port: u16, _size: u8) -> u32 {
        u32::MAX
    }

    fn port_write(&mut self, _cx: &mut DeviceContext<'_>, _port: u16, _size: u8, _value: u32) {}

    /// Nothing: the device has no state.
    fn save(&self, _instance: u32, _sections: &mut Sections) {}

    fn restore(&mut self, _instance: u32, _: &mut Sections) -> Result<(), RestoreError> {
        Ok(())
    }
}
