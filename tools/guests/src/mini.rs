//! The mini guest: busybox, the virtio modules and the benchmark programs in an initramfs.
//!
//! It is not compressed: decompression would be guest work, and a slow engine has none to spare.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::command::{capture, say};
use crate::cpio::Archive;
use crate::kernel::{Kernel, KernelFiles, kernel};
use crate::modules::loading_order;
use crate::packages::require;
use crate::programs::{self, PROGRAMS, programs};
use crate::stamp::{self, manifest};

/// What the init scripts load, dependencies apart.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "af_packet",
    "vmw_vsock_virtio_transport",
    "ext4",
    "pvpanic_mmio",
];

/// Shell functions of both guests.
pub(crate) const RUN_FUNCTIONS: &str = include_str!("../files/run-functions");

/// Where each script goes.
const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("../files/mini-init")),
    ("etc/profile", include_str!("../files/mini-profile")),
    ("bin/doppel-disk", include_str!("../files/mini-disk")),
    ("bin/doppel-net", include_str!("../files/mini-net")),
    ("bin/doppel-dhcp", include_str!("../files/mini-dhcp")),
    ("lib/doppel-run-functions", RUN_FUNCTIONS),
];

/// What the benchmarks read.
pub(crate) const INPUTS: &[(&str, &str)] = &[
    ("bench/work.py", include_str!("../programs/work.py")),
    ("bench/work.sql", include_str!("../programs/work.sql")),
];

/// The packages that `mini-full` adds, each with what it needs.
const FULL_PACKAGES: &[&str] = &[
    "libc6",
    "libcrypt1",
    "zlib1g",
    "libexpat1",
    "libbz2-1.0",
    "liblzma5",
    "libffi8",
    "libuuid1",
    "libblkid1",
    "libcom-err2",
    "libext2fs2",
    "libss2",
    "e2fsprogs",
    "libtinfo6",
    "libncursesw6",
    "libreadline8",
    "libssl3",
    "openssl",
    "libsqlite3-0",
    "sqlite3",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
];

/// A mini guest, ready to boot.
#[derive(Clone, Debug)]
pub struct Mini {
    /// Its kernel.
    pub kernel: KernelFiles,
    /// Its initramfs.
    pub initramfs: PathBuf,
}

/// The small mini guest for the kernel `which`, built if it is not current or if `force` is set.
///
/// # Errors
/// When a package or a program cannot be had.
pub fn mini(cache: &Cache, which: Kernel, force: bool) -> Result<Mini> {
    build(cache, which, force, None)
}

/// The mini guest with python3, sqlite3, openssl and e2fsprogs; otherwise as [`mini`].
///
/// # Errors
/// As for [`mini`].
pub fn mini_full(cache: &Cache, which: Kernel, force: bool) -> Result<Mini> {
    let tree = full_tree(cache, false)?;
    build(cache, which, force, Some(&tree))
}

fn build(cache: &Cache, which: Kernel, force: bool, extra: Option<&Path>) -> Result<Mini> {
    let kernel = kernel(cache, which, false)?;
    let name = match extra {
        Some(_) => format!("mini-full-{}", which.name()),
        None => format!("mini-{}", which.name()),
    };
    let initramfs = cache.path(&format!("{name}.cpio"));
    let stamp_path = cache.path(&format!("{name}.json"));
    let recipe = recipe();
    let wanted = manifest([("recipe", &recipe), ("kernel", &kernel.version)]);
    if force || !stamp::is_current(&stamp_path, &wanted, &[&initramfs]) {
        say(&format!("building {name}"));
        let bytes = archive(cache, &kernel, extra)?;
        let unfinished = cache.path(&format!("{name}.new"));
        fs::write(&unfinished, bytes)?;
        fs::rename(&unfinished, &initramfs)?;
        stamp::write(&stamp_path, &wanted)?;
    }
    Ok(Mini { kernel, initramfs })
}

fn recipe() -> String {
    let programs = programs::recipe();
    let mut parts = vec![include_bytes!("mini.rs").as_slice(), programs.as_bytes()];
    parts.extend(SCRIPTS.iter().chain(INPUTS).map(|(_, text)| text.as_bytes()));
    stamp::recipe(&parts)
}

fn archive(cache: &Cache, kernel: &KernelFiles, extra: Option<&Path>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var", "bench"] {
        archive.folder(name);
    }
    archive.character_device("dev/console", (5, 1));
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    // With merged /usr, as in the packages of the full guest: files for /bin go to usr/bin.
    archive.folder("usr");
    for name in ["bin", "sbin", "lib", "lib64"] {
        archive.folder(&format!("usr/{name}"));
        archive.link(name, &format!("usr/{name}"));
    }
    let inner = |name: &str| match name {
        "init" | "etc/profile" => name.to_owned(),
        _ => format!("usr/{name}"),
    };
    busybox(&mut archive)?;
    archive.file("usr/bin/bench", 0o755, &fs::read(programs(cache, false)?)?);
    for (name, _) in PROGRAMS {
        archive.link(&format!("usr/bin/{name}"), "bench");
    }
    for (name, text) in SCRIPTS {
        archive.file(&inner(name), 0o755, text.as_bytes());
    }
    for (name, text) in INPUTS {
        archive.file(name, 0o644, text.as_bytes());
    }
    modules(&mut archive, kernel, MODULES)?;
    if let Some(tree) = extra {
        archive.tree(tree, "")?;
    }
    Ok(archive.finish())
}

