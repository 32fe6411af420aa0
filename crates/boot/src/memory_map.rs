//! The machine's memory map, in the types the BIOS call E820 made customary.

use memory::Layout;

use crate::places;

/// What a range of physical addresses is (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM the kernel may use.
    Usable = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub gpa: u64,
    /// Bytes, not 0.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The memory map, sorted, without overlaps. MMIO is in none of its ranges but for PCI's
/// configuration space, which kernels use only if it is reserved here. The ACPI tables lie
/// in a reserved range: they are read for as long as the kernel runs.
pub fn memory_map(layout: Layout) -> Vec<MemoryRange> {
    use RangeKind::{Reserved, Usable};
    let ranges = [
        (0, places::EBDA, Usable),
        (places::EBDA, places::BASE_MEMORY_END, Reserved),
        (places::ACPI, places::HIGH_MEMORY, Reserved),
        (places::HIGH_MEMORY, layout.low_size, Usable),
        (places::ECAM, places::ECAM + places::ECAM_SIZE, Reserved),
        (Layout::HIGH_START, Layout::HIGH_START + layout.high_size, Usable),
    ];
    let present = ranges.into_iter().filter(|(start, end, _)| start < end);
    present.map(|(gpa, end, kind)| MemoryRange { gpa, size: end - gpa, kind }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_lists_ram_and_nothing_else_as_usable() {
        let map = memory_map(Layout::of(4 << 30));
        let usable: Vec<_> = map.iter().filter(|range| range.kind == RangeKind::Usable).collect();
        assert_eq!(usable.len(), 3);
        assert_eq!((usable[1].gpa, usable[1].size), (0x10_0000, 0xbff0_0000));
        assert_eq!((usable[2].gpa, usable[2].size), (1 << 32, 1 << 30));
        assert!(map.windows(2).all(|pair| pair[0].gpa + pair[0].size <= pair[1].gpa));
    }

    #[test]
    fn memory_map_of_small_ram_ends_with_it() {
        let map = memory_map(Layout::of(2 << 20));
        let usable = map.iter().rfind(|range| range.kind == RangeKind::Usable).unwrap();
        assert_eq!(usable.gpa + usable.size, 2 << 20);
    }
}
