//! A 16550A serial port (National Semiconductor PC16550D data sheet).
//!
//! Bytes leave at once and the transmitter is always empty. Bytes that arrive wait in a bounded
//! queue until the 16-byte receive FIFO has room, so that pasted input does not overrun it. Baud
//! rate and character format are stored and have no effect.

use std::collections::VecDeque;

use journal::Output;
use saved::{RestoreError, Sections};

use super::ports;
use crate::{Device, DeviceContext, Effect, PortRange};

mod saved_state;
pub use saved_state::SerialSaved;
#[cfg(test)]
mod tests;

/// Bytes of input that wait for the guest; more is dropped.
pub const RECEIVE_QUEUE_MAX: usize = 1 << 20;

/// Depth of the receive FIFO.
const FIFO_SIZE: usize = 16;

const IER_RECEIVE: u8 = 1 << 0;
const IER_TRANSMIT: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;

const LCR_DIVISOR: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

const LSR_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Holding register and transmitter empty.
const LSR_EMPTY: u8 = 0x60;

/// Carrier, data set ready, clear to send: somebody listens.
const MSR_CONNECTED: u8 = 0xb0;

/// The port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serial {
    console: u32,
    irq: u8,
    ports: [PortRange; 1],
    interrupt_enable: u8,
    /// Writable bits of the FIFO control register; bit 0 is FIFOs enabled.
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    /// Changes of the modem lines since the status was read, bits 3:0 of the register.
    modem_changes: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter became empty and nobody was told yet.
    transmit_pending: bool,
    fifo: VecDeque<u8>,
    queue: VecDeque<u8>,
    irq_high: bool,
}

impl Serial {
    /// The port at `base` with interrupt `irq`, whose output goes to console `console`.
    pub fn new(console: u32, base: u16, irq: u8) -> Serial {
        Serial {
            console,
            irq,
            ports: [ports::range(base & !7, 8)],
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            modem_changes: 0,
            scratch: 0,
            divisor: 12,
            overrun: false,
            transmit_pending: false,
            fifo: VecDeque::new(),
            queue: VecDeque::new(),
            irq_high: false,
        }
    }

    /// COM1, output to console 0.
    pub fn com1() -> Serial {
        Serial::new(0, ports::COM1, ports::COM1_IRQ)
    }

    /// COM2, output to console 1.
    pub fn com2() -> Serial {
        Serial::new(1, ports::COM2, ports::COM2_IRQ)
    }

    /// How many bytes of input can be taken now.
    pub fn receive_room(&self) -> usize {
        RECEIVE_QUEUE_MAX - self.queue.len().min(RECEIVE_QUEUE_MAX)
    }

    fn loops(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }

