//! The files a guest boots from: opened once, so that a reset finds the same ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use boot::BootError;
use machine::Machine;

use crate::{VmError, VmSpec, driver};

/// Largest kernel file, bytes.
const KERNEL_SIZE_MAX: u64 = 1 << 30;

/// The files a guest boots from, kept open, so that a reset finds the same ones.
#[derive(Debug)]
pub(crate) struct BootFiles {
    /// `None` if they are opened when they are needed, which after a restore may be never.
    opened: Option<Arc<Files>>,
    spec: VmSpec,
}

/// The same files for other threads, to be copied.
#[derive(Clone, Debug)]
pub(crate) struct BootSources {
    opened: Option<Arc<Files>>,
    spec: VmSpec,
}

/// Kernel and initrd.
type Files = (Opened, Option<Opened>);

#[derive(Debug)]
struct Opened {
    flag: &'static str,
    path: PathBuf,
    file: File,
}

impl BootFiles {
    /// Of a machine that does not boot, yet.
    pub fn later(spec: &VmSpec) -> BootFiles {
        BootFiles { opened: None, spec: spec.clone() }
    }

    /// Opens them now.
    pub fn open(spec: &VmSpec) -> Result<BootFiles, VmError> {
        Ok(BootFiles { opened: Some(Arc::new(open_files(spec)?)), spec: spec.clone() })
    }

    /// For other threads.
    pub fn sources(&self) -> BootSources {
        BootSources { opened: self.opened.clone(), spec: self.spec.clone() }
    }

    /// Loads the machine from the files; their contents are not kept.
    pub fn boot(&mut self, machine: &mut Machine) -> Result<(), VmError> {
        let files = match self.opened.take() {
            Some(opened) => opened,
            None => Arc::new(open_files(&self.spec)?),
        };
        let (kernel_file, initrd_file) = &*files;
        let kernel = kernel_file.read()?;
        let initrd = initrd_file.as_ref().map(Opened::read).transpose()?;
        let booted = driver::boot(machine, &kernel, initrd.as_deref(), &self.spec.cmdline);
        let named = booted.map_err(|source| match source {
            BootError::InitrdTooLarge { .. } | BootError::InitrdEmpty => {
                let initrd = initrd_file.as_ref().map(|initrd| initrd.path.clone());
                VmError::Initrd { initrd: initrd.unwrap_or_default(), source }
            }
            BootError::CmdlineTooLong { .. } | BootError::CmdlineNul { .. } => {
                VmError::Flags(format!("--cmdline: {source}"))
            }
            source => VmError::Boot { kernel: kernel_file.path.clone(), source },
        });
        self.opened = Some(files);
        named
    }
}

impl BootSources {
    pub fn cmdline(&self) -> &str {
        &self.spec.cmdline
    }

    pub fn no_reboot(&self) -> bool {
        self.spec.no_reboot
    }

    pub fn has_initrd(&self) -> bool {
        self.spec.initrd.is_some()
    }

    /// Copies the files. Those that are opened when they are needed, and are not there, are not
    /// there for the guest either.
    pub fn copy(&self, kernel: &Path, initrd: Option<PathBuf>) -> Result<(), VmError> {
        let files = match (&self.opened, open_files(&self.spec)) {
            (Some(opened), _) => Arc::clone(opened),
            (None, Ok(opened)) => Arc::new(opened),
            (None, Err(error)) => {
                tracing::warn!("{error}; the recording ends where its guest is reset");
                return Ok(());
            }
        };
        let copies = [(Some(&files.0), Some(kernel)), (files.1.as_ref(), initrd.as_deref())];
        for (file, to) in copies.into_iter().filter_map(|(file, to)| file.zip(to)) {
            std::fs::write(to, file.read()?).map_err(|source| VmError::Registry {
                action: "write",
                path: to.into(),
                source,
            })?;
        }
        Ok(())
    }
}

fn open_files(spec: &VmSpec) -> Result<Files, VmError> {
    let kernel = Opened::open("--kernel", &spec.kernel, KERNEL_SIZE_MAX)?;
    let initrd = spec.initrd.as_ref();
    let initrd = initrd.map(|path| Opened::open("--initrd", path, u64::MAX)).transpose()?;
    if let Some(initrd) = &initrd {
        let size = initrd.size()?;
        if size > spec.memory_size {
            let (room, top) = (spec.memory_size, spec.memory_size);
            let source = BootError::InitrdTooLarge { size, room, top };
            return Err(VmError::Initrd { initrd: initrd.path.clone(), source });
        }
    }
    Ok((kernel, initrd))
}

impl Opened {
    fn open(flag: &'static str, path: &Path, size_max: u64) -> Result<Opened, VmError> {
        let failed = |source: std::io::Error| {
            let hint = match source.kind() {
                std::io::ErrorKind::NotFound => "; check the path",
                std::io::ErrorKind::PermissionDenied => "; make it readable with `chmod +r`",
                _ => "",
            };
            VmError::File { flag, path: path.into(), source, hint }
        };
        // Not to wait for the writer of a pipe: look before opening.
        let is = std::fs::metadata(path).map_err(failed)?;
        let problem = if is.is_dir() {
            "is a folder"
        } else if !is.is_file() {
            "is not a regular file"
        } else if is.len() > size_max {
            "is too large to be one"
        } else {
            let file = File::open(path).map_err(failed)?;
            return Ok(Opened { flag, path: path.into(), file });
        };
        Err(VmError::Flags(format!("{flag} {path:?}: {problem}")))
    }

    fn failed(&self, source: std::io::Error) -> VmError {
        VmError::File { flag: self.flag, path: self.path.clone(), source, hint: "" }
    }

    fn size(&self) -> Result<u64, VmError> {
        Ok(self.file.metadata().map_err(|source| self.failed(source))?.len())
    }

    fn read(&self) -> Result<Vec<u8>, VmError> {
        let mut bytes = vec![0; self.size()? as usize];
        self.file.read_exact_at(&mut bytes, 0).map_err(|source| self.failed(source))?;
        Ok(bytes)
    }
}
