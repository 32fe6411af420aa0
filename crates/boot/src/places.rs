//! Where boot data lies below 1 MiB, and how kernel and initrd find room above it.

use memory::Ram;
use types::{Gpa, PAGE_MASK, PAGE_SIZE};

use crate::elf::Segment;
use crate::error::BootError;

/// BIOS data area: base memory size in KiB, at 0x40:0x13, and EBDA segment, at 0x40:0x0e.
const BDA_EBDA_SEGMENT: u64 = 0x40e;
const BDA_BASE_MEMORY: u64 = 0x413;
/// Global descriptor table at entry.
pub(crate) const GDT: u64 = 0x1000;
/// PVH start_info or multiboot information, with what they point at; one page.
pub(crate) const START_INFO: u64 = 0x2000;
/// Linux zero page (boot_params).
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// End of a stack for kernels that expect one.
pub(crate) const STACK_TOP: u64 = 0x7000;
/// Six pages of page tables.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Command line with its NUL.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Most bytes of command line with its NUL, whatever the kernel says.
pub(crate) const CMDLINE_SIZE_MAX: u64 = 0x1_0000;
/// Extended BIOS data area: usable memory below it, reserved from here to 640 KiB.
pub(crate) const EBDA: u64 = 0x9_fc00;
/// VM generation id, 16 bytes: reserved, and not where BIOS data may be.
pub const GENERATION: u64 = 0x9_fe00;
/// General-purpose event that tells of a new VM generation id.
pub const GENERATION_EVENT: u8 = 5;
/// End of base memory.
pub(crate) const BASE_MEMORY_END: u64 = 0xa_0000;
/// PCI's memory-mapped configuration space of 256 buses.
pub const ECAM: u64 = 0xe000_0000;
/// Its bytes.
pub const ECAM_SIZE: u64 = 256 << 20;
/// ACPI tables, where a search for the RSDP looks (ACPI 6.5, 5.2.5.1).
pub(crate) const ACPI: u64 = 0xe_0000;
/// First address for kernels and initrds.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// What a kernel that predates a BIOS-less world reads from the BIOS data area.
pub(crate) fn write_bios_data(ram: &mut Ram) -> Result<(), BootError> {
    ram.write(Gpa(BDA_EBDA_SEGMENT), &((EBDA >> 4) as u16).to_le_bytes())?;
    Ok(ram.write(Gpa(BDA_BASE_MEMORY), &((EBDA >> 10) as u16).to_le_bytes())?)
}

