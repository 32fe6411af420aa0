//! ELF executables of both classes, as far as a loader of kernels needs (System V ABI, chapters 4
//! and 5): the header, program headers and the PVH note.

use crate::bytes::{slice, u8_at, u16_at, u32_at, u64_at};
use crate::error::BootError;

pub(crate) const MAGIC: &[u8] = b"\x7fELF";
/// Most program headers read; a Linux kernel has five.
const SEGMENTS_MAX: u16 = 64;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// ELF machine numbers people may try, for the message.
const MACHINES: &[(u16, &str)] = &[
    (2, "sparc"),
    (8, "mips"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (22, "s390"),
    (40, "arm"),
    (50, "ia64"),
    (183, "aarch64"),
    (243, "riscv"),
    (258, "loongarch"),
];

/// A part of the file to be placed in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    /// Physical address.
    pub(crate) gpa: u64,
    /// Bytes from the file.
    pub(crate) bytes: &'a [u8],
    /// Size in RAM, at least that of `bytes`; the rest is zero.
    pub(crate) size: u64,
}

impl Segment<'_> {
    /// First address after the segment.
    pub(crate) fn end(&self) -> Option<u64> {
        self.gpa.checked_add(self.size)
    }
}

/// A parsed ELF executable.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    /// Whether the class is 64-bit.
    pub(crate) is_64: bool,
    /// Entry point as the header has it.
    pub(crate) entry: u64,
    /// Loadable segments of non-zero size, in file order.
    pub(crate) segments: Vec<Segment<'a>>,
    /// 32-bit physical entry of the PVH note, if there is one.
    pub(crate) pvh_entry: Option<u64>,
    /// Whether it asks for a dynamic linker, so is a user program.
    pub(crate) is_program: bool,
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

impl<'a> Elf<'a> {
    /// Parses `file`, which starts with [`MAGIC`].
    pub(crate) fn parse(file: &'a [u8]) -> Result<Elf<'a>, BootError> {
        let is_64 = check_ident(file)?;
        let header_size = if is_64 { 64 } else { 52 };
        let short = || truncated("the ELF header", header_size, file);
        slice(file, 0, header_size).ok_or_else(short)?;
        let word = |at64, at32| {
            if is_64 { u64_at(file, at64) } else { u32_at(file, at32).map(u64::from) }
        };
        let entry = word(24, 24).ok_or_else(short)?;
        let headers_at = word(32, 28).ok_or_else(short)?;
        let (size_at, count_at) = if is_64 { (54, 56) } else { (42, 44) };
        let header_step = u16_at(file, size_at).ok_or_else(short)?;
        let count = u16_at(file, count_at).ok_or_else(short)?;
        if count > SEGMENTS_MAX {
            return Err(BootError::Corrupt { what: "its ELF header counts too many segments" });
        }
        if count > 0 && u64::from(header_step) < if is_64 { 56 } else { 32 } {
            return Err(BootError::Corrupt { what: "its ELF program headers are too small" });
        }
        let mut elf =
            Elf { is_64, entry, segments: Vec::new(), pvh_entry: None, is_program: false };
        for index in 0..u64::from(count) {
            let at = headers_at.checked_add(index * u64::from(header_step));
            let header = at.and_then(|at| program_header(file, at, is_64));
            let needed = headers_at.saturating_add((index + 1) * u64::from(header_step));
            elf.take(
                header.ok_or_else(|| truncated("an ELF program header", needed, file))?,
                file,
            )?;
        }
        elf.physical_entry(file, headers_at, header_step, count);
        Ok(elf)
    }

    fn take(&mut self, header: ProgramHeader, file: &'a [u8]) -> Result<(), BootError> {
        match header.kind {
            PT_LOAD if header.memory_size > 0 => self.segments.push(segment(&header, file)?),
            PT_NOTE if self.pvh_entry.is_none() => {
                let notes = slice(file, header.offset, header.file_size)
                    .ok_or_else(|| missing("an ELF note segment", &header, file))?;
                self.pvh_entry = pvh_entry(notes, header.align);
            }
            PT_INTERP => self.is_program = true,
            _ => {}
        }
        Ok(())
    }

    /// Some kernels give a virtual entry point: where a segment holds it by virtual address only,
    /// it becomes that segment's physical address.
    fn physical_entry(&mut self, file: &[u8], headers_at: u64, step: u16, count: u16) {
        if self.holds(self.entry) {
            return;
        }
        let headers = (0..u64::from(count)).filter_map(|index| {
            let at = headers_at.checked_add(index * u64::from(step))?;
            program_header(file, at, self.is_64)
        });
        for header in headers.filter(|header| header.kind == PT_LOAD) {
            let offset = self.entry.wrapping_sub(header.vaddr);
            if offset < header.file_size {
                self.entry = header.paddr.wrapping_add(offset);
                return;
            }
        }
    }

    /// Whether a loaded byte of the file lies at physical address `gpa`.
    pub(crate) fn holds(&self, gpa: u64) -> bool {
        self.segments.iter().any(|s| gpa.wrapping_sub(s.gpa) < s.bytes.len() as u64)
    }
}

/// Checks the identification bytes; true for the 64-bit class.
fn check_ident(file: &[u8]) -> Result<bool, BootError> {
    let short = || truncated("the ELF header", 52, file);
    let class = u8_at(file, 4).ok_or_else(short)?;
    let big_endian = u8_at(file, 5).ok_or_else(short)? == 2;
    let raw = u16_at(file, 18).ok_or_else(short)?;
    let machine = if big_endian { raw.swap_bytes() } else { raw };
    match (class, machine, big_endian) {
        (CLASS_32, MACHINE_386 | MACHINE_X86_64, false) => Ok(false),
        (CLASS_64, MACHINE_X86_64, false) => Ok(true),
        (CLASS_32 | CLASS_64, ..) => {
            let name = MACHINES.iter().find(|(number, _)| *number == machine);
            let found = match name {
                Some((_, name)) => format!("{name} (an ELF)"),
                None => format!("ELF machine {machine}"),
            };
            Err(BootError::WrongArchitecture { found })
        }
        _ => Err(BootError::Corrupt { what: "its ELF class is neither 32-bit nor 64-bit" }),
    }
}

fn program_header(file: &[u8], at: u64, is_64: bool) -> Option<ProgramHeader> {
    let bytes = slice(file, at, if is_64 { 56 } else { 32 })?;
    let (word32, word64) = (|at| u32_at(bytes, at).map(u64::from), |at| u64_at(bytes, at));
    let kind = u32_at(bytes, 0)?;
    Some(if is_64 {
        ProgramHeader {
            kind,
            offset: word64(8)?,
            vaddr: word64(16)?,
            paddr: word64(24)?,
            file_size: word64(32)?,
            memory_size: word64(40)?,
            align: word64(48)?,
        }
    } else {
        ProgramHeader {
            kind,
            offset: word32(4)?,
            vaddr: word32(8)?,
            paddr: word32(12)?,
            file_size: word32(16)?,
            memory_size: word32(20)?,
            align: word32(28)?,
        }
    })
}

fn segment<'a>(header: &ProgramHeader, file: &'a [u8]) -> Result<Segment<'a>, BootError> {
    if header.file_size > header.memory_size {
        return Err(BootError::Corrupt {
            what: "an ELF segment is larger in the file than in RAM",
        });
    }
    let bytes = slice(file, header.offset, header.file_size)
        .ok_or_else(|| missing("an ELF segment", header, file))?;
    let segment = Segment { gpa: header.paddr, bytes, size: header.memory_size };
    match segment.end() {
        Some(_) => Ok(segment),
        None => Err(BootError::Corrupt { what: "an ELF segment runs past the last address" }),
    }
}

