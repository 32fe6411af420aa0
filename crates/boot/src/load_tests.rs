//! Whole loads of synthetic images, good and bad.

use cpu::gpr;
use types::Gpa;

use super::*;
use crate::entry::EntryMode;
use crate::testing::{ElfImage, Random, bzimage};

const MIB: u64 = 1 << 20;

fn boot(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    size: u64,
) -> Result<(Ram, BootState), BootError> {
    let tables = PlatformTables::standard(1);
    let mut ram = Ram::new(size).unwrap();
    let state = load(&mut ram, &BootSpec { kernel, initrd, cmdline, tables: &tables })?;
    Ok((ram, state))
}

fn refusal(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str, size: u64) -> BootError {
    boot(kernel, initrd, cmdline, size).map(|(_, state)| state).unwrap_err()
}

fn bytes(ram: &Ram, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

fn u32_in(ram: &Ram, gpa: u64) -> u64 {
    u64::from(u32::from_le_bytes(bytes(ram, gpa, 4).try_into().unwrap()))
}

fn linux_elf() -> ElfImage {
    let contents = b"\xf4 Linux version 6.1".to_vec();
    ElfImage { gpa: 16 * MIB, entry: 16 * MIB, contents, ..ElfImage::default() }
}

fn multiboot_elf() -> Vec<u8> {
    let mut contents = Vec::new();
    for word in [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)] {
        contents.extend(word.to_le_bytes());
    }
    ElfImage { is_64: false, machine: 3, contents, ..ElfImage::default() }.build()
}

#[test]
fn load_bzimage_enters_its_vmlinux_in_long_mode() {
    let kernel = bzimage(&linux_elf().build());
    let (ram, state) = boot(&kernel, Some(b"initrd"), "console=ttyS0", 64 * MIB).unwrap();
    assert_eq!((state.kind, state.entry.mode), (KernelKind::BzImage, EntryMode::Long64));
    assert_eq!(state.entry.rip, 16 * MIB);
    assert_eq!(bytes(&ram, 16 * MIB, 7), b"\xf4 Linux");
    let page = state.entry.gpr[gpr::RSI];
    assert_eq!(bytes(&ram, page + 0x202, 4), b"HdrS");
    assert_eq!(bytes(&ram, u32_in(&ram, page + 0x228), 14), b"console=ttyS0\0");
    assert_eq!(bytes(&ram, u32_in(&ram, page + 0x218), 6), b"initrd");
    assert_eq!(u32_in(&ram, page + 0x21c), 6);
    assert_eq!(bytes(&ram, u32_in(&ram, page + 0x70), 8), b"RSD PTR ");
    assert_eq!(bytes(&ram, page + 0x1e8, 1), [5]);
}

#[test]
fn load_bzimage_of_rare_compressor_extracts_itself() {
    let kernel = bzimage(b"BZh91AY&SY");
    let (ram, state) = boot(&kernel, None, "", 64 * MIB).unwrap();
    assert_eq!(state.kind, KernelKind::BzImageSelfExtracting);
    assert_eq!(state.entry.rip, 16 * MIB + 0x200);
    assert_eq!(bytes(&ram, 16 * MIB, 2), [0xcc, 0xcc]);
    let error = refusal(&kernel, None, "", 17 * MIB);
    assert_eq!(error, BootError::KernelTooLarge { end: 18 * MIB, ram: 17 * MIB });
}

#[test]
fn load_pvh_elf_enters_in_protected_mode() {
    for is_64 in [false, true] {
        let image = ElfImage { is_64, pvh: Some(0x10_0010), ..ElfImage::default() }.build();
        let (ram, state) = boot(&image, Some(b"initrd"), "a b", 4 * MIB).unwrap();
        assert_eq!((state.kind, state.entry.mode), (KernelKind::PvhElf, EntryMode::Protected32));
        assert_eq!((state.entry.rip, state.entry.cr0, state.entry.efer), (0x10_0010, 0x11, 0));
        let info = state.entry.gpr[gpr::RBX];
        assert_eq!(u32_in(&ram, info), 0x336e_c578);
        let module = u32_in(&ram, info + 16);
        assert_eq!(bytes(&ram, u32_in(&ram, module), 6), b"initrd");
        assert_eq!(bytes(&ram, u32_in(&ram, info + 24), 4), b"a b\0");
        assert_eq!(bytes(&ram, u32_in(&ram, info + 32), 8), b"RSD PTR ");
        assert_eq!(u32_in(&ram, info + 48), 5);
        let map = u32_in(&ram, info + 40);
        assert_eq!(u32_in(&ram, map + 8), 0x9_fc00);
    }
}