/// Copies segments into RAM and returns the first address after them all.
pub(crate) fn place_segments(ram: &mut Ram, segments: &[Segment<'_>]) -> Result<u64, BootError> {
    let mut end = HIGH_MEMORY;
    for segment in segments {
        check_room(ram, segment.gpa, segment.size)?;
        end = end.max(segment.gpa + segment.size);
    }
    for segment in segments {
        ram.write(Gpa(segment.gpa), segment.bytes)?;
        let rest = segment.size - segment.bytes.len() as u64;
        clear(ram, segment.gpa + segment.bytes.len() as u64, rest)?;
    }
    Ok(end)
}

/// Whether a kernel may use `size` bytes at `gpa`.
pub(crate) fn check_room(ram: &Ram, gpa: u64, size: u64) -> Result<(), BootError> {
    if gpa < HIGH_MEMORY {
        return Err(BootError::KernelTooLow { gpa });
    }
    let end = gpa.saturating_add(size);
    ram.check(Gpa(gpa), size).map_err(|_| BootError::KernelTooLarge { end, ram: ram.size() })
}

/// Zeroes a range, leaving pages that are zero already untouched.
fn clear(ram: &mut Ram, gpa: u64, size: u64) -> Result<(), BootError> {
    let mut page = [0; PAGE_SIZE as usize];
    let (mut at, end) = (gpa, gpa + size);
    while at < end {
        let step = (PAGE_SIZE - (at & PAGE_MASK)).min(end - at);
        let piece = &mut page[..step as usize];
        ram.read(Gpa(at), piece)?;
        if piece.iter().any(|&byte| byte != 0) {
            piece.fill(0);
            ram.write(Gpa(at), piece)?;
        }
        at += step;
    }
    Ok(())
}

/// Copies the initrd to the highest page-aligned place in low RAM that ends at or below
/// `last` and starts at or above `floor`; its address.
pub(crate) fn place_initrd(
    ram: &mut Ram,
    initrd: &[u8],
    floor: u64,
    last: u64,
) -> Result<u64, BootError> {
    if initrd.is_empty() {
        return Err(BootError::InitrdEmpty);
    }
    let size = initrd.len() as u64;
    let top = ram.layout().low_size.min(last.saturating_add(1)) & !PAGE_MASK;
    let floor = floor.next_multiple_of(PAGE_SIZE);
    let room = top.saturating_sub(floor);
    if size > room {
        return Err(BootError::InitrdTooLarge { size, room, top });
    }
    let gpa = (top - size) & !PAGE_MASK;
    ram.write(Gpa(gpa), initrd)?;
    Ok(gpa)
}

/// Checks the command line against what the kernel takes and puts it, after `prefix`, in its
/// place. `max` counts bytes without the NUL.
pub(crate) fn place_cmdline(
    ram: &mut Ram,
    prefix: &str,
    cmdline: &str,
    max: u64,
) -> Result<(), BootError> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { at });
    }
    let max = max.min(CMDLINE_SIZE_MAX - 1 - prefix.len() as u64);
    let len = cmdline.len() as u64;
    if len > max {
        return Err(BootError::CmdlineTooLong { len, max });
    }
    let text = [prefix.as_bytes(), cmdline.as_bytes(), &[0]].concat();
    Ok(ram.write(Gpa(CMDLINE), &text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initrd_goes_to_the_top_below_the_limit() {
        let mut ram = Ram::new(16 << 20).unwrap();
        let at = place_initrd(&mut ram, &[7; 5000], 0x20_0000, u64::MAX).unwrap();
        assert_eq!(at, (16 << 20) - 8192);
        let at = place_initrd(&mut ram, &[7; 5000], 0x20_0000, 0x7f_ffff).unwrap();
        assert_eq!(at, 0x80_0000 - 8192);
        let error = place_initrd(&mut ram, &[7; 5000], 0x7f_f001, 0x7f_ffff).unwrap_err();
        assert_eq!(error, BootError::InitrdTooLarge { size: 5000, room: 0, top: 0x80_0000 });
        assert_eq!(place_initrd(&mut ram, &[], 0, 0), Err(BootError::InitrdEmpty));
    }

    #[test]
    fn segments_clear_what_the_last_boot_left() {
        let mut ram = Ram::new(4 << 20).unwrap();
        ram.write(Gpa(0x10_0000), &[0xee; 0x4000]).unwrap();
        let segment = Segment { gpa: 0x10_0010, bytes: b"abc", size: 0x2000 };
        assert_eq!(place_segments(&mut ram, &[segment]), Ok(0x10_2010));
        let mut back = [0xff; 0x2011];
        ram.read(Gpa(0x10_0010), &mut back).unwrap();
        assert_eq!(&back[..3], b"abc");
        assert!(back[3..0x2000].iter().all(|&b| b == 0));
        assert_eq!(back[0x2000], 0xee);
    }

    #[test]
    fn segments_outside_ram_are_refused() {
        let mut ram = Ram::new(4 << 20).unwrap();
        for (gpa, size) in [(0x3f_f000, 0x1001), (u64::MAX - 5, 5), (0xc000_0000, 1)] {
            let error = place_segments(&mut ram, &[Segment { gpa, bytes: &[], size }]).unwrap_err();
            assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error:?}");
        }
        let low = Segment { gpa: 0x7000, bytes: b"x", size: 1 };
        assert_eq!(place_segments(&mut ram, &[low]), Err(BootError::KernelTooLow { gpa: 0x7000 }));
    }

    #[test]
    fn cmdline_is_checked() {
        let mut ram = Ram::new(1 << 20).unwrap();
        assert_eq!(
            place_cmdline(&mut ram, "", &"a".repeat(11), 10),
            Err(BootError::CmdlineTooLong { len: 11, max: 10 })
        );
        assert_eq!(place_cmdline(&mut ram, "", "a\0b", 10), Err(BootError::CmdlineNul { at: 1 }));
        assert!(place_cmdline(&mut ram, "", &"a".repeat(1 << 20), u64::MAX).is_err());
        place_cmdline(&mut ram, "kernel ", "quiet", 10).unwrap();
        let mut back = [0xff; 13];
        ram.read(Gpa(CMDLINE), &mut back).unwrap();
        assert_eq!(&back, b"kernel quiet\0");
    }
}
