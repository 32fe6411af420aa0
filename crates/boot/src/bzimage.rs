//! The Linux bzImage: its setup header (Linux, Documentation/arch/x86/boot.rst) and the parts it
//! points at.

use crate::bytes::{slice, u8_at, u16_at, u32_at, u64_at};
use crate::error::BootError;

/// Offset of the setup header in the file and in the zero page.
pub(crate) const HEADER_AT: u64 = 0x1f1;
/// Size of the zero page, after which a header must not run.
const HEADER_END_MAX: u64 = 0x290;
/// Protocol 2.12: `xloadflags` and the 64-bit entry.
const PROTOCOL_MIN: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1 << 0;
const LOADED_HIGH: u8 = 1 << 0;
const SECTOR: u64 = 512;

/// A parsed bzImage.
#[derive(Debug)]
pub(crate) struct BzImage<'a> {
    /// The setup header as it goes into the zero page at [`HEADER_AT`].
    pub(crate) header: &'a [u8],
    /// The part loaded into RAM: decompressor and payload.
    pub(crate) protected: &'a [u8],
    /// The compressed vmlinux within it.
    pub(crate) payload: &'a [u8],
    /// Last address an initrd may use.
    pub(crate) initrd_last: u64,
    /// Most bytes of command line, the NUL not counted.
    pub(crate) cmdline_max: u64,
    /// Where `protected` goes for the image's own decompressor.
    pub(crate) load_gpa: u64,
    /// Bytes of RAM from `load_gpa` the decompressor needs.
    pub(crate) init_size: u64,
}

/// Whether `file` has the magic of a bzImage.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    slice(file, 0x202, 4) == Some(b"HdrS")
}

impl<'a> BzImage<'a> {
    /// Parses a file for which [`is_bzimage`] holds.
    pub(crate) fn parse(file: &'a [u8]) -> Result<BzImage<'a>, BootError> {
        let short = || BootError::Truncated {
            what: "the bzImage setup header",
            needed: 0x264,
            size: file.len() as u64,
        };
        let version = u16_at(file, 0x206).ok_or_else(short)?;
        if version < PROTOCOL_MIN {
            let [minor, major] = version.to_le_bytes();
            return Err(BootError::OldProtocol { major, minor });
        }
        let xloadflags = u16_at(file, 0x236).ok_or_else(short)?;
        let loadflags = u8_at(file, 0x211).ok_or_else(short)?;
        if xloadflags & XLF_KERNEL_64 == 0 || loadflags & LOADED_HIGH == 0 {
            return Err(BootError::WrongArchitecture { found: "32-bit x86 (a bzImage)".into() });
        }
        let init_size = u64::from(u32_at(file, 0x260).ok_or_else(short)?);
        let protected = protected_part(file)?;
        Ok(BzImage {
            header: header(file)?,
            protected,
            payload: payload(file, protected)?,
            initrd_last: u64::from(u32_at(file, 0x22c).ok_or_else(short)?),
            cmdline_max: u64::from(u32_at(file, 0x238).ok_or_else(short)?),
            load_gpa: load_gpa(file).ok_or_else(short)?,
            init_size: init_size.max(protected.len() as u64),
        })
    }
}

/// The header ends where the jump at its start leads (boot.rst, "the real-mode kernel header").
fn header(file: &[u8]) -> Result<&[u8], BootError> {
    let end = 0x202 + u64::from(u8_at(file, 0x201).unwrap_or(0));
    if !(0x264..=HEADER_END_MAX).contains(&end) {
        return Err(BootError::Corrupt { what: "the size of its setup header is impossible" });
    }
    slice(file, HEADER_AT, end - HEADER_AT).ok_or(BootError::Truncated {
        what: "the bzImage setup header",
        needed: end,
        size: file.len() as u64,
    })
}

fn protected_part(file: &[u8]) -> Result<&[u8], BootError> {
    let sectors = match u8_at(file, HEADER_AT) {
        None | Some(0) => 4,
        Some(sectors) => u64::from(sectors),
    };
    let start = (sectors + 1) * SECTOR;
    let size = u64::from(u32_at(file, 0x1f4).unwrap_or(0)) * 16;
    if size == 0 {
        return Err(BootError::Corrupt { what: "its setup header says there is no kernel" });
    }
    // The count is of 16-byte units; the file may end within the last.
    let present = (file.len() as u64).saturating_sub(start).min(size);
    let needed = start + size;
    if present + 15 < size {
        let size = file.len() as u64;
        return Err(BootError::Truncated { what: "the bzImage", needed, size });
    }
    Ok(slice(file, start, present).unwrap_or_default())
}

fn payload<'a>(file: &[u8], protected: &'a [u8]) -> Result<&'a [u8], BootError> {
    let offset = u64::from(u32_at(file, 0x248).unwrap_or(0));
    let len = u64::from(u32_at(file, 0x24c).unwrap_or(0));
    slice(protected, offset, len)
        .filter(|payload| !payload.is_empty())
        .ok_or(BootError::Corrupt { what: "its setup header points outside it for the payload" })
}

/// A relocatable kernel prefers `pref_address`; others are linked for 1 MiB.
fn load_gpa(file: &[u8]) -> Option<u64> {
    const LOW_LOAD: u64 = 0x10_0000;
    let relocatable = u8_at(file, 0x234)? != 0;
    let preferred = u64_at(file, 0x258)?;
    Some(if relocatable && preferred >= LOW_LOAD { preferred & !0xfff } else { LOW_LOAD })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, bzimage};

    #[test]
    fn bzimage_parts_are_found() {
        let file = bzimage(b"\x7fELF payload");
        assert!(is_bzimage(&file));
        let image = BzImage::parse(&file).unwrap();
        assert_eq!(image.payload, b"\x7fELF payload");
        assert_eq!(image.load_gpa, 0x100_0000);
        assert_eq!(image.cmdline_max, 2047);
        assert_eq!(image.header.len(), 0x26c - 0x1f1);
    }

    #[test]
    fn bzimage_bad_header_is_an_error() {
        type Check = fn(&BootError) -> bool;
        let cases: [(usize, u8, Check); 6] = [
            (0x206, 0x0b, |e| matches!(e, BootError::OldProtocol { major: 2, minor: 11 })),
            (0x236, 0, |e| matches!(e, BootError::WrongArchitecture { .. })),
            (0x201, 0, |e| matches!(e, BootError::Corrupt { .. })),
            (0x201, 0xff, |e| matches!(e, BootError::Corrupt { .. })),
            (0x24b, 0x7f, |e| matches!(e, BootError::Corrupt { .. })),
            (0x1f7, 0x7f, |e| matches!(e, BootError::Truncated { .. })),
        ];
        for (at, value, check) in cases {
            let mut file = bzimage(b"payload");
            file[at] = value;
            let error = BzImage::parse(&file).unwrap_err();
            assert!(check(&error), "{at:#x}: {error:?}");
        }
    }

    #[test]
    fn bzimage_truncated_anywhere_is_an_error() {
        let file = bzimage(&[0x55; 64]);
        for len in 0x206..file.len() - 16 {
            assert!(
                matches!(BzImage::parse(&file[..len]), Err(BootError::Truncated { .. })),
                "{len:#x}"
            );
        }
    }

    #[test]
    fn bzimage_mutated_never_panics() {
        let original = bzimage(&[0x55; 64]);
        let mut random = Random(3);
        for _ in 0..20_000 {
            let mut file = original.clone();
            random.mutate(&mut file[0x1f1..0x270]);
            let _ = BzImage::parse(&file);
        }
    }
}