    fn fifos_enabled(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    /// Moves input from the queue to the FIFO as far as there is room.
    fn fill_fifo(&mut self) {
        let depth = if self.fifos_enabled() { FIFO_SIZE } else { 1 };
        while self.fifo.len() < depth && !self.loops() {
            match self.queue.pop_front() {
                Some(byte) => self.fifo.push_back(byte),
                None => return,
            }
        }
    }

    /// The interrupt of the highest priority, as IIR shows it (PC16550D, table V).
    fn interrupt(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        let trigger = match (self.fifos_enabled(), self.fifo_control >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        };
        if enabled(IER_LINE) && self.overrun {
            IIR_LINE
        } else if enabled(IER_RECEIVE) && self.fifo.len() >= trigger {
            IIR_RECEIVE
        } else if enabled(IER_RECEIVE) && !self.fifo.is_empty() {
            // No character time passes: what is there has timed out.
            IIR_TIMEOUT
        } else if enabled(IER_TRANSMIT) && self.transmit_pending {
            IIR_TRANSMIT
        } else if enabled(IER_MODEM) && self.modem_changes != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// Drives the interrupt line; on a PC, OUT2 gates it.
    fn update(&mut self, cx: &mut DeviceContext<'_>) {
        let gated = self.modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        let high = gated && self.interrupt() != IIR_NONE;
        if high != self.irq_high {
            self.irq_high = high;
            cx.effects.line(self.irq, high);
        }
    }

    /// The modem lines, bits 7:4 of the status; in loopback they are our own outputs.
    fn modem_lines(&self) -> u8 {
        if !self.loops() {
            return MSR_CONNECTED;
        }
        let out = self.modem_control;
        (out & 0x0c) << 4 | (out & 0x02) << 3 | (out & 0x01) << 5
    }

    fn read_identification(&mut self) -> u8 {
        let interrupt = self.interrupt();
        if interrupt == IIR_TRANSMIT {
            self.transmit_pending = false;
        }
        interrupt | if self.fifos_enabled() { IIR_FIFOS } else { 0 }
    }

    fn read_line_status(&mut self) -> u8 {
        let ready = if self.fifo.is_empty() { 0 } else { LSR_READY };
        let overrun = if std::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
        LSR_EMPTY | ready | overrun
    }

    fn read_register(&mut self, register: u16) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match (register, self.line_control & LCR_DIVISOR != 0) {
            (0, true) => divisor_low,
            (1, true) => divisor_high,
            (0, false) => {
                let byte = self.fifo.pop_front().unwrap_or(0);
                self.fill_fifo();
                byte
            }
            (1, false) => self.interrupt_enable,
            (2, _) => self.read_identification(),
            (3, _) => self.line_control,
            (4, _) => self.modem_control,
            (5, _) => self.read_line_status(),
            (6, _) => self.modem_lines() | std::mem::take(&mut self.modem_changes),
            _ => self.scratch,
        }
    }

    fn write_register(&mut self, cx: &mut DeviceContext<'_>, register: u16, value: u8) {
        let [low, high] = self.divisor.to_le_bytes();
        match (register, self.line_control & LCR_DIVISOR != 0) {
            (0, true) => self.divisor = u16::from_le_bytes([value, high]),
            (1, true) => self.divisor = u16::from_le_bytes([low, value]),
            (0, false) => self.transmit(cx, value),
            (1, false) => self.write_interrupt_enable(value),
            (2, _) => self.write_fifo_control(value),
            (3, _) => self.line_control = value,
            (4, _) => self.write_modem_control(value),
            // Line and modem status are for reading.
            (5 | 6, _) => {}
            _ => self.scratch = value,
        }
    }

    fn transmit(&mut self, cx: &mut DeviceContext<'_>, byte: u8) {
        self.transmit_pending = true;
        if !self.loops() {
            let output = Output::Console { port: self.console, bytes: vec![byte] };
            cx.effects.push(Effect::Output(output));
            return;
        }
        let depth = if self.fifos_enabled() { FIFO_SIZE } else { 1 };
        if self.fifo.len() < depth {
            self.fifo.push_back(byte);
        } else {
            self.overrun = true;
        }
    }

    fn write_interrupt_enable(&mut self, value: u8) {
        let value = value & 0x0f;
        // The transmitter is empty: enabling its interrupt raises it.
        if value & !self.interrupt_enable & IER_TRANSMIT != 0 {
            self.transmit_pending = true;
        }
        self.interrupt_enable = value;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        if toggled || value & (FCR_ENABLE | FCR_CLEAR_RECEIVE) == FCR_ENABLE | FCR_CLEAR_RECEIVE {
            self.fifo.clear();
        }
        // With FIFOs disabled the other bits are not programmed (PC16550D, 8.5).
        self.fifo_control = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
        self.fill_fifo();
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value & 0x1f;
        let (after, rang) = (self.modem_lines(), before & !self.modem_lines() & 0x40);
        // Changes of CTS, DSR and DCD; of RI only the end.
        self.modem_changes |= ((before ^ after) & 0xb0) >> 4 | rang >> 4;
        self.fill_fifo();
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        "serial"
    }

    /// Input not yet taken by the guest is kept.
    fn reset(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let base = self.ports[0].first;
        *self = Serial { queue, ..Serial::new(self.console, base, self.irq) };
        self.fill_fifo();
    }

    fn ports(&self) -> &[PortRange] {
        &self.ports
    }

    fn port_read(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8) -> u32 {
        let value = self.read_register(port & 7);
        self.update(cx);
        u32::from(value)
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, port: u16, _size: u8, value: u32) {
        self.write_register(cx, port & 7, value as u8);
        self.update(cx);
    }

    fn receive(&mut self, cx: &mut DeviceContext<'_>, bytes: &[u8]) {
        let taken = bytes.len().min(self.receive_room());
        self.queue.extend(&bytes[..taken]);
        self.fill_fifo();
        self.update(cx);
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        sections.save(instance, &self.saved());
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        self.restore_saved(sections.restore(instance)?);
        Ok(())
    }
}
