//! Picks the loader for a kernel file and puts kernel, initrd, command line and tables into RAM.

use memory::Ram;

use crate::acpi::{self, PlatformTables};
use crate::bzimage::{self, BzImage};
use crate::elf::{self, Elf};
use crate::entry::Entry;
use crate::error::BootError;
use crate::identify::not_a_kernel;
use crate::linux::{self, LinuxBoot};
use crate::{multiboot, payload, places, pvh};

/// Most bytes a kernel may decompress to, however much RAM there is. Debian's take 70 MiB.
const PAYLOAD_SIZE_MAX: u64 = 1 << 30;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootSpec<'a> {
    /// The kernel file: bzImage, ELF or multiboot image.
    pub kernel: &'a [u8],
    /// The initial RAM disk (a multiboot kernel's only module).
    pub initrd: Option<&'a [u8]>,
    /// Kernel command line, without a kernel name in front.
    pub cmdline: &'a str,
    /// What ACPI must describe.
    pub tables: &'a PlatformTables,
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// A bzImage whose vmlinux was decompressed here and is entered by the 64-bit boot protocol.
    BzImage,
    /// A bzImage that decompresses itself, for want of the decompressor here.
    BzImageSelfExtracting,
    /// A bare 64-bit Linux vmlinux without a PVH note.
    Vmlinux,
    /// An ELF with a PVH note.
    PvhElf,
    /// An ELF or flat image with a multiboot header.
    Multiboot,
}

/// A machine ready to run, as far as it is not in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// How the kernel is entered.
    pub kind: KernelKind,
    /// State of the boot vCPU.
    pub entry: Entry,
}

/// Puts everything a kernel needs into RAM, which may hold anything before.
///
/// # Errors
/// [`BootError`] says what is wrong with which file, or that RAM is too small. RAM may then be
/// partly written.
pub fn load(ram: &mut Ram, spec: &BootSpec<'_>) -> Result<BootState, BootError> {
    let rsdp = acpi::write(ram, spec.tables)?;
    places::write_bios_data(ram)?;
    let mut loader = Loader { ram, spec, rsdp };
    if bzimage::is_bzimage(spec.kernel) {
        loader.bzimage()
    } else if spec.kernel.starts_with(elf::MAGIC) {
        loader.elf()
    } else {
        loader.flat_multiboot()
    }
}

struct Loader<'a, 's> {
    ram: &'a mut Ram,
    spec: &'a BootSpec<'s>,
    rsdp: u64,
}

impl Loader<'_, '_> {
    fn bzimage(&mut self) -> Result<BootState, BootError> {
        let image = BzImage::parse(self.spec.kernel)?;
        let size_max = PAYLOAD_SIZE_MAX.min(self.ram.size());
        match payload::decompress(image.payload, size_max)? {
            Some(vmlinux) => self.unpacked(&image, &vmlinux),
            None => self.self_extracting(&image),
        }
    }

    fn unpacked(&mut self, image: &BzImage<'_>, vmlinux: &[u8]) -> Result<BootState, BootError> {
        if !vmlinux.starts_with(elf::MAGIC) {
            return Err(BootError::Corrupt { what: "its payload is not an ELF" });
        }
        let elf = Elf::parse(vmlinux)?;
        if !elf.is_64 {
            return Err(BootError::WrongArchitecture { found: "32-bit x86 (a bzImage)".into() });
        }
        let end = self.place_elf(&elf, elf.entry)?;
        self.linux(KernelKind::BzImage, Some(image), elf.entry, (image.load_gpa, end))
    }

    fn self_extracting(&mut self, image: &BzImage<'_>) -> Result<BootState, BootError> {
        let gpa = image.load_gpa;
        let whole = elf::Segment { gpa, bytes: image.protected, size: image.init_size };
        let end = places::place_segments(self.ram, &[whole])?;
        let entry = gpa + linux::DECOMPRESSOR_ENTRY;
        self.linux(KernelKind::BzImageSelfExtracting, Some(image), entry, (gpa, end))
    }

