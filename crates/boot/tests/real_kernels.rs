//! Loads of real kernels and a check of the ACPI tables by ACPICA's own disassembler. They need
//! files and tools that a bare checkout has not, so they are asked for:
//!
//! ```text
//!   cargo xtask guest                         # or KERNELS=FILE[:FILE]...
//!   apt-get install acpica-tools
//!   cargo test -p boot --test real_kernels -- --ignored --nocapture
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use boot::{BootSpec, EntryMode, KernelKind, PlatformTables, load};
use memory::Ram;
use types::Gpa;

/// Kernels named in `KERNELS`, or else those the guest builder cached.
fn kernels() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("KERNELS") {
        return std::env::split_paths(&list).collect();
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/guests");
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("vmlinuz")).filter(|path| path.exists()).collect()
}

fn bytes(ram: &Ram, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs kernels: cargo xtask guest"]
fn real_kernel_is_unpacked_and_entered_in_long_mode() {
    let kernels = kernels();
    assert!(!kernels.is_empty(), "no kernels; run cargo xtask guest or set KERNELS");
    for path in kernels {
        let kernel = std::fs::read(&path).unwrap();
        let tables = PlatformTables::standard(1);
        let initrd = vec![0x55; 20 << 20];
        let spec = BootSpec {
            kernel: &kernel,
            initrd: Some(&initrd),
            cmdline: "console=ttyS0",
            tables: &tables,
        };
        let mut ram = Ram::new(512 << 20).unwrap();
        let start = std::time::Instant::now();
        let state = load(&mut ram, &spec).unwrap();
        println!("{}: {:x?} in {:?}", path.display(), state, start.elapsed());
        assert_eq!((state.kind, state.entry.mode), (KernelKind::BzImage, EntryMode::Long64));
        assert_ne!(bytes(&ram, state.entry.rip, 16), [0; 16]);
        let truncated = BootSpec { kernel: &kernel[..kernel.len() / 2], ..spec };
        let error = load(&mut ram, &truncated).unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
        for at in [kernel.len() / 3, kernel.len() / 2] {
            let mut damaged = kernel.clone();
            damaged[at..at + 64].fill(0xa5);
            let error = load(&mut ram, &BootSpec { kernel: &damaged, ..spec });
            println!("damaged at {at:#x}: {:?}", error.map_err(|e| e.to_string()));
        }
    }
}

#[test]
#[ignore = "needs iasl: apt-get install acpica-tools"]
fn tables_disassemble_and_compile_again_without_remarks() {
    let mut tables = PlatformTables::standard(3);
    tables.pvpanic = Some(0x505);
    let mut ram = Ram::new(1 << 20).unwrap();
    let spec = BootSpec { kernel: b"", initrd: None, cmdline: "", tables: &tables };
    load(&mut ram, &spec).unwrap_err();
    let folder = std::env::temp_dir().join(format!("doppel-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for signature in [b"FACP", b"APIC", b"DSDT", b"XSDT", b"FACS"] {
        let area = bytes(&ram, 0xe_0000, 0x2_0000);
        let at = area.chunks(64).position(|chunk| chunk.starts_with(signature)).unwrap() * 64;
        let size = u32::from_le_bytes(area[at + 4..at + 8].try_into().unwrap()) as usize;
        let name = std::str::from_utf8(signature).unwrap().to_lowercase();
        std::fs::write(folder.join(format!("{name}.dat")), &area[at..at + size]).unwrap();
        let said = iasl(&folder, &["-d", &format!("{name}.dat")]);
        let wrong = ["Error", "Warning", "Invalid", "incorrect"].iter().any(|w| said.contains(w));
        assert!(!wrong, "{name}: {said}");
    }
    let said = iasl(&folder, &["-we", "dsdt.dsl"]);
    println!("{said}");
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Output of `iasl` (or of the program named in `IASL`).
fn iasl(folder: &Path, arguments: &[&str]) -> String {
    let program = std::env::var("IASL").unwrap_or_else(|_| "iasl".into());
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
