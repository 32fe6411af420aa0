//! The shape every device has, and the effects it may have on the machine.

use journal::Output;
use memory::Ram;
use saved::{RestoreError, Sections};
use types::VirtualTime;

/// The guest asked for a change of power state, or a test device ended the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// ACPI S5.
    PowerOff,
    /// Reset through any of the ports that can (0xCF9, 0x64, 0x92, ACPI reset register).
    Reset,
    /// The debug-exit test device was written; exit status is `(value << 1) | 1` as QEMU's.
    DebugExit(u32),
    /// The guest reported a panic (pvpanic).
    Panicked,
}

/// Something a device did that concerns the world outside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Drives global system interrupt `gsi` (0..24: ISA IRQ n is gsi n, timer IRQ 0 too) high or
    /// low. Each source drives its own line; shared PCI lines are OR-ed by the PCI host.
    Line {
        /// Global system interrupt.
        gsi: u8,
        /// High (asserted) or low; polarity is already taken out.
        high: bool,
    },
    /// A message-signalled interrupt: a 32-bit write of `data` to `address`.
    Msi {
        /// Physical address, 0xFEExxxxx.
        address: u64,
        /// The data.
        data: u32,
    },
    /// Arms timer `timer` of this device to fire at `at` (replacing what it was), or disarms it.
    Timer {
        /// Number private to the device.
        timer: u32,
        /// When, or never.
        at: Option<VirtualTime>,
    },
    /// Something leaves the machine.
    Output(Output),
    /// The power state changes.
    Power(PowerEvent),
}

/// The effects of a call, in the order the device had them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects(Vec<Effect>);

impl Effects {
    /// Adds an effect.
    pub fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }

    /// Drives an interrupt line.
    pub fn line(&mut self, gsi: u8, high: bool) {
        self.push(Effect::Line { gsi, high });
    }

    /// Arms or disarms a timer.
    pub fn timer(&mut self, timer: u32, at: Option<VirtualTime>) {
        self.push(Effect::Timer { timer, at });
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes and returns all effects in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect> + '_ {
        self.0.drain(..)
    }
}

/// What a device is lent for the length of one call.
pub struct DeviceContext<'a> {
    /// Virtual time of the call.
    pub now: VirtualTime,
    /// Guest memory, for devices that master the bus.
    pub ram: &'a mut Ram,
    /// Where effects go.
    pub effects: &'a mut Effects,
}

/// I/O ports a device answers at: `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
}

/// A device on the I/O-port bus. PCI functions have a trait of their own in `pci`.
pub trait Device: Send {
    /// Short stable name for messages and traces.
    fn name(&self) -> &'static str;

    /// Back to power-up state. Lines are driven low and timers disarmed by the caller.
    fn reset(&mut self);

    /// The ports it answers at, fixed for life.
    fn ports(&self) -> &[PortRange];

    /// `IN` of `size` 1, 2 or 4 bytes.
    fn port_read(&mut self, cx: &mut DeviceContext<'_>, port: u16, size: u8) -> u32;

    /// `OUT` of `size` 1, 2 or 4 bytes.
    fn port_write(&mut self, cx: &mut DeviceContext<'_>, port: u16, size: u8, value: u32);

    /// A timer armed with [`Effect::Timer`] fired.
    fn timer_fired(&mut self, _cx: &mut DeviceContext<'_>, _timer: u32) {}

    /// Bytes arrive from the outside, for devices that take some (serial ports).
    fn receive(&mut self, _cx: &mut DeviceContext<'_>, _bytes: &[u8]) {}

    /// Adds the section of instance `instance`.
    fn save(&self, instance: u32, sections: &mut Sections);

    /// Takes the section of instance `instance`. Timers are re-armed by the machine from its own
    /// saved state; lines likewise.
    ///
    /// # Errors
    /// [`RestoreError`] when the section is missing or not valid for this device.
    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError>;
}
