//! Debian's cloud kernels: downloaded, unpacked and indexed, never installed on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Suite};
use crate::cache::Cache;
use crate::command::{run, say};
use crate::packages::require;
use crate::stamp::{self, manifest};

/// Changed when what is kept of a kernel changes.
const RECIPE: &str = "1";

/// One of the two kernels that guests are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's own, 6.1.
    V6_1,
    /// The newer one of bookworm-backports.
    Backports,
}

impl Kernel {
    /// Both, the older first.
    pub const ALL: [Kernel; 2] = [Kernel::V6_1, Kernel::Backports];

    /// The name used in file names and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::Backports => "backports",
        }
    }

    fn suite(self) -> Suite {
        match self {
            Kernel::V6_1 => Suite::Stable,
            Kernel::Backports => Suite::Backports,
        }
    }
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The folder that holds `modules.dep` and the uncompressed modules below `kernel/`.
    pub modules: PathBuf,
    /// The release, as `uname -r` prints it in the guest.
    pub release: String,
    /// The version of the Debian package.
    pub version: String,
}

/// The kernel `which`, fetched if it is not in the cache or if `force` is set.
///
/// # Errors
/// When the package cannot be fetched or is not as expected.
pub fn kernel(cache: &Cache, which: Kernel, force: bool) -> Result<KernelFiles> {
    let dir = cache.path(&format!("kernel-{}", which.name()));
    if !force && let Some(files) = cached(&dir) {
        return Ok(files);
    }
    require(&["kmod", "xz-utils"])?;
    let apt = Apt::open(cache)?;
    let meta = apt.newest("linux-image-cloud-amd64", which.suite())?;
    let is_image = |name: &&String| name.starts_with("linux-image-");
    let package = meta.depends.iter().find(is_image).context("no kernel in linux-image-cloud")?;
    let version = meta.version;
    say(&format!("fetching {package} {version}"));
    let unpacked = cache.fresh_dir("unpack")?;
    apt.unpack(&format!("{package}={version}"), &unpacked)?;
    let made = cache.fresh_dir(&format!("kernel-{}.new", which.name()))?;
    let release = keep(&unpacked, &made)?;
    let of = [("recipe", RECIPE), ("package", package), ("version", &version)];
    let mut made_from = manifest(of);
    made_from.insert("release".to_owned(), release);
    stamp::write(&made.join("manifest.json"), &made_from)?;
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::rename(&made, &dir)?;
    fs::remove_dir_all(&unpacked)?;
    cached(&dir).context("the kernel just unpacked is not whole")
}

fn cached(dir: &Path) -> Option<KernelFiles> {
    let made = stamp::read(&dir.join("manifest.json"))?;
    let files = KernelFiles {
        vmlinuz: dir.join("vmlinuz"),
        modules: dir.join("modules"),
        release: made.get("release")?.clone(),
        version: made.get("version")?.clone(),
    };
    let is_whole = files.vmlinuz.exists() && files.modules.join("modules.dep").exists();
    (is_whole && made.get("recipe")? == RECIPE).then_some(files)
}

/// Moves kernel, configuration and modules from the unpacked package; returns the release.
fn keep(unpacked: &Path, made: &Path) -> Result<String> {
    let boot = unpacked.join("boot");
    let mut release = None;
    for entry in fs::read_dir(&boot).context("the package has no /boot")? {
        let name = entry?.file_name().into_string().ok().context("file name in /boot")?;
        if let Some(suffix) = name.strip_prefix("vmlinuz-") {
            fs::rename(boot.join(&name), made.join("vmlinuz"))?;
            release = Some(suffix.to_owned());
        } else if name.starts_with("config-") {
            fs::rename(boot.join(&name), made.join("config"))?;
        }
    }
    let release = release.context("the package has no kernel image")?;
    let places = [unpacked.join("lib/modules"), unpacked.join("usr/lib/modules")];
    let Some(modules) = places.iter().find(|place| place.join(&release).exists()) else {
        bail!("the package of kernel {release} has no modules");
    };
    decompress(modules)?;
    index(modules, &release)?;
    fs::rename(modules.join(&release), made.join("modules"))?;
    Ok(release)
}

/// Decompresses the modules in place: guests should not spend their time on it.
fn decompress(modules: &Path) -> Result<()> {
    let find = r"find . -name '*.ko.xz' -print0 | xargs -0 -r xz -d";
    run(Command::new("sh").args(["-c", find]).current_dir(modules))
}

/// Writes `modules.dep` and the other indexes for the modules in `BASE/lib/modules/RELEASE`.
fn index(modules: &Path, release: &str) -> Result<()> {
    let base = modules.ancestors().nth(2).context("modules are in lib/modules")?;
    let path = "/usr/sbin:/sbin:/usr/bin:/bin";
    run(Command::new("depmod").env("PATH", path).arg("-b").arg(base).arg(release))
}
