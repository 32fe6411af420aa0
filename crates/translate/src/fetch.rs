//! Guest code where it is in RAM.

use cpu::{Access, Cpu, Place};
use memory::{Ram, RamOffset};
use types::PAGE_MASK;

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

/// What copies bytes of the page of `at`, from an offset in it on.
pub(crate) fn page_reader(ram: &Ram, at: RamOffset) -> impl Fn(u16, &mut [u8]) + '_ {
    let page = at.0 & !PAGE_MASK;
    move |offset, into| ram.load_bytes(RamOffset(page + u64::from(offset)), into)
}

/// Has writes to the code noticed.
pub(crate) fn mark_code(cpu: &mut Cpu<'_>, at: RamOffset, len: u64) {
    if cpu.ram.mark_code(at, len) {
        cpu.vcpu.tlb.revoke_write(at.page());
    }
}
