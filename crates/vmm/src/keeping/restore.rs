//! From a checkpoint to a VM that goes on: the specification it had, its machine, its disks.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use checkpoint::{Checkpoint, DiskKept, DiskPolicy, Manifest, RestoredMachine};
use disk::{DiskIo, Format, Parent, empty_overlay};

use super::{LiveDisk, VmKept};
use crate::boot_files::BootFiles;
use crate::ports::DiskPort;
use crate::prepare::{Prepared, check_flags, check_memory, copied_mac, engine, random_id};
use crate::spec::RestoreSpec;
use crate::{ConsoleSpec, DiskInfo, NetKind, NetSpec, VmError, VmSpec};

/// The folder for what outlives VMs: `$XDG_STATE_HOME/doppel`, or `~/.local/state/doppel`.
///
/// # Errors
/// [`VmError::Flags`] when neither variable is set.
pub fn state_dir() -> Result<PathBuf, VmError> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    base.map(|base| base.join("doppel")).ok_or_else(|| {
        VmError::Flags("set HOME or XDG_STATE_HOME, or give --disks a folder".into())
    })
}

/// A port of this host's loopback address that is free now.
///
/// # Errors
/// [`VmError::Flags`] when there is none.
fn free_port() -> Result<u16, VmError> {
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let bound = TcpListener::bind(any).and_then(|listener| listener.local_addr());
    let bound = bound.map_err(|error| VmError::Flags(format!("no free port: {error}")))?;
    Ok(bound.port())
}

/// So many different ports of this host's loopback address that are free now.
///
/// # Errors
/// [`VmError::Flags`] when there are not.
pub fn free_ports(count: usize) -> Result<Vec<u16>, VmError> {
    let mut ports = BTreeSet::new();
    for _ in 0..10 * count {
        if ports.len() < count {
            ports.insert(free_port()?);
        }
    }
    if ports.len() < count {
        return Err(VmError::Flags(format!("there are no {count} free ports")));
    }
    Ok(ports.into_iter().collect())
}

/// The VM that was kept, on a console that leads nowhere; what is wanted otherwise may be changed
/// before it is run. A copy gets ports of its own.
///
/// # Errors
/// [`VmError::Checkpoint`].
pub fn restored_spec(restore: RestoreSpec) -> Result<VmSpec, VmError> {
    let manifest = Manifest::read(&restore.folder)?;
    let damaged = |what: String| {
        let path = restore.folder.join("manifest.json");
        VmError::Checkpoint(checkpoint::CheckpointError::Damaged { path, what })
    };
    let machine = manifest.machine.spec().map_err(damaged)?;
    let kept: VmKept = serde_json::from_value(manifest.vm.clone())
        .map_err(|error| damaged(format!("what it says of the VM: {error}")))?;
    let (mut nets, mut ports) = (Vec::new(), restore.ports.iter().copied());
    for (net, nic) in kept.nets.iter().zip(&machine.nics) {
        let mut kind = net.kind().map_err(damaged)?;
        if restore.copy {
            move_ports(&mut kind, &mut ports)?;
        }
        nets.push(NetSpec { kind, mac: Some(nic.mac) });
    }
    Ok(VmSpec {
        name: Some(kept.name.clone()),
        initrd: kept.initrd.clone(),
        cmdline: kept.cmdline.clone(),
        memory_size: machine.memory_size,
        model: machine.model,
        engine: kept.engine(),
        nets,
        console: ConsoleSpec::None,
        hvc: machine.console.then_some(ConsoleSpec::None),
        debug_exit: machine.debug_exit,
        no_reboot: kept.no_reboot,
        seed: (kept.clock == "seed").then_some(machine.seed),
        warp: kept.clock == "warp",
        restore: Some(restore),
        ..VmSpec::new(kept.kernel)
    })
}

fn move_ports(kind: &mut NetKind, ports: &mut impl Iterator<Item = u16>) -> Result<(), VmError> {
    if let NetKind::User(forwards) = kind {
        for forward in forwards {
            forward.host.set_port(ports.next().map_or_else(free_port, Ok)?);
        }
    }
    Ok(())
}

