//! Fuzz targets, one per door that takes bytes nobody vouches for: drivers in the guest, kernel
//! files, disk images, saved state, event logs, guest code, and what users type.
//!
//! A target is a function from bytes to nothing that panics when something that must hold does
//! not. libFuzzer's programs in `src/bin` call it with `cargo xtask fuzz`; `tests/replay.rs` calls
//! it with the inputs in `corpus`, in every test run and without libFuzzer. docs/fuzzing.md has
//! the rest.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod chipset;
pub mod disk;
pub mod guest;
mod input;
pub mod kernel;
pub mod log;
mod rig;
pub mod saved;
pub mod values;
pub mod virtio;

// The command has no library; its parsers need nothing of it.
#[path = "../../crates/cli/src/key_value.rs"]
mod key_value;
#[path = "../../crates/cli/src/size.rs"]
mod size;

/// A target and the name of its folder in `corpus`.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Panics when something that must hold for these bytes does not.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "virtio", run: virtio::run },
    Target { name: "kernel", run: kernel::run },
    Target { name: "disk", run: disk::run },
    Target { name: "saved", run: saved::run },
    Target { name: "checkpoint", run: checkpoint::run },
    Target { name: "guest", run: guest::run },
    Target { name: "chipset", run: chipset::run },
    Target { name: "values", run: values::run },
    Target { name: "log", run: log::run },
];
