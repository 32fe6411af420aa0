//! Bare-metal test kernels: compiled from `tests/arch` by the system's gcc when a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Compiler flags of every kernel.
const FLAGS: &[&str] = &[
    "-Os",
    "-std=gnu11",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,-T,kernel.ld",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=4096",
    "-Wl,--no-warn-rwx-segments",
];

/// Word size of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Protected mode with C compiled for it.
    B32,
    /// Long mode.
    B64,
}

fn tool(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!("{name}: not to be run; the test kernels need gcc and binutils")
    })?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed on a test kernel:\n{text}");
    Ok(())
}

/// Compiles `tests/arch/NAME.c` into a multiboot ELF32 file in `folder` and tells its path.
pub fn build_kernel(name: &str, bits: Bits, folder: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("arch");
    std::fs::create_dir_all(folder)?;
    let linked = folder.join(format!("{name}.linked"));
    let kernel = folder.join(format!("{name}.elf"));
    let (mode, common): (&str, &[&str]) = match bits {
        Bits::B32 => ("-m32", &["start32.S", "kernel32.c", "console.c"]),
        Bits::B64 => ("-m64", &["start64.S", "kernel64.c", "console.c"]),
    };
    let mut gcc = Command::new("gcc");
    gcc.current_dir(&source).arg(mode).args(FLAGS).args(common);
    tool(gcc.arg(format!("{name}.c")).arg("-o").arg(&linked))?;
    let format = if bits == Bits::B64 { "elf64-x86-64" } else { "elf32-i386" };
    let mut objcopy = Command::new("objcopy");
    objcopy.args(["-I", format, "-O", "elf32-i386"]);
    tool(objcopy.arg(&linked).arg(&kernel))?;
    Ok(kernel)
}
