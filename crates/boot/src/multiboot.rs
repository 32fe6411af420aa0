//! Multiboot, version 1 (Multiboot Specification 0.6.96): how test kernels are mostly built.

use cpu::gpr;
use memory::{Layout, Ram};
use types::Gpa;

use crate::bytes::{put, slice, u32_at};
use crate::elf::Segment;
use crate::entry::Entry;
use crate::error::BootError;
use crate::memory_map::memory_map;
use crate::places;

/// The header lies within so many bytes of the file's start (3.1).
const SEARCH_SIZE: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// EAX at entry (3.2).
const ENTRY_MAGIC: u64 = 0x2bad_b002;
/// Header flags: page-aligned modules, memory map, video mode (which a text machine may ignore).
const FLAGS_KNOWN: u32 = 0x7;
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Flags in bits 0..16 are demands; those above are information (3.1.2).
const FLAGS_DEMANDS: u32 = 0xffff;

/// Kernels read the first word of the command line as the kernel's name (3.3, `cmdline`).
pub(crate) const CMDLINE_PREFIX: &str = "kernel ";
/// Most bytes of command line; the specification has no limit.
pub(crate) const CMDLINE_MAX: u64 = 4095;

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Offset in the file.
    at: u64,
    flags: u32,
}

/// Finds the header in a file.
pub(crate) fn find(file: &[u8]) -> Option<Header> {
    let end = SEARCH_SIZE.min(file.len() as u64);
    (0..end.saturating_sub(11)).step_by(4).find_map(|at| {
        let words = [u32_at(file, at)?, u32_at(file, at + 4)?, u32_at(file, at + 8)?];
        let sum = words[0].wrapping_add(words[1]).wrapping_add(words[2]);
        (words[0] == HEADER_MAGIC && sum == 0).then_some(Header { at, flags: words[1] })
    })
}

impl Header {
    /// Refuses demands this loader does not know.
    pub(crate) fn check(self) -> Result<Header, BootError> {
        match self.flags & FLAGS_DEMANDS & !FLAGS_KNOWN {
            0 => Ok(self),
            flags => Err(BootError::MultibootFeatures { flags }),
        }
    }

    /// Whether the header itself says where the file goes (3.1.3), as non-ELF files must.
    pub(crate) fn has_addresses(self) -> bool {
        self.flags & FLAG_ADDRESSES != 0
    }

    /// The file as one segment, and its entry point, by the header's address fields.
    pub(crate) fn segment<'a>(&self, file: &'a [u8]) -> Result<(Segment<'a>, u64), BootError> {
        let field = |index: u64| u32_at(file, self.at + 12 + index * 4).map(u64::from);
        let fields = (field(0), field(1), field(2), field(3), field(4));
        let (Some(header), Some(load), Some(load_end), Some(bss_end), Some(entry)) = fields else {
            let (needed, size) = (self.at + 32, file.len() as u64);
            return Err(BootError::Truncated { what: "the multiboot header", needed, size });
        };
        let corrupt = BootError::Corrupt { what: "its multiboot addresses contradict each other" };
        let Some(start) = header.checked_sub(load).and_then(|skip| self.at.checked_sub(skip))
        else {
            return Err(corrupt);
        };
        let in_file = if load_end == 0 {
            file.len() as u64 - start
        } else {
            load_end.checked_sub(load).ok_or(corrupt.clone())?
        };
        let (needed, size) = (start + in_file, file.len() as u64);
        let what = "the multiboot image";
        let bytes =
            slice(file, start, in_file).ok_or(BootError::Truncated { what, needed, size })?;
        let size = in_file.max(bss_end.saturating_sub(load));
        if entry.wrapping_sub(load) >= size {
            return Err(BootError::EntryOutside { entry });
        }
        Ok((Segment { gpa: load, bytes, size }, entry))
    }
}

mod flag {
    //! Bits of the information structure's `flags` (3.3).
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
}

/// Offsets from the information structure, which takes 116 bytes.
const MODULE_AT: usize = 128;
const NAME_AT: usize = 144;
const MAP_AT: usize = 160;

