//! Keyboard controller (8042) with no keyboard and no mouse, and port 0x92: what start-up code
//! asks of them is the A20 gate and reset.
//!
//! ACPI's IAPC_BOOT_ARCH says that there is no 8042, so Linux does not look for a keyboard.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use super::ports;
use crate::{Device, DeviceContext, Effect, PortRange, PowerEvent};

/// Status: the output buffer holds a byte for the CPU.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// Status: the self test was passed.
const STATUS_SYSTEM: u8 = 1 << 2;
/// Status: the last write went to the command port.
const STATUS_COMMAND: u8 = 1 << 3;
/// Status: the keyboard is not locked.
const STATUS_UNLOCKED: u8 = 1 << 4;
/// Output port: 0 resets the processor.
const OUTPUT_NO_RESET: u8 = 1 << 0;
/// Output port and port 0x92: address line 20 is enabled.
const A20: u8 = 1 << 1;
/// Port 0x92: a 0 to 1 change resets the processor.
const FAST_RESET: u8 = 1 << 0;

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I8042 {
    configuration: u8,
    output_port: u8,
    /// The byte the CPU will read at the data port, while there is one.
    output: Option<u8>,
    /// The command whose parameter the next write of the data port is.
    command: Option<u8>,
    last_was_command: bool,
    port_92: u8,
}

impl Default for I8042 {
    fn default() -> I8042 {
        I8042 {
            // Both ports off, scan codes translated.
            configuration: 0x74,
            output_port: 0xcc | A20 | OUTPUT_NO_RESET,
            output: None,
            command: None,
            last_was_command: false,
            port_92: A20,
        }
    }
}

impl I8042 {
    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | (self.configuration & STATUS_SYSTEM);
        if self.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn set_output_port(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        self.output_port = value | OUTPUT_NO_RESET;
        if value & OUTPUT_NO_RESET == 0 {
            cx.effects.push(Effect::Power(PowerEvent::Reset));
        }
    }

    fn run_command(&mut self, cx: &mut DeviceContext<'_>, command: u8) {
        self.last_was_command = true;
        self.command = None;
        match command {
            0x20..=0x3f => self.output = Some(self.configuration),
            // Those with a parameter: configuration, output port, buffers, the mouse.
            0x60..=0x7f | 0xd1..=0xd4 => self.command = Some(command),
            0xa7 => self.configuration |= 1 << 5,
            0xa8 => self.configuration &= !(1 << 5),
            // Mouse interface test: clock line stuck low, i.e. there is none.
            0xa9 => self.output = Some(1),
            0xaa => {
                self.configuration |= STATUS_SYSTEM;
                self.output = Some(0x55);
            }
            0xab => self.output = Some(0),
            0xad => self.configuration |= 1 << 4,
            0xae => self.configuration &= !(1 << 4),
            0xc0 => self.output = Some(0x80),
            0xd0 => self.output = Some(self.output_port),
            // Pulses the lines of the output port whose bits are 0.
            0xf0..=0xff if command & OUTPUT_NO_RESET == 0 => {
                cx.effects.push(Effect::Power(PowerEvent::Reset));
            }
            _ => {}
        }
    }

    fn write_data(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        self.last_was_command = false;
        match self.command.take() {
            Some(0x60..=0x7f) => self.configuration = value,
            Some(0xd1) => self.set_output_port(cx, value),
            Some(0xd2 | 0xd3) => self.output = Some(value),
            // To a keyboard or mouse that is not there.
            _ => {}
        }
    }

    fn write_port_92(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        if value & !self.port_92 & FAST_RESET != 0 {
            cx.effects.push(Effect::Power(PowerEvent::Reset));
        }
        self.port_92 = value;
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn reset(&mut self) {
        *self = I8042::default();
    }

    fn ports(&self) -> &[PortRange] {
        const {
            &[
                ports::range(ports::KEYBOARD_DATA, 1),
                ports::range(ports::KEYBOARD_COMMAND, 1),
                ports::range(ports::SYSTEM_CONTROL_A, 1),
            ]
        }
    }

    fn port_read(&mut self, _cx: &mut DeviceContext<'_>, port: u16, _size: u8) -> u32 {
        u32::from(match port {
            ports::KEYBOARD_COMMAND => self.status(),
            ports::KEYBOARD_DATA => self.output.take().unwrap_or(0),
            _ => self.port_92,
        })
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8, value: u32) {
        match port {
            ports::KEYBOARD_COMMAND => self.run_command(cx, value as u8),
            ports::KEYBOARD_DATA => self.write_data(cx, value as u8),
            _ => self.write_port_92(cx, value as u8),
        }
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let &I8042 { configuration, output_port, output, command, last_was_command, port_92 } =
            self;
        sections.save(
            instance,
            &I8042Saved { configuration, output_port, output, command, last_was_command, port_92 },
        );
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let I8042Saved { configuration, output_port, output, command, last_was_command, port_92 } =
            sections.restore(instance)?;
        *self = I8042 { configuration, output_port, output, command, last_was_command, port_92 };
        Ok(())
    }
}

/// Saved form of [`I8042`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct I8042Saved {
    /// The configuration ("command") byte.
    #[n(0)]
    pub configuration: u8,
    /// The output port.
    #[n(1)]
    pub output_port: u8,
    /// Byte waiting for the CPU.
    #[n(2)]
    pub output: Option<u8>,
    /// Command waiting for its parameter.
    #[n(3)]
    pub command: Option<u8>,
    /// Whether the last write was to the command port.
    #[n(4)]
    pub last_was_command: bool,
    /// Port 0x92.
    #[n(5)]
    pub port_92: u8,
}

impl Saved for I8042Saved {
    const NAME: &'static str = "i8042";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, fuzz};
    use super::*;

    fn resets(bench: &mut Bench) -> bool {
        bench.effects().contains(&Effect::Power(PowerEvent::Reset))
    }

    #[test]
    fn self_test_answers_and_empties_its_buffer() {
        let (mut bench, mut kbc) = (Bench::new(), I8042::default());
        bench.write(&mut kbc, 0x64, 0xaa);
        assert_eq!(bench.read(&mut kbc, 0x64) & 1, 1);
        assert_eq!(bench.read(&mut kbc, 0x60), 0x55);
        assert_eq!(bench.read(&mut kbc, 0x64) & 3, 0);
    }

    #[test]
    fn every_way_to_reset_resets() {
        let ways: [&[(u16, u8)]; 3] =
            [&[(0x64, 0xfe)], &[(0x64, 0xd1), (0x60, 0x02)], &[(0x92, 0x03)]];
        for way in ways {
            let (mut bench, mut kbc) = (Bench::new(), I8042::default());
            for &(port, value) in way {
                assert!(!resets(&mut bench));
                bench.write(&mut kbc, port, value);
            }
            assert!(resets(&mut bench), "{way:x?}");
        }
    }

    #[test]
    fn a20_dance_does_not_reset() {
        let (mut bench, mut kbc) = (Bench::new(), I8042::default());
        for (port, value) in [(0x64, 0xd1), (0x60, 0xdf), (0x64, 0xff), (0x92, 0x02)] {
            bench.write(&mut kbc, port, value);
        }
        assert!(!resets(&mut bench));
    }

    #[test]
    fn hostile_guest_is_survived() {
        fuzz(I8042::default, 3, 20_000);
    }
}
