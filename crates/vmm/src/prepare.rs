//! From a [`VmSpec`] to a machine that is loaded and has its disks, or to the reason why not.
//!
//! Nothing on the host is made or changed here, but that images are locked: what makes things
//! (networks, consoles, sockets) comes after, in `process`.

use std::fs::File;
use std::io::{LineWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cpu::Engine;
use disk::{DiskIo, Format};
use host::console::ConsoleSpec;
use interp::Interp;
use journal::{DiskRequest, WallClock};
use machine::{DiskSpec, Machine, MachineSpec, NicSpec};
use memory::Ram;
use translate::{Options, Translator};
use types::{PAGE_SIZE, VirtualTime};

use crate::boot_files::BootFiles;
use crate::clock::LiveClock;
use crate::driver::Pace;
use crate::keeping::Discard;
use crate::ports::DiskPort;
use crate::{
    DiskInfo, EngineKind, MEMORY_SIZE_MIN, NetKind, VmError, VmSpec, check_name, overwrite,
};

/// The calendar of a run with a seed starts at 2024-01-01T00:00:00Z.
const SEEDED_WALL_NS: u64 = 1_704_067_200 * 1_000_000_000;

/// A VM that only lacks what has to be made on the host.
pub(crate) struct Prepared {
    pub machine: Machine,
    pub engine: Box<dyn Engine>,
    pub boot: BootFiles,
    pub disks: Vec<DiskPort>,
    pub disk_infos: Vec<DiskInfo>,
    pub macs: Vec<[u8; 6]>,
    /// Disk requests of before the checkpoint, to be done again.
    pub requests: Vec<(u32, DiskRequest)>,
    /// The checkpoint that the machine comes from.
    pub restored_from: Option<checkpoint::Id>,
    /// A new generation id for the guest, with which go new Ethernet addresses.
    pub generation: Option<[u8; 16]>,
    /// What goes when the VM ends.
    pub discard: Discard,
}

/// Checks everything and builds the machine.
///
/// Fails with a [`VmError`] that names the flag; nothing has happened then.
pub(crate) fn prepare(spec: &VmSpec) -> Result<Prepared, VmError> {
    check_flags(spec)?;
    check_memory(spec.memory_size)?;
    let mut boot = BootFiles::open(spec)?;
    overwrite::check(spec)?;
    let (disks, disk_infos) = open_disks(spec)?;
    let seed = match spec.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let macs: Vec<_> =
        (0..).zip(&spec.nets).map(|(i, net)| net.mac.unwrap_or(mac(seed, i))).collect();
    check_macs(&macs)?;
    let mut machine = Machine::new(MachineSpec {
        memory_size: spec.memory_size,
        model: spec.model,
        disks: disk_infos
            .iter()
            .map(|disk| DiskSpec { size: disk.size_bytes, read_only: disk.read_only })
            .collect(),
        nics: macs.iter().map(|&mac| NicSpec { mac }).collect(),
        console: spec.hvc.is_some(),
        debug_exit: spec.debug_exit,
        seed,
        wall_clock: WallClock(spec.seed.map_or_else(host::clock::wall_ns, |_| SEEDED_WALL_NS)),
        nominal_rate: MachineSpec::NOMINAL_RATE,
    })?;
    boot.boot(&mut machine)?;
    let engine = engine(spec.engine, spec.perf_map.as_deref())?;
    Ok(Prepared {
        machine,
        engine,
        boot,
        disks,
        disk_infos,
        macs,
        requests: Vec::new(),
        restored_from: None,
        generation: None,
        discard: Discard::default(),
    })
}

/// How virtual time is to pass.
pub(crate) fn pace(spec: &VmSpec, now: VirtualTime) -> Pace {
    match (spec.warp, spec.seed) {
        (true, _) => Pace::Warp,
        (false, Some(_)) => Pace::Seeded,
        (false, None) => Pace::Live(LiveClock::new(host::clock::monotonic_ns(), now)),
    }
}

pub(crate) fn check_flags(spec: &VmSpec) -> Result<(), VmError> {
    if let Some(name) = &spec.name {
        check_name(name)?;
    }
    let consoles = [("--console", Some(&spec.console)), ("--serial2", Some(&spec.serial2))];
    let consoles = consoles.into_iter().chain([("--hvc", spec.hvc.as_ref())]);
    let consoles: Vec<_> = consoles.filter_map(|(flag, to)| Some((flag, to?))).collect();
    for (index, (flag, to)) in consoles.iter().enumerate() {
        let shareable = matches!(to, ConsoleSpec::Pty | ConsoleSpec::None);
        if let Some((other, _)) =
            consoles[..index].iter().find(|(_, earlier)| !shareable && earlier == to)
        {
            let message =
                format!("{other} and {flag} are both {to}; give one of them another place");
            return Err(VmError::Flags(message));
        }
    }
    let disks = &spec.disks;
    for (index, disk) in disks.iter().enumerate() {
        if disks[..index]
            .iter()
            .any(|earlier| earlier.path == disk.path && !(earlier.read_only && disk.read_only))
        {
            let path = &disk.path;
            let message =
                format!("--disk path={}: given twice; add readonly to both", path.display());
            return Err(VmError::Flags(message));
        }
    }
    let checks = &spec.checks;
    if checks.hash_every.is_some() != checks.hash_log.is_some() {
        return Err(VmError::Flags("--hash-every and --hash-log need each other".into()));
    }
    Ok(())
}

pub(crate) fn check_memory(size: u64) -> Result<(), VmError> {
    let problem = if size < MEMORY_SIZE_MIN {
        format!("is too little; a machine needs {MEMORY_SIZE_MIN} or more")
    } else if size > Ram::SIZE_MAX {
        format!("is too much; a machine can have {} at most", Ram::SIZE_MAX)
    } else if !size.is_multiple_of(PAGE_SIZE) {
        format!("is not a multiple of {PAGE_SIZE}")
    } else {
        let available = host::memory_info::available_bytes()?;
        return if size <= available {
            Ok(())
        } else {
            Err(VmError::MemoryNotThere { size, available })
        };
    };
    Err(VmError::Memory { size, problem })
}

/// An engine that lists its translations in `perf_map`.
pub(crate) fn engine(
    kind: EngineKind,
    perf_map: Option<&Path>,
) -> Result<Box<dyn Engine>, VmError> {
    let refused = |source| VmError::Engine { engine: kind.name(), source };
    let interp = Interp::new().map_err(|source| refused(source.into()))?;
    match kind {
        EngineKind::Interp => Ok(Box::new(interp)),
        EngineKind::Translate => {
            let translator = Translator::new(Box::new(interp), Options::default());
            let mut translator = translator.map_err(|source| refused(source.into()))?;
            if let Some(path) = perf_map {
                translator.list_translations(open_perf_map(path)?);
            }
            Ok(Box::new(translator))
        }
    }
}

/// The path with the process id put in.
pub(crate) fn perf_map_path(path: &Path) -> PathBuf {
    path.to_string_lossy().replace("%p", &std::process::id().to_string()).into()
}

fn open_perf_map(path: &Path) -> Result<Box<dyn Write + Send>, VmError> {
    let path = perf_map_path(path);
    let file = File::create(&path).map_err(|source| VmError::PerfMap { path, source })?;
    Ok(Box::new(LineWriter::new(file)))
}

fn open_disks(spec: &VmSpec) -> Result<(Vec<DiskPort>, Vec<DiskInfo>), VmError> {
    let mut opened = Vec::new();
    for disk in &spec.disks {
        let format = disk::backing_chain(disk).map_err(VmError::Disk)?[0].1;
        let backend = disk::open(disk.clone()).map_err(VmError::Disk)?;
        let info = DiskInfo {
            path: disk.path.clone(),
            format: match format {
                Format::Raw => "raw".into(),
                Format::Qcow2 => "qcow2".into(),
            },
            size_bytes: backend.size(),
            read_only: backend.read_only(),
        };
        opened.push((DiskPort::new(DiskIo::spawn(backend)), info));
    }
    Ok(opened.into_iter().unzip())
}

/// A seed for a run that is not to be repeated.
fn random_seed() -> Result<u64, VmError> {
    random().map(u64::from_le_bytes)
}

/// An id that nobody else has.
pub(crate) fn random_id() -> Result<[u8; 16], VmError> {
    random()
}

fn random<const N: usize>() -> Result<[u8; N], VmError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0));
    read.map_err(|source| VmError::Registry { action: "read", path: path.into(), source })?;
    Ok(bytes)
}

