//! The Debian guest: a whole system with systemd on an ext4 disk, and an initramfs per kernel.
//!
//! One disk boots with both kernels: it holds the modules of both. The root password is `doppel`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::command::{capture, run, say};
use crate::cpio::Archive;
use crate::kernel::{Kernel, KernelFiles, kernel};
use crate::mini::{INPUTS, RUN_FUNCTIONS, busybox, modules};
use crate::packages::{is_root, require};
use crate::programs::{self, PROGRAMS, programs};
use crate::stamp::{self, manifest};

/// The disk, as `truncate` takes it. The image is sparse.
const DISK_SIZE: &str = "2G";

/// The packages beside the minimal system.
const PACKAGES: &str = "systemd-sysv,udev,dbus,systemd-resolved,openssh-server,python3,sqlite3,\
    nginx-light,redis-server,openssl,gcc,libc6-dev,make,stress-ng,iproute2,iputils-ping,\
    e2fsprogs,kmod,curl,ca-certificates";

/// What the initramfs of the disk loads.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

const INIT: &str = include_str!("../files/debian-init");
const SETUP: &str = include_str!("../files/debian-setup");
const RUN: &str = include_str!("../files/debian-run");
const SERVICE: &str = include_str!("../files/debian-run.service");

/// The Debian guest, ready to boot.
#[derive(Clone, Debug)]
pub struct Debian {
    /// The disk as a sparse raw image: one ext4 file system, no partitions.
    pub raw: PathBuf,
    /// The same disk as qcow2.
    pub qcow2: PathBuf,
    /// Each kernel with the initramfs that mounts the disk.
    pub kernels: Vec<(Kernel, KernelFiles, PathBuf)>,
}

/// The Debian guest, built if it is not current or if `force` is set.
///
/// # Errors
/// When a package cannot be had or the file system cannot be made.
pub fn debian(cache: &Cache, force: bool) -> Result<Debian> {
    let mut kernels = Vec::new();
    for which in Kernel::ALL {
        let files = kernel(cache, which, false)?;
        let initramfs = initramfs(cache, which, &files, force)?;
        kernels.push((which, files, initramfs));
    }
    let debian =
        Debian { raw: cache.path("debian.raw"), qcow2: cache.path("debian.qcow2"), kernels };
    let versions: Vec<&str> = debian.kernels.iter().map(|(_, k, _)| k.version.as_str()).collect();
    let (recipe, versions) = (recipe(), versions.join(" "));
    let wanted = manifest([("recipe", &recipe), ("kernels", &versions)]);
    let stamp_path = cache.path("debian.json");
    if force || !stamp::is_current(&stamp_path, &wanted, &[&debian.raw, &debian.qcow2]) {
        build(cache, &debian)?;
        stamp::write(&stamp_path, &wanted)?;
    }
    Ok(debian)
}

fn recipe() -> String {
    let programs = programs::recipe();
    let parts = [include_str!("debian.rs"), SETUP, RUN, SERVICE, RUN_FUNCTIONS, &programs];
    stamp::recipe(&parts.map(str::as_bytes))
}

/// The initramfs that loads the disk's driver, mounts it and starts its init.
fn initramfs(cache: &Cache, which: Kernel, files: &KernelFiles, force: bool) -> Result<PathBuf> {
    let name = format!("debian-{}", which.name());
    let path = cache.path(&format!("{name}.cpio"));
    let stamp_path = cache.path(&format!("{name}.json"));
    let recipe = stamp::recipe(&[INIT.as_bytes(), include_bytes!("debian.rs")]);
    let wanted = manifest([("recipe", &recipe), ("kernel", &files.version)]);
    if !force && stamp::is_current(&stamp_path, &wanted, &[&path]) {
        return Ok(path);
    }
    let mut archive = Archive::default();
    for name in ["dev", "proc", "sys", "usr", "usr/bin", "usr/lib"] {
        archive.folder(name);
    }
    for name in ["bin", "sbin"] {
        archive.link(name, "usr/bin");
    }
    archive.link("lib", "usr/lib");
    archive.character_device("dev/console", (5, 1));
    archive.file("init", 0o755, INIT.as_bytes());
    busybox(&mut archive)?;
    modules(&mut archive, files, MODULES)?;
    fs::write(&path, archive.finish())?;
    stamp::write(&stamp_path, &wanted)?;
    Ok(path)
}

