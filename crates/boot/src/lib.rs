//! From files to a machine ready to run: kernels, initrds and ACPI tables put into guest RAM.
//!
//! Invariants: pure over the images it is given, no file is opened here; a hostile image ends in a
//! [`BootError`], never in a panic or an allocation beyond the decompressed kernel, which is no
//! larger than guest RAM; the result depends on nothing but its arguments.
//!
//! ```text
//!   bzImage -- LZ4, zstd, gzip, xz --> vmlinux --> 64-bit Linux entry, zero page
//!      '------- any other -----------------------> its own decompressor, likewise
//!   ELF --- PVH note ----------------------------> 32-bit entry, hvm_start_info
//!    |----- multiboot header --------------------> 32-bit entry, multiboot information
//!    '----- a 64-bit Linux ----------------------> 64-bit Linux entry
//!   flat file with multiboot addresses ----------> 32-bit entry, multiboot information
//! ```

#![forbid(unsafe_code)]

mod acpi;
mod bytes;
mod bzimage;
mod elf;
mod entry;
mod error;
mod identify;
mod linux;
mod load;
mod memory_map;
mod multiboot;
mod payload;
mod places;
mod pvh;
#[cfg(test)]
mod testing;

pub use acpi::{
    CmosClock, IoWindow, MemoryWindow, PciHost, PlatformTables, PowerPorts, ResetRegister,
    SerialPort,
};
pub use entry::{Entry, EntryMode};
pub use error::BootError;
pub use load::{BootSpec, BootState, KernelKind, load};
pub use memory_map::{MemoryRange, RangeKind, memory_map};
pub use payload::Compressor;
pub use places::{ECAM, ECAM_SIZE, GENERATION, GENERATION_EVENT};
