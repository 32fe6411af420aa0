//! The Linux 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst, "64-bit boot
//! protocol"; fields of the zero page in zero-page.rst).

use cpu::gpr;
use memory::Ram;
use types::Gpa;

use crate::bytes::put;
use crate::bzimage::HEADER_AT;
use crate::entry::{Entry, write_page_tables};
use crate::error::BootError;
use crate::memory_map::memory_map;
use crate::places;

/// Command line a Linux kernel takes when no header says otherwise (COMMAND_LINE_SIZE, less NUL).
pub(crate) const CMDLINE_MAX: u64 = 2047;
/// Offset of the decompressor's 64-bit entry in the protected-mode part (boot.rst).
pub(crate) const DECOMPRESSOR_ENTRY: u64 = 0x200;

const ZERO_PAGE_SIZE: usize = 4096;
/// Boot loader id for loaders without one of their own (boot.rst, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;

mod field {
    //! Offsets into the zero page.
    pub(super) const ACPI_RSDP: usize = 0x070;
    pub(super) const E820_COUNT: usize = 0x1e8;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const HEADER_MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const INITRD: usize = 0x218;
    pub(super) const INITRD_SIZE: usize = 0x21c;
    pub(super) const CMDLINE: usize = 0x228;
    pub(super) const ALIGNMENT: usize = 0x230;
    pub(super) const E820: usize = 0x2d0;
}

/// What the zero page tells the kernel.
pub(crate) struct LinuxBoot<'a> {
    /// Setup header of the bzImage, if there is one.
    pub(crate) header: Option<&'a [u8]>,
    /// Where the kernel was loaded.
    pub(crate) load_gpa: u64,
    /// 64-bit entry point.
    pub(crate) entry: u64,
    /// Address and size of the initrd.
    pub(crate) initrd: Option<(u64, u64)>,
    /// Address of the ACPI root pointer.
    pub(crate) rsdp: u64,
}

impl LinuxBoot<'_> {
    /// Writes zero page, page tables and GDT; the state to enter with.
    pub(crate) fn prepare(&self, ram: &mut Ram) -> Result<Entry, BootError> {
        let page = self.zero_page(ram);
        ram.write(Gpa(places::ZERO_PAGE), &page)?;
        write_page_tables(ram)?;
        let entry = Entry::long(self.entry).with(gpr::RSI, places::ZERO_PAGE);
        entry.write_gdt(ram)?;
        Ok(entry)
    }

    fn zero_page(&self, ram: &Ram) -> Vec<u8> {
        let mut page = vec![0; ZERO_PAGE_SIZE];
        match self.header {
            Some(header) => page[HEADER_AT as usize..][..header.len()].copy_from_slice(header),
            None => plain_header(&mut page),
        }
        page[field::LOADER] = LOADER_UNDEFINED;
        // Among the cleared flags is KASLR_FLAG: the kernel stays where it is linked, and its
        // memory regions too.
        page[field::LOADFLAGS] = LOADED_HIGH;
        put(&mut page, field::CODE32_START, (self.load_gpa as u32).to_le_bytes());
        put(&mut page, field::CMDLINE, (places::CMDLINE as u32).to_le_bytes());
        put(&mut page, field::ACPI_RSDP, self.rsdp.to_le_bytes());
        let (initrd, size) = self.initrd.unwrap_or((0, 0));
        put(&mut page, field::INITRD, (initrd as u32).to_le_bytes());
        put(&mut page, field::INITRD_SIZE, (size as u32).to_le_bytes());
        let map = memory_map(ram.layout());
        page[field::E820_COUNT] = map.len() as u8;
        for (index, range) in map.iter().enumerate() {
            let at = field::E820 + index * 20;
            put(&mut page, at, range.gpa.to_le_bytes());
            put(&mut page, at + 8, range.size.to_le_bytes());
            put(&mut page, at + 16, (range.kind as u32).to_le_bytes());
        }
        page
    }
}

/// The least header a vmlinux that came without one reads.
fn plain_header(page: &mut [u8]) {
    put(page, field::BOOT_FLAG, 0xaa55u16.to_le_bytes());
    put(page, field::HEADER_MAGIC, *b"HdrS");
    put(page, field::VERSION, 0x020fu16.to_le_bytes());
    put(page, field::ALIGNMENT, 0x20_0000u32.to_le_bytes());
}
