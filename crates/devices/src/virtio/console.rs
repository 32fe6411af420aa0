//! Console device (section 5.3) with its one port.

use std::collections::VecDeque;

use journal::Output;
use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use super::chain::len_of;
use super::{Broken, Kind, VirtioContext, VirtioDevice};
use crate::pci::Delivery;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// Most bytes typed that wait for the driver; what comes beyond is dropped.
const INPUT_MAX: usize = 64 << 10;
/// Most bytes of one chain that are sent; what is beyond is dropped. Linux sends 64 KiB at most.
const CHAIN_BYTES_MAX: u64 = 256 << 10;

/// A console.
pub struct Console {
    port: u32,
    input: VecDeque<u8>,
}

/// Saved form of a console.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConsoleSaved {
    /// Bytes typed that wait for the driver.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub input: Vec<u8>,
}

impl Saved for ConsoleSaved {
    const NAME: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}

impl Console {
    /// The console that outputs name `port`.
    pub fn new(port: u32) -> Console {
        Console { port, input: VecDeque::new() }
    }

    /// Moves waiting input into the driver's buffers.
    fn feed(&mut self, cx: &mut VirtioContext<'_>) -> Result<(), Broken> {
        for _ in 0..cx.available(RECEIVE)? {
            if self.input.is_empty() {
                break;
            }
            let Some(chain) = cx.pop(RECEIVE)? else { break };
            let len = self.input.len().min(len_of(&chain.writable) as usize);
            let bytes: Vec<u8> = self.input.drain(..len).collect();
            let written = cx.write(&chain.writable, &bytes)?;
            cx.push(RECEIVE, chain.head, written)?;
        }
        Ok(())
    }

    fn send(&self, cx: &mut VirtioContext<'_>) -> Result<(), Broken> {
        for _ in 0..cx.available(TRANSMIT)? {
            let Some(chain) = cx.pop(TRANSMIT)? else { break };
            let bytes = cx.read(&chain.readable, CHAIN_BYTES_MAX)?;
            if !bytes.is_empty() {
                cx.output(Output::Console { port: self.port, bytes });
            }
            cx.push(TRANSMIT, chain.head, 0)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        let queue_sizes = &[QUEUE_SIZE, QUEUE_SIZE];
        Kind { name: "virtio-console", id: 3, class: 0x07_8000, queue_sizes }
    }

    fn features(&self) -> u64 {
        0
    }

    /// Columns, rows, ports, emergency write: none is offered, and then zero.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn notified(&mut self, cx: &mut VirtioContext<'_>, queue: usize) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.feed(cx),
            _ => self.send(cx),
        }
    }

    fn deliver(&mut self, cx: &mut VirtioContext<'_>, what: Delivery) -> Result<(), Broken> {
        let Delivery::Console(bytes) = what else { return Ok(()) };
        let room = INPUT_MAX - self.input.len().min(INPUT_MAX);
        self.input.extend(bytes.into_iter().take(room));
        self.feed(cx)
    }

    fn reset(&mut self) {
        self.input.clear();
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let Console { port: _, input } = self;
        let input = input.iter().copied().collect();
        sections.save(instance, &ConsoleSaved { input });
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let ConsoleSaved { input } = sections.restore(instance)?;
        if input.len() > INPUT_MAX {
            let detail = format!("{} bytes of input, {INPUT_MAX} at most", input.len());
            return Err(RestoreError::Malformed { name: ConsoleSaved::NAME.to_owned(), detail });
        }
        self.input = input.into();
        Ok(())
    }
}
