//! The board as a vCPU sees it.

use cpu::Bus;
use memory::Ram;
use types::{Gpa, VirtualTime};

use crate::board::Board;

impl Bus for Board {
    fn now(&self, branches: u64) -> VirtualTime {
        self.clock.now(branches)
    }

    fn port_read(&mut self, ram: &mut Ram, branches: u64, port: u16, size: u8) -> u32 {
        let now = self.clock.now(branches);
        self.read_port(ram, now, port, size)
    }

    fn port_write(&mut self, ram: &mut Ram, branches: u64, port: u16, size: u8, value: u32) {
        let now = self.clock.now(branches);
        self.write_port(ram, now, port, size, value);
    }

    fn mmio_read(&mut self, ram: &mut Ram, branches: u64, gpa: Gpa, into: &mut [u8]) {
        if let Some(offset) = Board::ioapic_offset(gpa) {
            let register = self.ioapic.mmio_read(offset & !3).to_le_bytes();
            for (index, byte) in into.iter_mut().enumerate() {
                *byte = *register.get((offset & 3) as usize + index).unwrap_or(&0);
            }
            return;
        }
        let now = self.clock.now(branches);
        if let Some(offset) = Board::ecam_offset(gpa) {
            self.call_pci(ram, now, |pci, cx| pci.ecam_read(cx, offset, into));
            return;
        }
        if !self.call_pci(ram, now, |pci, cx| pci.mmio_read(cx, gpa, into)) {
            into.fill(0xff);
        }
    }

    fn mmio_write(&mut self, ram: &mut Ram, branches: u64, gpa: Gpa, bytes: &[u8]) {
        if let Some(offset) = Board::ioapic_offset(gpa) {
            if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
                let value = u32::from_le_bytes(bytes);
                self.call_ioapic(|ioapic, effects| ioapic.mmio_write(effects, offset, value));
            }
            return;
        }
        let now = self.clock.now(branches);
        if let Some(offset) = Board::ecam_offset(gpa) {
            self.call_pci(ram, now, |pci, cx| pci.ecam_write(cx, offset, bytes));
            return;
        }
        self.call_pci(ram, now, |pci, cx| pci.mmio_write(cx, gpa, bytes));
    }

    fn end_of_interrupt(&mut self, _branches: u64, vector: u8) {
        self.call_ioapic(|ioapic, effects| ioapic.eoi(effects, vector));
    }

    fn pic_interrupt(&self) -> bool {
        self.pic.intr()
    }

    fn acknowledge_pic(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    fn attention(&self) -> bool {
        self.attention
    }
}