    fn linux(
        &mut self,
        kind: KernelKind,
        image: Option<&BzImage<'_>>,
        entry: u64,
        (load_gpa, end): (u64, u64),
    ) -> Result<BootState, BootError> {
        let initrd_last = image.map_or(u64::from(u32::MAX), |image| image.initrd_last);
        let initrd = self.initrd(end, initrd_last)?;
        let cmdline_max = image.map_or(linux::CMDLINE_MAX, |image| image.cmdline_max);
        self.cmdline("", cmdline_max)?;
        let header = image.map(|image| image.header);
        let boot = LinuxBoot { header, load_gpa, entry, initrd, rsdp: self.rsdp };
        Ok(BootState { kind, entry: boot.prepare(self.ram)? })
    }

    fn elf(&mut self) -> Result<BootState, BootError> {
        let file = self.spec.kernel;
        let elf = Elf::parse(file)?;
        if elf.is_program {
            return Err(BootError::NotKernel { found: "a user-space program" });
        }
        if let Some(entry) = elf.pvh_entry {
            let end = self.place_elf(&elf, entry)?;
            let initrd = self.initrd(end, u64::from(u32::MAX))?;
            self.cmdline("", linux::CMDLINE_MAX)?;
            let entry = pvh::prepare(self.ram, entry, initrd, self.rsdp)?;
            return Ok(BootState { kind: KernelKind::PvhElf, entry });
        }
        if let Some(header) = multiboot::find(file) {
            header.check()?;
            let end = self.place_elf(&elf, elf.entry)?;
            return self.multiboot(elf.entry, end);
        }
        if elf.is_64 && is_linux(file) {
            let end = self.place_elf(&elf, elf.entry)?;
            return self.linux(KernelKind::Vmlinux, None, elf.entry, (places::HIGH_MEMORY, end));
        }
        if !elf.is_64 {
            let found = "32-bit x86 (an ELF without a PVH note or a multiboot header)".into();
            return Err(BootError::WrongArchitecture { found });
        }
        Err(not_a_kernel(file))
    }

    fn flat_multiboot(&mut self) -> Result<BootState, BootError> {
        let file = self.spec.kernel;
        let header = multiboot::find(file).filter(|header| header.has_addresses());
        let header = header.ok_or_else(|| not_a_kernel(file))?.check()?;
        let (segment, entry) = header.segment(file)?;
        let end = places::place_segments(self.ram, &[segment])?;
        self.multiboot(entry, end)
    }

    fn multiboot(&mut self, entry: u64, end: u64) -> Result<BootState, BootError> {
        let initrd = self.initrd(end, u64::from(u32::MAX))?;
        self.cmdline(multiboot::CMDLINE_PREFIX, multiboot::CMDLINE_MAX)?;
        let entry = multiboot::prepare(self.ram, entry, initrd)?;
        Ok(BootState { kind: KernelKind::Multiboot, entry })
    }

    /// Places an ELF's segments, after checking that `entry` is among their bytes; their end.
    fn place_elf(&mut self, elf: &Elf<'_>, entry: u64) -> Result<u64, BootError> {
        if elf.segments.is_empty() {
            return Err(BootError::Corrupt { what: "it is an ELF with nothing to load" });
        }
        if !elf.holds(entry) {
            return Err(BootError::EntryOutside { entry });
        }
        places::place_segments(self.ram, &elf.segments)
    }

    fn initrd(&mut self, floor: u64, last: u64) -> Result<Option<(u64, u64)>, BootError> {
        let Some(initrd) = self.spec.initrd else { return Ok(None) };
        let gpa = places::place_initrd(self.ram, initrd, floor, last)?;
        Ok(Some((gpa, initrd.len() as u64)))
    }

    fn cmdline(&mut self, prefix: &str, max: u64) -> Result<(), BootError> {
        places::place_cmdline(self.ram, prefix, self.spec.cmdline, max)
    }
}

/// Whether a vmlinux holds the banner every Linux kernel has.
fn is_linux(file: &[u8]) -> bool {
    const BANNER: &[u8] = b"Linux version ";
    file.windows(BANNER.len()).any(|window| window == BANNER)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
