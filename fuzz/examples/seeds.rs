//! Writes the seeds into `corpus`: `cargo run --package fuzz --example seeds`. Kernels come from
//! `boot`'s tests in shape, compressed by the host's gzip, xz and zstd where there.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, name, bytes) in seeds() {
        std::fs::create_dir_all(corpus.join(target))?;
        std::fs::write(corpus.join(target).join(name), bytes)?;
    }
    Ok(())
}

fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| {
        seeds.push((target, name.to_owned(), bytes));
    };
    for (kind, device) in ["blk", "blk-readonly", "net", "rng", "console"].iter().enumerate() {
        add("virtio", device, virtio(kind as u8));
    }
    for (name, kernel) in kernels() {
        add("kernel", name, [&[0, 1, 0, 4, 0], b"quiet".as_slice(), &kernel[..]].concat());
    }
    for (mode, name) in GUEST_MODES.iter().enumerate() {
        add("guest", name, guest(mode as u8));
    }
    add("saved", "unchanged", vec![100]);
    for section in 0..24 {
        add("saved", &format!("number-{section}"), vec![200, section, 9, 3, 0, 0, 2, section, 6]);
    }
    for file in 0..4u8 {
        for repairs in [0, 1] {
            let name = format!("file-{file}-{repairs}");
            add("checkpoint", &name, vec![file, repairs, 2, 60, 0, 1, 7, 90, 0, 0x82, 3]);
            let name = format!("packed-{file}-{repairs}");
            add("checkpoint", &name, vec![file, repairs | 2, 2, 60, 0, 1, 7, 84, 0, 2, 3]);
        }
    }
    add("checkpoint", "unchanged", vec![0, 1, 0]);
    add("checkpoint", "packed-unchanged", vec![0, 3, 0]);
    for (name, bytes) in CHIPSET {
        add("chipset", name, bytes.to_vec());
    }
    let values = [
        ("size", "512M"),
        ("disk", "path=a,,b.qcow2,format=qcow2,readonly"),
        ("net", "user,hostfwd=tcp:2222-:22,mac=52:54:00:00:00:01"),
        ("forward", "udp:0.0.0.0:53-10.0.2.15:53"),
        ("console", "unix=a/b.sock"),
    ];
    for (name, text) in values {
        add("values", name, text.into());
    }
    let requests = [0, 0, 4, 1, 0, 0, 8, 0, 0, 0, 0, 8, 0, 2, 1, 0, 4, 0, 3, 2, 0, 4, 0];
    for (name, options, size) in [
        ("qcow2-v3", "cluster_size=512", "64K"),
        ("qcow2-v2", "cluster_size=512,compat=0.10", "64K"),
        ("qcow2-narrow", "cluster_size=1024,refcount_bits=1", "1M"),
    ] {
        if let Some(image) = qcow2(options, size) {
            add("disk", name, [&requests[..], &image].concat());
        }
    }
    add("disk", "raw", [&[3, 0, 4, 1, 0, 0, 8, 0, 2, 0, 0, 8, 0], [7; 1024].as_slice()].concat());
    seeds
}

/// Set up, one chain of three buffers, a notification, time, completion, a save, a reset.
fn virtio(kind: u8) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0];
    for (at, len, flags, next) in [(0u8, 16u16, 1u8, 1u8), (1, 512, 3, 2), (2, 1, 2, 0)] {
        // Action 5: queue 0, descriptor, address class 4, length class 3, flags, next.
        bytes.extend([5, 0, at, 4, at, 1, 3]);
        bytes.extend(len.to_le_bytes());
        bytes.extend([flags, next, 0, 0, 0, 0]);
    }
    bytes.extend([8, 0, 0, 1, 16, 14, 0, 13, 0]);
    bytes.extend([12, 3, 100, 0, 12, 1, 20, 0, 8, 1, 0, 1, 14, 0, 15, 3, 0, 16]);
    bytes
}

/// An image made by `qemu-img`, if there is one, with some clusters written.
fn qcow2(options: &str, size: &str) -> Option<Vec<u8>> {
    let path = std::env::temp_dir().join(format!("doppel-seed-{}.qcow2", std::process::id()));
    let run = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments).arg(&path);
        command.stdout(std::process::Stdio::null()).status().ok().filter(|s| s.success())
    };
    let file = path.to_str()?;
    let create = ["create", "-q", "-f", "qcow2", "-o", options, file, size];
    std::process::Command::new("qemu-img").args(create).status().ok().filter(|s| s.success())?;
    run("qemu-io", &["-c", "write -P 7 0 2k", "-c", "write -z 8k 1k"])?;
    let bytes = std::fs::read(&path).ok();
    let _ = std::fs::remove_file(&path);
    bytes
}

