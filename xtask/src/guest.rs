//! `cargo xtask guest`: builds the guest images and says where they are.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use guests::{Cache, Debian, Kernel, KernelFiles};

/// Builds guest images from Debian packages, and keeps them in `.cache/guests`.
#[derive(Args, Debug)]
pub struct Guest {
    /// Which images to build.
    #[arg(value_enum, default_value_t = Image::All)]
    image: Image,
    /// For which kernel; the debian image always takes both.
    #[arg(long, value_enum, default_value_t = Choice::Both)]
    kernel: Choice,
    /// Fetch and build again, even what is current.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Image {
    /// A small initramfs with busybox and the benchmark programs.
    Mini,
    /// The mini guest with python3, sqlite3, openssl and e2fsprogs.
    MiniFull,
    /// Debian with systemd on a disk.
    Debian,
    /// A kernel module with a bug, for debuggers to find.
    Culprit,
    /// All of them but the module.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Debian 12's own kernel.
    #[value(name = "6.1")]
    V6_1,
    /// The kernel of bookworm-backports.
    Backports,
    /// Both.
    Both,
}

impl Choice {
    fn kernels(self) -> &'static [Kernel] {
        match self {
            Choice::V6_1 => &[Kernel::V6_1],
            Choice::Backports => &[Kernel::Backports],
            Choice::Both => &Kernel::ALL,
        }
    }
}

impl Guest {
    /// Runs the verb.
    ///
    /// # Errors
    /// When an image cannot be built.
    pub fn run(&self) -> Result<()> {
        let start = Instant::now();
        let cache = Cache::open()?;
        let _lock = cache.lock()?;
        if self.force {
            self.kernel
                .kernels()
                .iter()
                .try_for_each(|k| guests::kernel(&cache, *k, true).map(drop))?;
            guests::programs(&cache, true)?;
        }
        for which in self.kernel.kernels() {
            self.minis(&cache, *which)?;
        }
        if self.wants(Image::Debian) {
            let debian = guests::debian(&cache, self.force)?;
            show_debian(&debian)?;
        }
        if self.image == Image::Culprit {
            show("culprit", &guests::culprit(&cache, self.force)?)?;
        }
        println!("done in {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn wants(&self, image: Image) -> bool {
        self.image == image || self.image == Image::All
    }

    fn minis(&self, cache: &Cache, which: Kernel) -> Result<()> {
        if self.wants(Image::Mini) {
            let mini = guests::mini(cache, which, self.force)?;
            show_kernel(which, &mini.kernel)?;
            show(&format!("mini {}", which.name()), &mini.initramfs)?;
        }
        if self.wants(Image::MiniFull) {
            let full = guests::mini_full(cache, which, self.force)?;
            show(&format!("mini-full {}", which.name()), &full.initramfs)?;
        }
        Ok(())
    }
}

fn show_kernel(which: Kernel, kernel: &KernelFiles) -> Result<()> {
    println!("kernel {}: release {}, package {}", which.name(), kernel.release, kernel.version);
    show(&format!("kernel {}", which.name()), &kernel.vmlinuz)
}

fn show(what: &str, path: &Path) -> Result<()> {
    let size = fs::metadata(path)?.len();
    println!("{what:18} {:8.1} MiB  {}", size as f64 / f64::from(1 << 20), path.display());
    Ok(())
}

fn show_debian(debian: &Debian) -> Result<()> {
    show("debian raw", &debian.raw)?;
    show("debian qcow2", &debian.qcow2)?;
    for (which, files, initramfs) in &debian.kernels {
        show_kernel(*which, files)?;
        show(&format!("debian {}", which.name()), initramfs)?;
    }
    Ok(())
}
