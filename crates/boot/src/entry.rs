//! The state of the vCPU at the kernel's first instruction, as plain data, and the descriptor and
//! page tables in RAM that go with it.

use cpu::{Segment, Table, attr, cr, flag, gpr};
use memory::Ram;
use types::Gpa;

use crate::error::BootError;
use crate::places;

/// How the first instruction is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// 32-bit protected mode, paging off.
    Protected32,
    /// 64-bit mode, the first 4 GiB mapped one to one.
    Long64,
}

/// All of the vCPU that is not as after reset. The machine applies it to a reset vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mode, as the control registers and CS say too.
    pub mode: EntryMode,
    /// First instruction, linear (= physical) address.
    pub rip: u64,
    /// General registers in the order of [`cpu::gpr`].
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// CS.
    pub cs: Segment,
    /// DS, ES, SS, FS and GS, all alike.
    pub data: Segment,
    /// TR, a busy TSS.
    pub tr: Segment,
    /// LDTR, null.
    pub ldtr: Segment,
    /// GDTR; the table holds the descriptors of `cs`, `data` and `tr`.
    pub gdt: Table,
    /// IDTR, empty: an exception before the kernel sets its own is a triple fault.
    pub idt: Table,
}

/// Selectors that Linux's boot protocol fixes: `__BOOT_CS`, `__BOOT_DS`, `__BOOT_TSS`.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Present, code/data, type: execute-read accessed and read-write accessed (SDM vol. 3, 3.4.5).
const CODE: u32 = 0x9b;
const DATA: u32 = 0x93;
/// Present, system, busy 32-bit (in long mode 64-bit) TSS.
const TSS_BUSY: u32 = 0x8b;
impl Entry {
    /// Entry in 32-bit protected mode with flat segments (PVH, multiboot).
    pub(crate) fn protected(rip: u64) -> Entry {
        let code = flat(BOOT_CS, CODE | attr::DB | attr::G);
        Entry { mode: EntryMode::Protected32, cs: code, ..Entry::long(rip) }.without_paging()
    }

    fn without_paging(self) -> Entry {
        Entry { cr0: cr::CR0_PE | cr::CR0_ET, cr3: 0, cr4: 0, efer: 0, ..self }
    }

    /// Entry in 64-bit mode on the page tables of [`write_page_tables`].
    pub(crate) fn long(rip: u64) -> Entry {
        let mut registers = [0; 16];
        registers[gpr::RSP] = places::STACK_TOP;
        Entry {
            mode: EntryMode::Long64,
            rip,
            gpr: registers,
            rflags: flag::FIXED,
            cr0: cr::CR0_PE | cr::CR0_ET | cr::CR0_NE | cr::CR0_PG,
            cr3: places::PAGE_TABLES,
            cr4: cr::CR4_PAE,
            efer: cr::EFER_LME | cr::EFER_LMA,
            cs: flat(BOOT_CS, CODE | attr::L | attr::G),
            data: flat(BOOT_DS, DATA | attr::DB | attr::G),
            tr: Segment { selector: BOOT_TSS, base: 0, limit: 0x67, attributes: TSS_BUSY },
            ldtr: Segment { attributes: attr::UNUSABLE, ..Segment::default() },
            gdt: Table { base: places::GDT, limit: 6 * 8 - 1 },
            idt: Table::default(),
        }
    }

    /// With a general register set; `index` as in [`cpu::gpr`].
    pub(crate) fn with(mut self, index: usize, value: u64) -> Entry {
        self.gpr[index] = value;
        self
    }

    /// Writes the descriptors of the entry's segments to its GDT.
    pub(crate) fn write_gdt(&self, ram: &mut Ram) -> Result<(), BootError> {
        let mut table = [0u64; 6];
        for segment in [self.cs, self.data, self.tr] {
            table[usize::from(segment.selector / 8)] = descriptor(segment);
        }
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        Ok(ram.write(Gpa(self.gdt.base), &bytes)?)
    }
}

fn flat(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

/// The descriptor that a load of the segment would read (SDM vol. 3, figure 3-8).
fn descriptor(segment: Segment) -> u64 {
    let limit = u64::from(if segment.attributes & attr::G != 0 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let base = segment.base;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | u64::from(segment.attributes) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Maps the first 4 GiB one to one with 2 MiB pages (SDM vol. 3, 4.5.4), as the 64-bit boot
/// protocol asks for kernel, zero page and command line.
pub(crate) fn write_page_tables(ram: &mut Ram) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    const ENTRIES: u64 = 512;
    let table = |index: u64| places::PAGE_TABLES + index * 4096;
    let mut write_table = |at: u64, entries: Vec<u64>| {
        let mut page = vec![0; 4096];
        for (slot, entry) in page.chunks_exact_mut(8).zip(entries) {
            slot.copy_from_slice(&entry.to_le_bytes());
        }
        ram.write(Gpa(at), &page)
    };
    write_table(table(0), vec![table(1) | PRESENT_WRITABLE])?;
    write_table(table(1), (2..6).map(|index| table(index) | PRESENT_WRITABLE).collect())?;
    for gigabyte in 0..4u64 {
        let large = |index| (gigabyte * ENTRIES + index) << 21 | PRESENT_WRITABLE | LARGE;
        write_table(table(2 + gigabyte), (0..ENTRIES).map(large).collect())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_matches_the_manual() {
        assert_eq!(descriptor(Entry::protected(0).cs), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(Entry::long(0).cs), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(Entry::long(0).data), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(Entry::long(0).tr), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn page_tables_map_four_gibibytes_to_themselves() {
        let mut ram = Ram::new(1 << 20).unwrap();
        write_page_tables(&mut ram).unwrap();
        let entry = |ram: &Ram, table: u64, index: u64| {
            let mut bytes = [0; 8];
            ram.read(Gpa((table & !0xfff) + index * 8), &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        for gpa in [0u64, 0x10_0000, 0x123_4567, 0xbfff_ffff, 0xffff_ffff] {
            let top = entry(&ram, places::PAGE_TABLES, gpa >> 39);
            let directory = entry(&ram, top, gpa >> 30 & 511);
            let page = entry(&ram, directory, gpa >> 21 & 511);
            assert_eq!(page & 0xfff, 0x83, "{gpa:#x}");
            assert_eq!(page & !0xfff, gpa & !0x1f_ffff);
        }
        assert_eq!(entry(&ram, entry(&ram, places::PAGE_TABLES, 0), 4), 0);
    }
}