fn build(cache: &Cache, debian: &Debian) -> Result<()> {
    require(&["mmdebstrap", "e2fsprogs", "qemu-utils", "debian-archive-keyring"])?;
    if !is_root() {
        require(&["fakeroot", "uidmap"])?;
    }
    let apt = Apt::open(cache)?;
    let files = setup_files(cache, debian)?;
    let work = cache.fresh_dir("debian-work")?;
    let tar = work.join("root.tar");
    say("building the Debian root file system (about a minute)");
    bootstrap(&apt, &files, &tar)?;
    say("making the disk");
    let raw = work.join("debian.raw");
    make_disk(&work, &tar, &raw)?;
    let qcow2 = work.join("debian.qcow2");
    let mut convert = Command::new("qemu-img");
    run(convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &qcow2]))?;
    fs::rename(&raw, &debian.raw)?;
    fs::rename(&qcow2, &debian.qcow2)?;
    for dir in [work, files] {
        fs::remove_dir_all(&dir).with_context(|| format!("deleting {}", dir.display()))?;
    }
    Ok(())
}

/// The folder of what goes into the guest beside packages.
fn setup_files(cache: &Cache, debian: &Debian) -> Result<PathBuf> {
    let dir = cache.fresh_dir("debian-files")?;
    let texts = [
        ("setup", SETUP),
        ("doppel-run", RUN),
        ("doppel-run.service", SERVICE),
        ("doppel-run-functions", RUN_FUNCTIONS),
    ];
    for (name, text) in texts {
        fs::write(dir.join(name), text)?;
    }
    for name in ["modules", "bin", "share"] {
        fs::create_dir(dir.join(name))?;
    }
    for (_, files, _) in &debian.kernels {
        let to = dir.join("modules").join(&files.release);
        run(Command::new("cp").arg("-a").args([&files.modules, &to]))?;
    }
    fs::copy(programs(cache, false)?, dir.join("bin/bench"))?;
    for (name, _) in PROGRAMS {
        std::os::unix::fs::symlink("bench", dir.join("bin").join(name))?;
    }
    for (name, text) in INPUTS {
        let name = name.rsplit('/').next().unwrap_or(name);
        fs::write(dir.join("share").join(name), text)?;
    }
    Ok(dir)
}

/// Makes the root file system with mmdebstrap, as root or in a user name space.
fn bootstrap(apt: &Apt, files: &Path, tar: &Path) -> Result<()> {
    // copy-in works from outside: in a user name space the hooks could not read our files.
    let hooks = [
        format!("copy-in '{}' /", files.display()),
        "chroot \"$1\" sh /debian-files/setup".to_owned(),
        "rm -rf \"$1/debian-files\"".to_owned(),
    ];
    let mut command = Command::new("mmdebstrap");
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .arg(if is_root() { "--mode=root" } else { "--mode=unshare" })
        .args(["--variant=minbase", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={PACKAGES}"))
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
        ])
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .args(hooks.map(|hook| format!("--customize-hook={hook}")));
    for option in acquire_options()? {
        command.arg(format!("--aptopt={option}"));
    }
    run(command.arg("bookworm").arg(tar).arg(apt.stable_sources()))
}

/// The host's settings about proxies and dates, which its mirror may need.
fn acquire_options() -> Result<Vec<String>> {
    let dump = capture(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let wanted = ["Acquire::http", "Acquire::https", "Acquire::Check-"];
    let is_wanted = |line: &&str| {
        wanted.iter().any(|prefix| line.starts_with(prefix)) && !line.contains(" \"\";")
    };
    Ok(dump.lines().filter(is_wanted).map(str::to_owned).collect())
}

/// Makes the ext4 image `raw` from `tar`; fakeroot keeps owners where this is not root.
fn make_disk(work: &Path, tar: &Path, raw: &Path) -> Result<()> {
    let script = r#"
        mkdir "$1/root"
        tar -C "$1/root" --exclude='./dev/*' -xpf "$2"
        truncate -s "$4" "$3"
        mke2fs -q -t ext4 -L doppel -d "$1/root" "$3"
        rm -rf "$1/root"
    "#;
    let mut command = Command::new(if is_root() { "env" } else { "fakeroot" });
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(["sh", "-ec", script, "sh"]);
    run(command.args([work, tar, raw]).arg(DISK_SIZE))
}
