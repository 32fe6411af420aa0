//! Built guest images by name, as `cargo xtask guest` leaves them in the cache.

use std::path::{Path, PathBuf};

use vmm::DiskSpec;

use crate::fail::Fail;

/// What is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
    /// Command line that `--cmdline` is added to.
    pub cmdline: &'static str,
    /// Its disk.
    pub disk: Option<DiskSpec>,
}

/// Families of images.
const FAMILIES: [&str; 3] = ["mini", "mini-full", "debian"];
/// An image with the newer kernel has this at the end of its name.
const BACKPORTS: &str = "-backports";
const KERNELS: [(&str, &str); 2] = [("", "6.1"), (BACKPORTS, "backports")];

/// Finds a built image.
///
/// Fails if there is no such image, or it has not been built.
pub fn find(name: &str) -> Result<Image, Fail> {
    let base = std::env::var_os("DOPPEL_CACHE").map(PathBuf::from);
    let here = std::env::current_dir().unwrap_or_default();
    let folders: Vec<PathBuf> = match base {
        Some(base) => vec![base.join("guests")],
        None => here.ancestors().map(|dir| dir.join(".cache/guests")).collect(),
    };
    let image = folders.iter().find_map(|folder| in_folder(name, folder));
    let Some(image) = image else {
        return Err(Fail::Usage(format!(
            "there is no image {name:?}; images are {}, each also with {BACKPORTS}; a kernel of \
             your own is given with --kernel",
            FAMILIES.join(", ")
        )));
    };
    let is_built = |folder: &&PathBuf| {
        in_folder(name, folder)
            .is_some_and(|image| image.kernel.is_file() && image.initrd.is_file())
    };
    match folders.iter().find(is_built) {
        Some(folder) => Ok(in_folder(name, folder).unwrap_or(image)),
        None => Err(Fail::Usage(format!(
            "image {name:?} is not built; `cargo xtask guest all` builds it, and DOPPEL_CACHE says \
             where it is if not in .cache of this folder or one above"
        ))),
    }
}

/// Where an image is, if it has been built in this folder.
fn in_folder(name: &str, folder: &Path) -> Option<Image> {
    let (family, kernel) = KERNELS.into_iter().rev().find_map(|(suffix, kernel)| {
        let family = name.strip_suffix(suffix)?;
        FAMILIES.contains(&family).then_some((family, kernel))
    })?;
    let is_debian = family == "debian";
    let disk = is_debian.then(|| DiskSpec {
        path: folder.join("debian.qcow2"),
        format: Some(vmm::Format::Qcow2),
        read_only: false,
    });
    Some(Image {
        kernel: folder.join(format!("kernel-{kernel}/vmlinuz")),
        initrd: folder.join(format!("{family}-{kernel}.cpio")),
        cmdline: if is_debian { "console=ttyS0 root=/dev/vda" } else { "console=ttyS0 quiet" },
        disk,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_family_and_kernel() {
        let folder = Path::new("g");
        for (name, kernel, initrd) in [
            ("mini", "g/kernel-6.1/vmlinuz", "g/mini-6.1.cpio"),
            ("mini-backports", "g/kernel-backports/vmlinuz", "g/mini-backports.cpio"),
            ("mini-full", "g/kernel-6.1/vmlinuz", "g/mini-full-6.1.cpio"),
            ("debian-backports", "g/kernel-backports/vmlinuz", "g/debian-backports.cpio"),
        ] {
            let image = in_folder(name, folder).unwrap();
            assert_eq!((image.kernel, image.initrd), (kernel.into(), initrd.into()));
            assert_eq!(image.disk.is_some(), name.starts_with("debian"));
        }
        for name in ["", "mini-", "-backports", "alpine", "mini-backports-backports", "../mini"] {
            assert_eq!(in_folder(name, folder), None, "{name}");
        }
    }
}
