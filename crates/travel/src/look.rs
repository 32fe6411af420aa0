//! Looking at guest memory by virtual address: a page walk that leaves no trace, not even an
//! accessed bit.

use machine::Machine;
use memory::RamOffset;
use types::{Gpa, PAGE_SIZE};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LMA: u64 = 1 << 10;

/// No RAM is mapped at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is mapped at {0:#x}")]
pub struct NotMapped(pub u64);

/// The RAM byte at `gva`, by the page tables that `cr3` leads to.
pub(crate) fn place(machine: &Machine, cr3: u64, gva: u64) -> Result<RamOffset, NotMapped> {
    let vcpu = machine.vcpu();
    let not_mapped = NotMapped(gva);
    let gpa = if vcpu.cr0 & CR0_PG == 0 {
        Some(gva)
    } else if vcpu.msrs.efer & EFER_LMA != 0 {
        walk(machine, cr3 & ADDRESS, gva, 4, 8)
    } else if vcpu.cr4 & CR4_PAE != 0 {
        // The top level has four entries, at a multiple of 32.
        let entry = entry(machine, (cr3 & 0xffff_ffe0) + ((gva >> 30) & 3) * 8, 8);
        let top = entry.filter(|entry| entry & PRESENT != 0).ok_or(not_mapped)?;
        walk(machine, top & ADDRESS, gva & 0xffff_ffff, 2, 8)
    } else {
        walk(machine, cr3 & 0xffff_f000, gva & 0xffff_ffff, 2, 4)
    };
    gpa.and_then(|gpa| machine.ram().offset(Gpa(gpa))).ok_or(not_mapped)
}

fn entry(machine: &Machine, gpa: u64, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    machine.ram().read(Gpa(gpa), &mut bytes[..size]).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Walks `levels` levels of tables with entries of `size` bytes, the first table at `table`.
fn walk(machine: &Machine, mut table: u64, gva: u64, levels: u32, size: usize) -> Option<u64> {
    let index_bits = if size == 8 { 9 } else { 10 };
    for level in (0..levels).rev() {
        let shift = 12 + level * index_bits;
        let index = (gva >> shift) & ((1 << index_bits) - 1);
        let entry = entry(machine, table + index * size as u64, size)?;
        if entry & PRESENT == 0 {
            return None;
        }
        let within = (1u64 << shift) - 1;
        if level == 0 || (entry & LARGE != 0 && level < 3) {
            return Some((entry & ADDRESS & !within) | (gva & within));
        }
        table = entry & ADDRESS;
    }
    None
}

/// Copies bytes of a machine's memory at `gva`, by the page tables that `cr3` leads to, or those in
/// use.
///
/// # Errors
/// [`NotMapped`] with the first address where nothing is.
pub fn read_memory(
    machine: &Machine,
    cr3: Option<u64>,
    gva: u64,
    into: &mut [u8],
) -> Result<(), NotMapped> {
    read(machine, cr3.unwrap_or(machine.vcpu().cr3), gva, into)
}

/// Linear address of a machine's next instruction.
pub fn linear_rip(machine: &Machine) -> u64 {
    let vcpu = machine.vcpu();
    vcpu.mode.bases[cpu::Seg::Cs as usize].wrapping_add(vcpu.regs.rip())
}

/// Copies bytes at `gva` by the page tables that `cr3` leads to.
pub(crate) fn read(
    machine: &Machine,
    cr3: u64,
    gva: u64,
    into: &mut [u8],
) -> Result<(), NotMapped> {
    let mut done = 0;
    while done < into.len() {
        let at = gva.wrapping_add(done as u64);
        let step = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(into.len() - done);
        let from = place(machine, cr3, at)?;
        machine.ram().load_bytes(from, &mut into[done..done + step]);
        done += step;
    }
    Ok(())
}
