//! Recipes of the guest images, made from Debian packages only and kept in a cache.
//!
//! Invariants: nothing outside the cache is written, apart from packages installed with apt-get;
//! an image appears under its final name only when it is whole; an image is rebuilt when its
//! recipe or its kernel changes.
//!
//! | image | what it is |
//! |---|---|
//! | `kernel-*/vmlinuz` | Debian's cloud kernels, 6.1 and the one of backports |
//! | `mini-*.cpio` | busybox, virtio modules and the benchmark programs |
//! | `mini-full-*.cpio` | `mini` with python3, sqlite3, openssl and e2fsprogs |
//! | `debian.raw`, `debian.qcow2` | Debian with systemd on an ext4 disk, for both kernels |
//! | `debian-*.cpio` | the initramfs that mounts that disk |
//! | `culprit/culprit.ko` | a kernel module with a bug for debuggers to find |
//! | `soak/` | what the long tests bring into the Debian guest |
//!
//! What the images understand on the kernel command line is described in the README beside this
//! crate.
#![forbid(unsafe_code)]

mod apt;
mod cache;
mod command;
mod cpio;
mod culprit;
mod debian;
mod kernel;
mod mini;
mod modules;
mod packages;
mod programs;
mod soak;
mod stamp;

pub use apt::{Apt, Suite};
pub use cache::{Cache, CacheLock, workspace_root};
pub use command::{capture, run, say};
pub use culprit::culprit;
pub use debian::{Debian, debian};
pub use kernel::{Kernel, KernelFiles, kernel};
pub use mini::{Mini, full_tree, mini, mini_full, native_tree};
pub use packages::{is_root, require};
pub use programs::programs;
pub use soak::{SoakFiles, soak_files};
