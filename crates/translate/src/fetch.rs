//! Guest code where it is in RAM.

use cpu::{Access, Cpu, Place};
use memory::RamOffset;

/// Where the code at `gva` is, unless fetching there raises something or it is not RAM.
pub(crate) fn fetch_place(cpu: &mut Cpu<'_>, gva: u64) -> Option<RamOffset> {
    let side = cpu.vcpu.mode.walk_side;
    match cpu.vcpu.tlb.lookup_exec(side, gva) {
        Some(at) => Some(RamOffset(at)),
        None if !cpu.is_valid_linear(gva) => None,
        None => match cpu.translate(side, gva, Access::Exec) {
            Ok(Place::Ram(at)) => Some(at),
            _ => None,
        },
    }
}

/// Has writes to the code noticed.
pub(crate) fn mark_code(cpu: &mut Cpu<'_>, at: RamOffset, len: u64) {
    if cpu.ram.mark_code(at, len) {
        cpu.vcpu.tlb.revoke_write(at.page());
    }
}