fn missing(what: &'static str, header: &ProgramHeader, file: &[u8]) -> BootError {
    truncated(what, header.offset.saturating_add(header.file_size), file)
}

fn truncated(what: &'static str, needed: u64, file: &[u8]) -> BootError {
    BootError::Truncated { what, needed, size: file.len() as u64 }
}

/// The entry of XEN_ELFNOTE_PHYS32_ENTRY (18) of owner "Xen" (Xen, `public/elfnote.h`).
fn pvh_entry(notes: &[u8], align: u64) -> Option<u64> {
    const OWNER: &[u8] = b"Xen\0";
    const PHYS32_ENTRY: u32 = 18;
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0u64;
    loop {
        let name_size = u64::from(u32_at(notes, at)?);
        let value_size = u64::from(u32_at(notes, at + 4)?);
        let kind = u32_at(notes, at + 8)?;
        let name_at = at + 12;
        let value_at = (name_at + name_size).next_multiple_of(align);
        if kind == PHYS32_ENTRY && slice(notes, name_at, name_size)? == OWNER {
            return match value_size {
                4 => u32_at(notes, value_at).map(u64::from),
                8 => u64_at(notes, value_at),
                _ => None,
            };
        }
        at = (value_at + value_size).next_multiple_of(align);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ElfImage, Random};

    #[test]
    fn elf_of_both_classes_parses() {
        for is_64 in [false, true] {
            let image = ElfImage { is_64, pvh: Some(0x10_0004), ..ElfImage::default() }.build();
            let elf = Elf::parse(&image).unwrap();
            assert_eq!((elf.is_64, elf.entry), (is_64, 0x10_0000));
            assert_eq!(elf.pvh_entry, Some(0x10_0004));
            assert_eq!(elf.segments.len(), 1);
            assert_eq!(elf.segments[0].size, 0x3000);
        }
    }

    #[test]
    fn elf_virtual_entry_becomes_physical() {
        let image =
            ElfImage { vaddr: 0xffff_ffff_8010_0000, ..ElfImage::default() }.build_with(|image| {
                image[24..32].copy_from_slice(&0xffff_ffff_8010_0010u64.to_le_bytes());
            });
        assert_eq!(Elf::parse(&image).unwrap().entry, 0x10_0010);
    }

    #[test]
    fn elf_of_other_machine_is_named() {
        let image = ElfImage { machine: 183, ..ElfImage::default() }.build();
        let error = Elf::parse(&image).unwrap_err().to_string();
        assert!(error.contains("aarch64"), "{error}");
    }

    #[test]
    fn elf_truncated_anywhere_is_an_error() {
        let image = ElfImage { pvh: Some(0x10_0004), ..ElfImage::default() }.build();
        for len in 4..image.len() {
            assert!(matches!(Elf::parse(&image[..len]), Err(BootError::Truncated { .. })), "{len}");
        }
    }

    #[test]
    fn elf_mutated_never_panics() {
        let mut random = Random(2);
        for is_64 in [false, true] {
            let image = ElfImage { is_64, pvh: Some(0x10_0004), ..ElfImage::default() }.build();
            for _ in 0..20_000 {
                let mut image = image.clone();
                random.mutate(&mut image[..300]);
                let _ = Elf::parse(&image);
            }
        }
    }
}