/// Writes the information structure and what it points at; the state to enter with.
pub(crate) fn prepare(
    ram: &mut Ram,
    entry: u64,
    initrd: Option<(u64, u64)>,
) -> Result<Entry, BootError> {
    let mut info = vec![0; MAP_AT];
    let at = |offset: usize| places::START_INFO as u32 + offset as u32;
    let mut flags = flag::MEMORY | flag::CMDLINE | flag::MEMORY_MAP | flag::LOADER_NAME;
    let mut word = |offset: usize, value: u32| put(&mut info, offset, value.to_le_bytes());
    let layout = ram.layout();
    word(4, (places::EBDA >> 10) as u32);
    word(8, ((layout.low_size - places::HIGH_MEMORY) >> 10) as u32);
    word(16, places::CMDLINE as u32);
    if let Some((gpa, size)) = initrd {
        flags |= flag::MODULES;
        word(20, 1);
        word(24, at(MODULE_AT));
        word(MODULE_AT, gpa as u32);
        word(MODULE_AT + 4, (gpa + size) as u32);
    }
    word(64, at(NAME_AT));
    word(48, at(MAP_AT));
    put(&mut info, NAME_AT, *b"doppel\0");
    let map = map_entries(layout);
    put(&mut info, 44, (map.len() as u32).to_le_bytes());
    put(&mut info, 0, flags.to_le_bytes());
    info.extend(map);
    ram.write(Gpa(places::START_INFO), &info)?;
    let entry =
        Entry::protected(entry).with(gpr::RAX, ENTRY_MAGIC).with(gpr::RBX, places::START_INFO);
    entry.write_gdt(ram)?;
    Ok(entry)
}

/// Entries of 24 bytes: their size less 4, address, size, type.
fn map_entries(layout: Layout) -> Vec<u8> {
    let mut entries = Vec::new();
    for range in memory_map(layout) {
        entries.extend(20u32.to_le_bytes());
        entries.extend(range.gpa.to_le_bytes());
        entries.extend(range.size.to_le_bytes());
        entries.extend((range.kind as u32).to_le_bytes());
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn image(flags: u32, addresses: [u32; 5]) -> Vec<u8> {
        let mut image = vec![0u8; 0x40];
        let sum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        for word in [HEADER_MAGIC, flags, sum].into_iter().chain(addresses) {
            image.extend(word.to_le_bytes());
        }
        image.resize(0x1000, 0x90);
        image
    }

    #[test]
    fn multiboot_addresses_place_the_file() {
        let file = image(FLAG_ADDRESSES, [0x10_0040, 0x10_0000, 0, 0x10_4000, 0x10_0100]);
        let (segment, entry) = find(&file).unwrap().check().unwrap().segment(&file).unwrap();
        assert_eq!((segment.gpa, segment.size, entry), (0x10_0000, 0x4000, 0x10_0100));
        assert_eq!(segment.bytes.len(), file.len());
    }

    #[test]
    fn multiboot_unknown_demand_is_refused() {
        let file = image(0x8001, [0; 5]);
        let error = find(&file).unwrap().check().unwrap_err();
        assert_eq!(error, BootError::MultibootFeatures { flags: 0x8000 });
    }

    #[test]
    fn multiboot_bad_addresses_are_errors() {
        for addresses in [
            [0x10_0000, 0x10_0040, 0, 0, 0x10_0000],
            [0x10_0100, 0x10_0000, 0, 0, 0x10_0000],
            [0x10_0040, 0x10_0000, 0x0f_0000, 0, 0x10_0000],
            [0x10_0040, 0x10_0000, 0x20_0000, 0, 0x10_0000],
            [0x10_0040, 0x10_0000, 0, 0, 0x30_0000],
        ] {
            let file = image(FLAG_ADDRESSES, addresses);
            assert!(find(&file).unwrap().segment(&file).is_err(), "{addresses:x?}");
        }
    }

    #[test]
    fn multiboot_mutated_never_panics() {
        let original = image(FLAG_ADDRESSES, [0x10_0040, 0x10_0000, 0, 0x10_4000, 0x10_0100]);
        let mut random = Random(4);
        for _ in 0..20_000 {
            let mut file = original.clone();
            random.mutate(&mut file[0x4c..0x60]);
            let _ = find(&file).map(|header| header.segment(&file));
        }
    }
}
