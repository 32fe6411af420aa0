//! What a machine is built from.

use cpu::cpuid::Model;
use journal::WallClock;
use memory::RamError;

/// Numbers of the consoles in `journal::Input::Console` and `journal::Output::Console`.
pub mod console_port {
    /// First serial port, `ttyS0`.
    pub const COM1: u32 = 0;
    /// Second serial port, `ttyS1`.
    pub const COM2: u32 = 1;
    /// Virtio console, `hvc0`.
    pub const VIRTIO: u32 = 2;
}

/// A disk as the machine sees it; its contents are the host's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Bytes, a multiple of 512.
    pub size: u64,
    /// The guest may not write.
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// Hardware address.
    pub mac: [u8; 6],
}

/// Everything that makes one machine differ from another at power-on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// Bytes of RAM.
    pub memory_size: u64,
    /// CPU model.
    pub model: Model,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order of their PCI slots.
    pub nics: Vec<NicSpec>,
    /// Whether there is a virtio console.
    pub console: bool,
    /// Port of the debug-exit test device, if there is one.
    pub debug_exit: Option<u16>,
    /// Seed of the entropy device.
    pub seed: u64,
    /// Wall-clock time at virtual time zero.
    pub wall_clock: WallClock,
    /// Thousandths of a nanosecond of virtual time per branch until an anchor says otherwise.
    pub nominal_rate: u64,
}

impl MachineSpec {
    /// Rate used when nobody measured one: 20 ns per branch.
    pub const NOMINAL_RATE: u64 = 20_000;
    /// Bytes that one frame of a network card may carry beyond headers.
    pub const MTU: u16 = 1500;
}

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// RAM could not be had.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// More devices than the PCI bus takes.
    #[error("too many disks and network cards: {0}")]
    Pci(#[from] devices::pci::BusError),
    /// The debug-exit device would lie on ports of another one.
    #[error("port {0:#x} of the debug-exit device belongs to {1}; 0xf4 is free")]
    DebugExit(u16, &'static str),
}
