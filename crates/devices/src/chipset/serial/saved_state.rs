//! What is saved of a serial port: its registers and the input the guest has not read.

use std::collections::VecDeque;

use minicbor::{Decode, Encode};
use saved::Saved;

use super::{FIFO_SIZE, RECEIVE_QUEUE_MAX, Serial};

/// Saved form of [`Serial`]; where the port is, is the machine's to know.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct SerialSaved {
    /// Interrupt enable register.
    #[n(0)]
    pub interrupt_enable: u8,
    /// FIFO control register.
    #[n(1)]
    pub fifo_control: u8,
    /// Line control register.
    #[n(2)]
    pub line_control: u8,
    /// Modem control register.
    #[n(3)]
    pub modem_control: u8,
    /// Changes of the modem lines not yet read.
    #[n(4)]
    pub modem_changes: u8,
    /// Scratch register.
    #[n(5)]
    pub scratch: u8,
    /// Baud rate divisor.
    #[n(6)]
    pub divisor: u16,
    /// A byte was lost in loopback.
    #[n(7)]
    pub overrun: bool,
    /// The empty transmitter has not been reported.
    #[n(8)]
    pub transmit_pending: bool,
    /// The receive FIFO.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub fifo: Vec<u8>,
    /// Input that waits for the FIFO.
    #[cbor(n(10), with = "minicbor::bytes")]
    pub queue: Vec<u8>,
    /// Level of the interrupt line as last driven.
    #[n(11)]
    pub irq_high: bool,
}

impl Saved for SerialSaved {
    const NAME: &'static str = "serial";
    const VERSION: u16 = 1;
}

impl Serial {
    pub(super) fn saved(&self) -> SerialSaved {
        let Serial {
            console: _,
            irq: _,
            ports: _,
            interrupt_enable,
            fifo_control,
            line_control,
            modem_control,
            modem_changes,
            scratch,
            divisor,
            overrun,
            transmit_pending,
            fifo,
            queue,
            irq_high,
        } = self;
        SerialSaved {
            interrupt_enable: *interrupt_enable,
            fifo_control: *fifo_control,
            line_control: *line_control,
            modem_control: *modem_control,
            modem_changes: *modem_changes,
            scratch: *scratch,
            divisor: *divisor,
            overrun: *overrun,
            transmit_pending: *transmit_pending,
            fifo: fifo.iter().copied().collect(),
            queue: queue.iter().copied().collect(),
            irq_high: *irq_high,
        }
    }

    pub(super) fn restore_saved(&mut self, saved: SerialSaved) {
        let SerialSaved {
            interrupt_enable,
            fifo_control,
            line_control,
            modem_control,
            modem_changes,
            scratch,
            divisor,
            overrun,
            transmit_pending,
            fifo,
            queue,
            irq_high,
        } = saved;
        self.interrupt_enable = interrupt_enable & 0x0f;
        self.fifo_control = fifo_control & 0xc9;
        self.line_control = line_control;
        self.modem_control = modem_control & 0x1f;
        self.modem_changes = modem_changes & 0x0f;
        self.scratch = scratch;
        self.divisor = divisor;
        self.overrun = overrun;
        self.transmit_pending = transmit_pending;
        self.fifo = fifo.into_iter().take(FIFO_SIZE).collect();
        self.queue = VecDeque::from(queue);
        self.queue.truncate(RECEIVE_QUEUE_MAX);
        self.irq_high = irq_high;
    }
}
