//! Why a machine could not be made ready to run, in words for the person who started it.

use memory::NoRam;

use crate::payload::Compressor;

/// Why [`crate::load`] refused. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The kernel file is something else.
    #[error(
        "the kernel file is {found}, not a kernel; give a Linux bzImage (vmlinuz), or an ELF \
        with a PVH note or a multiboot header"
    )]
    NotKernel {
        /// What it looks like, with its article.
        found: &'static str,
    },
    /// A kernel, but not for a 64-bit x86 machine.
    #[error("the kernel is for {found}; this machine needs one for x86-64")]
    WrongArchitecture {
        /// What it was built for.
        found: String,
    },
    /// The file ends before what its headers promise.
    #[error("the kernel file is truncated: {what} needs {needed} bytes, the file has {size}")]
    Truncated {
        /// Which part is missing.
        what: &'static str,
        /// Bytes the file would need.
        needed: u64,
        /// Bytes it has.
        size: u64,
    },
    /// The boot protocol of a bzImage is older than 2.12 (Linux 3.8).
    #[error(
        "the kernel speaks Linux boot protocol {major}.{minor}; 2.12 or newer is needed \
        (Linux 3.8 of 2013)"
    )]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// A header field is impossible.
    #[error("the kernel file is corrupt: {what}")]
    Corrupt {
        /// What is impossible.
        what: &'static str,
    },
    /// The compressed kernel inside a bzImage does not decompress.
    #[error("the kernel's {compressor} payload is corrupt: {reason}")]
    Payload {
        /// How it is compressed.
        compressor: Compressor,
        /// What the decompressor said.
        reason: String,
    },
    /// The decompressed kernel passes the limit.
    #[error(
        "the kernel decompresses to more than {max} bytes, the most this guest can take; \
        give it more --memory"
    )]
    PayloadTooLarge {
        /// Most bytes allowed.
        max: u64,
    },
    /// The kernel wants addresses where this machine has no RAM.
    #[error(
        "the kernel needs RAM up to {end:#x}, the machine has {ram} bytes; give it more --memory"
    )]
    KernelTooLarge {
        /// First address after the kernel, in bytes.
        end: u64,
        /// RAM of the machine.
        ram: u64,
    },
    /// The kernel wants addresses that are taken.
    #[error(
        "the kernel wants to be loaded at {gpa:#x}, below 1 MiB, where boot data and ACPI \
        tables are"
    )]
    KernelTooLow {
        /// Load address.
        gpa: u64,
    },
    /// The entry point is not in the kernel.
    #[error("the kernel's entry point {entry:#x} is in no part of it that is loaded")]
    EntryOutside {
        /// Entry point, physical.
        entry: u64,
    },
    /// No room for the initrd.
    #[error(
        "the initrd of {size} bytes does not fit: {room} bytes are free for it between the \
        kernel and {top:#x}; give the machine more --memory"
    )]
    InitrdTooLarge {
        /// Bytes of the file.
        size: u64,
        /// Bytes free.
        room: u64,
        /// Where the free room ends.
        top: u64,
    },
    /// The initrd file is empty.
    #[error("the initrd file is empty")]
    InitrdEmpty,
    /// The kernel cannot take a command line so long.
    #[error("the kernel command line has {len} bytes, this kernel takes {max}")]
    CmdlineTooLong {
        /// Bytes given.
        len: u64,
        /// Most it takes.
        max: u64,
    },
    /// The command line contains a NUL.
    #[error("the kernel command line contains a NUL character at byte {at}")]
    CmdlineNul {
        /// Where.
        at: usize,
    },
    /// A multiboot header demands something that this loader has not.
    #[error("the multiboot header demands features {flags:#x} that are not supported")]
    MultibootFeatures {
        /// The bits of the header's `flags` that are not known.
        flags: u32,
    },
    /// [`crate::PlatformTables`] describe an impossible machine.
    #[error("the machine cannot be described in ACPI: {what}")]
    Tables {
        /// What is impossible.
        what: &'static str,
    },
    /// RAM ends before the boot data below 1 MiB.
    #[error("the machine has too little memory to boot: {0}")]
    NoRam(#[from] NoRam),
}