#[test]
fn load_multiboot_elf_passes_memory_command_line_and_module() {
    let (ram, state) = boot(&multiboot_elf(), Some(b"module"), "arg", 4 * MIB).unwrap();
    assert_eq!(state.kind, KernelKind::Multiboot);
    assert_eq!(state.entry.gpr[gpr::RAX], 0x2bad_b002);
    let info = state.entry.gpr[gpr::RBX];
    assert_eq!(u32_in(&ram, info), 0x24d);
    assert_eq!(u32_in(&ram, info + 8), 3 * 1024);
    assert_eq!(bytes(&ram, u32_in(&ram, info + 16), 11), b"kernel arg\0");
    let module = u32_in(&ram, info + 24);
    assert_eq!(bytes(&ram, u32_in(&ram, module), 6), b"module");
    assert_eq!(u32_in(&ram, module + 4) - u32_in(&ram, module), 6);
    let (map_size, map) = (u32_in(&ram, info + 44), u32_in(&ram, info + 48));
    assert_eq!((map_size, u32_in(&ram, map)), (5 * 24, 20));
}

#[test]
fn load_vmlinux_without_note_uses_the_linux_protocol() {
    let (_, state) = boot(&linux_elf().build(), None, "", 64 * MIB).unwrap();
    assert_eq!(state.kind, KernelKind::Vmlinux);
}

#[test]
fn load_twice_gives_the_same_machine() {
    let kernel = bzimage(&linux_elf().build());
    let (mut ram, first) = boot(&kernel, Some(b"initrd"), "quiet", 64 * MIB).unwrap();
    let hash = ram.hash();
    let (mut other, second) = boot(&kernel, Some(b"initrd"), "quiet", 64 * MIB).unwrap();
    assert_eq!((hash, first), (other.hash(), second));
}

#[test]
fn load_refuses_what_is_no_kernel_for_this_machine() {
    let arm = ElfImage { machine: 183, ..ElfImage::default() }.build();
    let i386 = ElfImage { is_64: false, machine: 3, ..ElfImage::default() }.build();
    let plain = ElfImage::default().build();
    let program = ElfImage::default().build_with(|image| image[0x78] = 3);
    let mut packed_arm = bzimage(&arm);
    packed_arm[0x208] = 1;
    for (kernel, expected) in [
        (&b""[..], "empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "a gzip file"),
        (&arm, "aarch64"),
        (&i386, "32-bit x86"),
        (&plain, "ELF without"),
        (&program, "user-space program"),
        (&packed_arm, "aarch64"),
        (b"\x7fELF", "truncated"),
    ] {
        let message = refusal(kernel, None, "", 64 * MIB).to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn load_refuses_what_does_not_fit() {
    let linux = bzimage(&linux_elf().build());
    let error = refusal(&linux, None, "", 8 * MIB);
    assert_eq!(error, BootError::KernelTooLarge { end: 16 * MIB + 0x3000, ram: 8 * MIB });
    let error = refusal(&linux, None, "", MIB);
    assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error:?}");
    let error = refusal(&linux, Some(&vec![1; 48 << 20]), "", 64 * MIB);
    assert!(matches!(error, BootError::InitrdTooLarge { .. }), "{error:?}");
    let error = refusal(&linux, Some(b""), "", 64 * MIB);
    assert_eq!(error, BootError::InitrdEmpty);
    let error = refusal(&linux, None, &"x".repeat(2048), 64 * MIB);
    assert_eq!(error, BootError::CmdlineTooLong { len: 2048, max: 2047 });
    let low = ElfImage { gpa: 0x9000, pvh: Some(0x9000), ..ElfImage::default() }.build();
    assert_eq!(refusal(&low, None, "", 4 * MIB), BootError::KernelTooLow { gpa: 0x9000 });
    let outside = ElfImage { pvh: Some(0x30_0000), ..ElfImage::default() }.build();
    let error = refusal(&outside, None, "", 4 * MIB);
    assert_eq!(error, BootError::EntryOutside { entry: 0x30_0000 });
}

#[test]
fn load_mutated_images_never_panics() {
    let images = [
        (bzimage(&linux_elf().build()), 0x1f1..0x26c),
        (ElfImage { pvh: Some(0x10_0010), ..ElfImage::default() }.build(), 0..0xf0),
        (multiboot_elf(), 0..0x210),
    ];
    let tables = PlatformTables::standard(1);
    let mut ram = Ram::new(32 * MIB).unwrap();
    let mut random = Random(5);
    for (image, range) in images {
        for _ in 0..2000 {
            let mut kernel = image.clone();
            random.mutate(&mut kernel[range.clone()]);
            let initrd = Some(&b"initrd"[..]);
            let spec = BootSpec { kernel: &kernel, initrd, cmdline: "quiet", tables: &tables };
            let _ = load(&mut ram, &spec);
        }
    }
}
