//! Kernel files: `boot::load` of a hostile bzImage, ELF or multiboot image either refuses it or
//! leaves a state and RAM that depend on its arguments alone.
//!
//! Input: memory size, initrd size (in 256 bytes), command line length, command line, kernel.

use boot::{BootError, BootSpec, BootState, PlatformTables, load};
use memory::Ram;

use crate::input::Input;

const MIB: u64 = 1 << 20;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let memory_size = input.pick(&[32 * MIB, MIB, 2 * MIB, 17 * MIB, 64 * MIB]);
    let initrd = vec![0xa5; usize::from(input.u16()) << 8];
    let cmdline_len = usize::from(input.u16());
    let cmdline = String::from_utf8_lossy(input.take(cmdline_len)).into_owned();
    let spec = BootSpec {
        kernel: input.rest(),
        initrd: (!initrd.is_empty()).then_some(&initrd),
        cmdline: &cmdline,
        tables: &PlatformTables::standard(1),
    };
    let (first, mut ram) = try_load(memory_size, &spec);
    match first {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(state) => {
            let (again, mut ram_again) = try_load(memory_size, &spec);
            assert_eq!(again.ok(), Some(state));
            assert_eq!(ram_again.hash(), ram.hash());
        }
    }
}

fn try_load(memory_size: u64, spec: &BootSpec<'_>) -> (Result<BootState, BootError>, Ram) {
    let mut ram = Ram::new(memory_size).expect("a size that is allowed");
    (load(&mut ram, spec), ram)
}