/// Restores a VM as far as [`crate::prepare::prepare`] does.
pub(crate) fn prepare(spec: &VmSpec, restore: &RestoreSpec) -> Result<Prepared, VmError> {
    check_flags(spec)?;
    let checkpoint = Checkpoint::open(&restore.folder)?;
    let restored = if restore.eager {
        check_memory(spec.memory_size)?;
        checkpoint.restore_eagerly()?
    } else {
        checkpoint.restore()?
    };
    let RestoredMachine { machine, requests, reads } = restored;
    let engine = engine(spec.engine, spec.perf_map.as_deref())?;
    let folder = disk_folder(spec, restore)?;
    let (mut disks, mut disk_infos) = (Vec::new(), Vec::new());
    let mut discard = Discard::default();
    for (index, kept) in checkpoint.manifest().disks.iter().enumerate() {
        let (mut port, info) = open_disk(index, kept, restore, folder.as_deref())?;
        if restore.discard && !info.read_only {
            discard.paths.push(info.path.clone());
        }
        let mine = reads.iter().filter(|(disk, _)| *disk as usize == index);
        port.brings(mine.map(|(_, read)| read.clone()));
        disks.push(port);
        disk_infos.push(info);
    }
    let generation = restore.copy.then(random_id).transpose()?;
    let own = machine.spec().nics.iter().map(|nic| nic.mac);
    let macs = (0..).zip(own).map(|(nic, mac)| match &generation {
        Some(id) => copied_mac(id, nic),
        None => mac,
    });
    let macs = macs.collect();
    Ok(Prepared {
        machine,
        engine,
        boot: BootFiles::later(spec),
        disks,
        disk_infos,
        macs,
        requests,
        restored_from: Some(checkpoint.manifest().id),
        generation,
        discard,
    })
}

/// Overlays that go when the VM ends, and their folder if nothing else is in it. They have names
/// until then, so that checkpoints can be taken.
#[derive(Debug, Default)]
pub(crate) struct Discard {
    paths: Vec<PathBuf>,
}

impl Discard {
    /// Goes by the images that are on top now; one that a checkpoint keeps stays.
    pub fn follow(&mut self, disks: &[LiveDisk]) {
        if !self.paths.is_empty() {
            let on_top = disks.iter().filter(|disk| !disk.read_only);
            self.paths = on_top.map(|disk| disk.path.clone()).collect();
        }
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        for path in &self.paths {
            let removed = std::fs::remove_file(path);
            if let Err(error) = removed {
                tracing::warn!("cannot remove {path:?}: {error}");
            }
            // It may have more in it, or be wanted for others.
            let _ = path.parent().map(std::fs::remove_dir);
        }
    }
}

/// Where overlays go; none is needed if no disk can be written.
fn disk_folder(spec: &VmSpec, restore: &RestoreSpec) -> Result<Option<PathBuf>, VmError> {
    let name = spec.name.as_deref().unwrap_or("vm");
    let folder = match &restore.disks {
        Some(folder) => folder.clone(),
        None => state_dir()?.join("disks").join(name),
    };
    Ok(Some(folder))
}

fn open_disk(
    index: usize,
    kept: &DiskKept,
    restore: &RestoreSpec,
    folder: Option<&Path>,
) -> Result<(DiskPort, DiskInfo), VmError> {
    let image = restore.folder.join(&kept.path);
    let format = Format::named(&kept.format).ok_or_else(|| {
        VmError::Flags(format!("disk {index} has the format {:?}, which is unknown", kept.format))
    })?;
    check_unchanged(&image, kept)?;
    let read_only = kept.policy == DiskPolicy::ReadOnly;
    let (path, format) = match folder {
        Some(folder) if !read_only => {
            std::fs::create_dir_all(folder).map_err(|source| VmError::Registry {
                action: "make",
                path: folder.into(),
                source,
            })?;
            let path = overlay_path(folder, index);
            let image = std::path::absolute(&image).unwrap_or(image);
            let parent = Parent { path: image.clone(), format, size: kept.size_bytes };
            empty_overlay(&path, &parent, &image).map_err(VmError::Disk)?;
            (path, Format::Qcow2)
        }
        _ => (image, format),
    };
    let spec = disk::DiskSpec { path: path.clone(), format: Some(format), read_only };
    let opened = disk::open(spec);
    if opened.is_err() && !read_only {
        let _ = std::fs::remove_file(&path);
    }
    let backend = opened.map_err(VmError::Disk)?;
    let info = DiskInfo {
        path,
        format: format.name().into(),
        size_bytes: backend.size(),
        read_only: backend.read_only(),
    };
    Ok((DiskPort::new(DiskIo::spawn(backend)), info))
}

/// The first free name of the row `disk0.qcow2`, `disk0.1.qcow2`, ...
fn overlay_path(folder: &Path, index: usize) -> PathBuf {
    let first = folder.join(format!("disk{index}.qcow2"));
    let more = (1..100_000).map(|n| folder.join(format!("disk{index}.{n}.qcow2")));
    std::iter::once(first.clone()).chain(more).find(|path| !path.exists()).unwrap_or(first)
}

/// A disk that was written since is not the one the memory knows.
pub(crate) fn check_unchanged(image: &Path, kept: &DiskKept) -> Result<(), VmError> {
    if kept.policy != DiskPolicy::Kept {
        return Ok(());
    }
    let metadata = std::fs::metadata(image).map_err(|source| VmError::Registry {
        action: "find the checkpoint's disk",
        path: image.into(),
        source,
    })?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |time| time.as_nanos() as u64);
    if (metadata.len(), modified) == (kept.file_size, kept.modified_ns) {
        return Ok(());
    }
    Err(VmError::Flags(format!(
        "{image:?} was changed after the checkpoint was taken, so the guest's memory does not \
         match it; bring back the image as it was (its time too: `cp -p`)"
    )))
}