/// Adds busybox and a link for each of its applets.
pub(crate) fn busybox(archive: &mut Archive) -> Result<()> {
    require(&["busybox-static"])?;
    let path = Path::new("/bin/busybox");
    archive.file("usr/bin/busybox", 0o755, &fs::read(path).context("reading /bin/busybox")?);
    for applet in capture(Command::new(path).arg("--list"))?.lines() {
        if applet != "busybox" {
            archive.link(&format!("usr/bin/{applet}"), "busybox");
        }
    }
    Ok(())
}

/// Adds the modules `wanted`, what they depend on, and the order to load them in.
pub(crate) fn modules(archive: &mut Archive, kernel: &KernelFiles, wanted: &[&str]) -> Result<()> {
    archive.folder("usr/lib/modules");
    let mut order = String::new();
    for path in loading_order(&kernel.modules, wanted)? {
        let name = path.rsplit('/').next().unwrap_or(&path);
        let data = fs::read(kernel.modules.join(&path)).with_context(|| path.clone())?;
        archive.file(&format!("usr/lib/modules/{name}"), 0o644, &data);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("usr/lib/modules/order", 0o644, order.as_bytes());
    Ok(())
}

/// The folder with the unpacked packages that `mini-full` adds; native runs use it too.
///
/// # Errors
/// When a package cannot be fetched.
pub fn full_tree(cache: &Cache, force: bool) -> Result<PathBuf> {
    let tree = cache.path("full-tree");
    let stamp_path = cache.path("full-tree.json");
    let wanted = manifest([("packages", &FULL_PACKAGES.join(" ")), ("recipe", "1")]);
    if !force && stamp::is_current(&stamp_path, &wanted, &[&tree]) {
        return Ok(tree);
    }
    let apt = Apt::open(cache)?;
    say("fetching the packages of mini-full");
    let unpacked = cache.fresh_dir("unpack")?;
    for package in FULL_PACKAGES {
        apt.unpack(package, &unpacked)?;
    }
    let made = cache.fresh_dir("full-tree")?;
    merge_usr(&unpacked, &made)?;
    std::os::unix::fs::symlink("python3.11", made.join("usr/bin/python3"))?;
    fs::remove_dir_all(&unpacked)?;
    stamp::write(&stamp_path, &wanted)?;
    Ok(tree)
}

/// Copies what a program needs at run time; /bin, /lib ... end up below usr.
fn merge_usr(unpacked: &Path, made: &Path) -> Result<()> {
    let script = r#"
        cd "$1"
        rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/lintian usr/share/info
        rm -rf usr/lib/x86_64-linux-gnu/gconv usr/lib/systemd usr/share/bug lib/systemd
        rm -rf usr/share/perl5 usr/share/pixmaps usr/share/applications usr/share/binfmts
        mkdir -p "$2/usr" "$2/etc"
        cp -a usr/. "$2/usr/"
        [ ! -d etc/ssl ] || cp -a etc/ssl "$2/etc/"
        for name in bin sbin lib lib64; do
            [ ! -d "$name" ] || { mkdir -p "$2/usr/$name"; cp -a "$name/." "$2/usr/$name/"; }
            ln -s "usr/$name" "$2/$name"
        done
        find "$2" -name __pycache__ -prune -exec rm -rf {} +
    "#;
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).args([unpacked, made]);
    crate::command::run(&mut command)
}

/// The initramfs of `full` as a folder, for running the same programs on the host.
///
/// # Errors
/// When it cannot be unpacked.
pub fn native_tree(cache: &Cache, full: &Mini) -> Result<PathBuf> {
    let tree = cache.path("native-tree");
    let stamp_path = cache.path("native-tree.json");
    let recipe = recipe();
    let wanted = manifest([("recipe", &recipe)]);
    if stamp::is_current(&stamp_path, &wanted, &[&tree]) {
        return Ok(tree);
    }
    let tree = cache.fresh_dir("native-tree")?;
    // Without root the device node cannot be made, and cpio fails at the end: it is not needed.
    let script = "busybox cpio -idu <\"$1\" || [ -x usr/bin/python3.11 ]";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&full.initramfs).current_dir(&tree);
    crate::command::run(&mut command)?;
    stamp::write(&stamp_path, &wanted)?;
    Ok(tree)
}
