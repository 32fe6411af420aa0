//! I/O ports: permission (SDM vol. 1, 19.5) and the access itself.

use crate::Cpu;
use crate::exception::{Exception, Result};

impl Cpu<'_> {
    /// Raises #GP(0) unless `size` ports from `port` may be used: IOPL, or the TSS's bitmap.
    ///
    /// # Errors
    /// #GP(0), or what reading the bitmap raises.
    pub fn check_port(&mut self, port: u16, size: u64) -> Result<()> {
        let mode = &self.vcpu.mode;
        if !mode.protected || (self.vcpu.cpl <= self.vcpu.iopl() && !mode.v86) {
            return Ok(());
        }
        let tr = self.vcpu.tr;
        if tr.kind() & 9 != 9 || tr.limit < 0x67 {
            return Err(Exception::GP0);
        }
        let map: u16 = self.read_system(tr.base.wrapping_add(0x66))?;
        let byte = u32::from(map) + u32::from(port / 8);
        if byte + 1 > tr.limit {
            return Err(Exception::GP0);
        }
        let bits: u16 = self.read_system(tr.base.wrapping_add(u64::from(byte)))?;
        let mask = ((1u16 << size) - 1) << (port & 7);
        if bits & mask == 0 { Ok(()) } else { Err(Exception::GP0) }
    }

    /// `IN` of `size` bytes, already permitted.
    pub fn port_in(&mut self, port: u16, size: u8) -> u32 {
        let value = self.bus.port_read(self.ram, self.vcpu.branches, port, size);
        self.after_bus_access();
        value
    }

    /// `OUT` of `size` bytes, already permitted.
    pub fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.bus.port_write(self.ram, self.vcpu.branches, port, size, value);
        self.after_bus_access();
    }
}