/// The Ethernet address of card `index` of a copy with the VM generation id `id`.
pub(crate) fn copied_mac(id: &[u8; 16], index: u64) -> [u8; 6] {
    mac(u64::from_le_bytes(*id.first_chunk().expect("an id has 16 bytes")), index)
}

/// The Ethernet address of card `index`: QEMU's prefix, then a digest of seed and index
/// (splitmix64), so that VMs on one network differ.
pub(crate) fn mac(seed: u64, index: u64) -> [u8; 6] {
    let mut mixed = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [a, b, c, ..] = (mixed ^ (mixed >> 31)).to_le_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

/// An Ethernet address as people write it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn check_macs(macs: &[[u8; 6]]) -> Result<(), VmError> {
    for (index, mac) in macs.iter().enumerate() {
        let problem = if mac[0] & 1 != 0 {
            "is a group address; the first byte must be even"
        } else if *mac == [0; 6] {
            "cannot be that of a card"
        } else if macs[..index].contains(mac) {
            "is given twice"
        } else {
            continue;
        };
        return Err(VmError::Flags(format!("--net mac={}: {problem}", mac_text(*mac))));
    }
    Ok(())
}

/// What a network card is plugged into, as in `inspect`.
pub(crate) fn net_text(kind: &NetKind) -> (String, Vec<String>) {
    match kind {
        NetKind::User(forwards) => {
            ("user".into(), forwards.iter().map(ToString::to_string).collect())
        }
        NetKind::Tap(name) => (format!("tap={name}"), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_differ_by_seed_and_index_and_are_unicast() {
        let macs = [mac(1, 0), mac(1, 1), mac(2, 0), mac(2, 1)];
        check_macs(&macs).unwrap();
        assert_eq!(mac(7, 3), mac(7, 3));
        assert!(
            check_macs(&[macs[0], macs[1], macs[0]]).unwrap_err().to_string().contains("twice")
        );
        assert!(check_macs(&[[1, 2, 3, 4, 5, 6]]).unwrap_err().to_string().contains("group"));
        assert_eq!(mac_text([0x52, 0x54, 0, 0xab, 0, 1]), "52:54:00:ab:00:01");
    }

    #[test]
    fn memory_out_of_range_is_refused_with_a_remedy() {
        for size in [0, 1 << 20, MEMORY_SIZE_MIN + 1, Ram::SIZE_MAX + PAGE_SIZE] {
            let message = check_memory(size).unwrap_err().to_string();
            assert!(message.contains("--memory") && message.contains("512M"), "{message}");
        }
        let message = check_memory(Ram::SIZE_MAX).unwrap_err().to_string();
        assert!(message.contains("available"), "{message}");
        check_memory(MEMORY_SIZE_MIN).unwrap();
    }

    #[test]
    fn flags_that_exclude_each_other_are_refused() {
        let file = |path: &str| ConsoleSpec::File(path.into());
        let mut spec = VmSpec::new("k".into());
        check_flags(&spec).unwrap();
        spec.serial2 = ConsoleSpec::Stdio;
        assert!(check_flags(&spec).unwrap_err().to_string().contains("--serial2"));
        (spec.serial2, spec.hvc) = (file("x"), Some(file("x")));
        assert!(check_flags(&spec).unwrap_err().to_string().contains("--hvc"));
        (spec.serial2, spec.hvc) = (ConsoleSpec::Pty, Some(ConsoleSpec::Pty));
        check_flags(&spec).unwrap();
        let disk = disk::DiskSpec { path: "d".into(), format: None, read_only: false };
        spec.disks = vec![disk.clone(), disk];
        assert!(check_flags(&spec).unwrap_err().to_string().contains("path=d"));
    }
}
