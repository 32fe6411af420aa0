//! What a file that is not a kernel looks like, so that the message can say so.

use crate::bytes::{u16_at, u32_at};
use crate::elf;
use crate::error::BootError;

/// Magic numbers of files that people mistake for kernels: offset, bytes, what to call it.
const LOOKS: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\x02\x21\x4c\x18", "an LZ4 file"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file"),
    (0, b"\x5d\0\0", "an LZMA file"),
    (0, b"#!", "a script"),
    (0, b"070701", "a cpio archive (an initrd?)"),
    (0, b"070702", "a cpio archive (an initrd?)"),
    (0, b"\xc7\x71", "a cpio archive (an initrd?)"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"!<arch>\n", "an archive or a Debian package"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree"),
    (0x8001, b"CD001", "an ISO image"),
    (0x438, b"\x53\xef", "an ext file system image"),
    (0x101, b"ustar", "a tar archive"),
    (0x1fe, b"\x55\xaa", "a disk image with a boot sector"),
];

/// The error for a file in which no loader recognised a kernel.
pub(crate) fn not_a_kernel(file: &[u8]) -> BootError {
    if let Some(found) = foreign_kernel(file) {
        return BootError::WrongArchitecture { found };
    }
    BootError::NotKernel { found: looks_like(file) }
}

/// Kernels of other architectures, by their boot headers.
fn foreign_kernel(file: &[u8]) -> Option<String> {
    if file.get(0x38..0x3c) == Some(b"ARM\x64") {
        return Some("aarch64 (an arm64 Image)".into());
    }
    if file.get(0x38..0x3c) == Some(b"RSC\x05") {
        return Some("riscv (an Image)".into());
    }
    if u32_at(file, 0x24) == Some(0x016f_2818) {
        return Some("arm (a zImage)".into());
    }
    None
}

fn looks_like(file: &[u8]) -> &'static str {
    if file.is_empty() {
        return "empty";
    }
    if file.iter().take(4096).all(|&b| b == 0) {
        return "all zeroes";
    }
    if file.starts_with(elf::MAGIC) {
        return "an ELF without a PVH note, a multiboot header or a Linux kernel in it";
    }
    let known = LOOKS.iter().find(|(at, magic, _)| file.get(*at..*at + magic.len()) == Some(magic));
    if let Some((_, _, name)) = known {
        return name;
    }
    if file.starts_with(b"MZ") {
        return windows_program(file);
    }
    if is_text(file) { "a text file" } else { "of an unknown kind" }
}

fn windows_program(file: &[u8]) -> &'static str {
    let pe = u32_at(file, 0x3c).map(u64::from).unwrap_or(u64::MAX);
    match u32_at(file, pe).filter(|&magic| magic == 0x4550).and(u16_at(file, pe.saturating_add(4)))
    {
        Some(0x8664) => "an EFI or Windows program",
        Some(0xaa64) => "an aarch64 EFI program",
        _ => "a DOS or EFI program",
    }
}

fn is_text(file: &[u8]) -> bool {
    let head = &file[..file.len().min(512)];
    head.iter().all(|&b| b == b'\n' || b == b'\t' || b == b'\r' || (0x20..0x7f).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identify_common_mistakes() {
        for (file, expected) in [
            (&b""[..], "empty"),
            (&[0u8; 5000][..], "all zeroes"),
            (b"#!/bin/sh\necho\n", "a script"),
            (b"\x1f\x8b\x08\0", "a gzip file"),
            (b"070701000000", "a cpio archive (an initrd?)"),
            (b"hello\n", "a text file"),
            (b"MZ\0\0", "a DOS or EFI program"),
            (b"\x01\x02\x03", "of an unknown kind"),
        ] {
            assert_eq!(not_a_kernel(file), BootError::NotKernel { found: expected });
        }
    }

    #[test]
    fn identify_arm64_image_names_it() {
        let mut image = vec![0; 64];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let error = not_a_kernel(&image).to_string();
        assert!(error.contains("aarch64"), "{error}");
    }
}