fn kernels() -> Vec<(&'static str, Vec<u8>)> {
    let vmlinux = elf64();
    let mut kernels = vec![("elf", vmlinux.clone()), ("multiboot", multiboot())];
    for (name, program, arguments) in [
        ("bzimage-gzip", "gzip", &["-9", "-n"][..]),
        ("bzimage-xz", "xz", &["--check=crc32", "--x86", "--lzma2"][..]),
        ("bzimage-zstd", "zstd", &["-q"][..]),
        ("bzimage-lz4", "lz4", &["-q", "-l"][..]),
    ] {
        if let Some(mut packed) = filter(program, arguments, &vmlinux) {
            // Linux's build appends the size.
            packed.extend((vmlinux.len() as u32).to_le_bytes());
            kernels.push((name, bzimage(&packed)));
        }
    }
    kernels.push(("bzimage-plain", bzimage(b"no payload known here")));
    kernels
}

fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new(program)
        .args(arguments)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(input).ok()?;
    let output = child.wait_with_output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// A 64-bit ELF with a segment at 16 MiB that says it is Linux, and a PVH note.
fn elf64() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0x100_0000u64, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, offset, len) in [(1u32, 0x100u64, 0x80u64), (4, 0x180, 20)] {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        for word in [offset, 0x100_0000, 0x100_0000, len, len, 4] {
            elf.extend(word.to_le_bytes());
        }
    }
    elf.resize(0x100, 0);
    elf.extend(b"\xf4 Linux version 6.1");
    elf.resize(0x180, 0);
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x100_0000] {
        elf.extend(word.to_le_bytes());
    }
    elf
}

fn multiboot() -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002u32, 0x1_0003u32);
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, sum, 0x10_0000, 0x10_0000, 0, 0x20_0000, 0x10_0020];
    let mut image: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend([0xf4, 0xeb, 0xfd]);
    image
}

/// A bzImage, protocol 2.15, around `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0f, 0x02]);
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 0x7f, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &0x300u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    image.resize(0x700, 0xcc);
    image.extend(payload);
    let blocks = (image.len() - 0x400).div_ceil(16);
    image.resize(0x400 + blocks * 16, 0);
    image[0x1f4..0x1f8].copy_from_slice(&(blocks as u32).to_le_bytes());
    image
}

const GUEST_MODES: [&str; 13] = [
    "long-kernel",
    "long-user",
    "compatibility-kernel",
    "compatibility-user",
    "pae-kernel",
    "pae-user",
    "legacy-kernel",
    "legacy-user",
    "flat-kernel",
    "flat-user",
    "protected16",
    "real",
    "v86",
];

/// A handler that returns past the error code or not, and code of many families in a loop.
fn guest(mode: u8) -> Vec<u8> {
    let mut bytes = vec![mode, 7];
    bytes.extend(0x202u32.to_le_bytes());
    bytes.extend([0, 0, 1, 2, 3, 4]);
    // One patch: the last page of the table is not present.
    bytes.extend([1, 6, 0xf8, 0x0f, 0]);
    bytes.extend(0u64.to_le_bytes());
    // add sp; iret in the size of the mode.
    let handler: &[u8] = match mode {
        0..4 => &[0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xcf],
        _ => &[0x83, 0x04, 0x24, 2, 0xcf],
    };
    bytes.push(handler.len() as u8);
    bytes.extend(handler);
    bytes.extend([
        0xb9, 5, 0, 0, 0, 0x01, 0xc8, 0x0f, 0xaf, 0xc1, 0xf7, 0xf1, 0x50, 0x5a, 0x0f, 0xa2, 0xd9,
        0xe8, 0xdd, 0xd8, 0x0f, 0x57, 0xc0, 0xb9, 2, 0, 0, 0, 0xf3, 0xaa, 0xcc, 0x0f, 0x0b, 0xf0,
        0x0f, 0xc1, 0x07, 0xe4, 0x40, 0xe6, 0x80, 0x0f, 0x05, 0xe8, 0, 0, 0, 0, 0x58, 0xfb, 0xfa,
        0xe2, 0xd5, 0xeb, 0xc9,
    ]);
    bytes
}

const CHIPSET: [(&str, &[u8]); 6] = [
    (
        "pit",
        &[0, 0, 0, 3, 0, 0x34, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 6, 0],
    ),
    (
        "cmos",
        &[0, 1, 0, 0, 0, 0x0b, 0, 0, 0, 0, 1, 0, 1, 0, 0x72, 0, 0, 0, 6, 0, 6, 200, 9, 9, 9, 9],
    ),
    (
        "serial",
        &[0, 2, 0, 1, 0, 0x0f, 0, 0, 0, 0, 2, 0, 0, 0, 0x41, 0, 0, 0, 7, 2, 3, 1, 2, 3, 6, 0],
    ),
    ("ioapic", &[9, 0x12, 0x40, 0, 0, 0, 9, 0x28, 0x40, 0xa0, 0, 0, 13, 2, 1, 13, 12, 1, 15]),
    (
        "lapic",
        &[
            12, 7, 15, 0xff, 1, 0, 0, 0, 0, 0, 0, 12, 7, 0x32, 0x40, 0, 2, 0, 0, 0, 0, 0, 12, 7,
            0x38, 0, 1, 0, 0, 0, 0, 0, 0, 6, 0, 14, 12, 7, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 15,
        ],
    ),
    ("acpi", &[0, 5, 0, 2, 1, 0x21, 1, 0, 0, 0, 5, 0, 4, 1, 0, 0x20, 0, 0, 6, 0, 15]),
];
