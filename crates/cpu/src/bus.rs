//! The seam between a vCPU and the machine around it.

use memory::Ram;
use types::{Gpa, VirtualTime};

/// What a vCPU finds outside its own registers and RAM. The machine implements it.
///
/// Every access carries the branch count at which it happens, since guest time derives from it.
/// `ram` is lent because a device may read and write guest memory before the access ends.
pub trait Bus {
    /// Virtual time at a branch count (never before that of an earlier call).
    fn now(&self, branches: u64) -> VirtualTime;

    /// `IN`: reads 1, 2 or 4 bytes, zero-extended; all ones where nothing answers.
    fn port_read(&mut self, ram: &mut Ram, branches: u64, port: u16, size: u8) -> u32;

    /// `OUT`: writes 1, 2 or 4 bytes.
    fn port_write(&mut self, ram: &mut Ram, branches: u64, port: u16, size: u8, value: u32);

    /// Reads 1 to 8 bytes of device memory; all ones where nothing answers.
    fn mmio_read(&mut self, ram: &mut Ram, branches: u64, gpa: Gpa, into: &mut [u8]);

    /// Writes 1 to 8 bytes of device memory.
    fn mmio_write(&mut self, ram: &mut Ram, branches: u64, gpa: Gpa, bytes: &[u8]);

    /// The local APIC saw an EOI for a level-triggered vector; I/O APICs drop their remote IRR.
    fn end_of_interrupt(&mut self, branches: u64, vector: u8);

    /// Whether the PIC asks for an interrupt.
    fn pic_interrupt(&self) -> bool;

    /// Acknowledges the PIC (INTA cycle) and returns its vector.
    fn acknowledge_pic(&mut self) -> u8;

    /// Whether the machine wants control at the next instruction boundary, because an access
    /// changed an interrupt line, a timer or the power state.
    fn attention(&self) -> bool;
}

/// A bus with nothing on it, for a vCPU and RAM alone; virtual time is the branch count.
#[derive(Clone, Copy, Debug)]
pub struct EmptyBus;

impl Bus for EmptyBus {
    fn now(&self, branches: u64) -> VirtualTime {
        VirtualTime(branches)
    }
    fn port_read(&mut self, _: &mut Ram, _: u64, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: &mut Ram, _: u64, _: u16, _: u8, _: u32) {}
    fn mmio_read(&mut self, _: &mut Ram, _: u64, _: Gpa, into: &mut [u8]) {
        into.fill(0xff);
    }
    fn mmio_write(&mut self, _: &mut Ram, _: u64, _: Gpa, _: &[u8]) {}
    fn end_of_interrupt(&mut self, _: u64, _: u8) {}
    fn pic_interrupt(&self) -> bool {
        false
    }
    fn acknowledge_pic(&mut self) -> u8 {
        0xff
    }
    fn attention(&self) -> bool {
        false
    }
}
