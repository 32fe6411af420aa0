//! ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT, at their place below 1 MiB.
//!
//! ```text
//!   RSDP --> XSDT --> FADT --> FACS, DSDT
//!                |--> MADT
//!                '--> MCFG
//! ```

mod dsdt;
mod fadt;
mod madt;
mod platform;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use memory::Ram;
use types::Gpa;

pub use platform::{
    CmosClock, IoWindow, MemoryWindow, PciHost, PlatformTables, PowerPorts, ResetRegister,
    SerialPort,
};

use crate::error::BootError;
use crate::places;

const OEM_ID: [u8; 6] = *b"DOPPEL";
const OEM_TABLE_ID: [u8; 8] = *b"DOPPEL  ";
const OEM_REVISION: u32 = 1;
/// FACS must be so aligned (ACPI 6.5, 5.2.10); the others take it too.
const ALIGN: u64 = 64;

/// Writes all tables; the address of the RSDP.
pub(crate) fn write(ram: &mut Ram, platform: &PlatformTables) -> Result<u64, BootError> {
    platform.check()?;
    ram.write(Gpa(places::GENERATION), &platform.generation)?;
    let rsdp_at = places::ACPI;
    let mut area = Area { ram, next: rsdp_at + ALIGN };
    let facs = area.place(&FACS::new())?;
    let dsdt = area.place(&dsdt::table(platform))?;
    let fadt = area.place(&fadt::table(platform, facs, dsdt))?;
    let madt = area.place(&madt::table(platform))?;
    let mut configuration = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    configuration.add_ecam(u64::from(platform.pci.ecam), 0, 0, 255);
    let mcfg = area.place(&configuration)?;
    let mut root = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    root.add_entry(mcfg);
    let xsdt = area.place(&root)?;
    ram.write(Gpa(rsdp_at), &encoded(&Rsdp::new(OEM_ID, xsdt)))?;
    Ok(rsdp_at)
}

/// Free room from `next` to 1 MiB.
struct Area<'r> {
    ram: &'r mut Ram,
    next: u64,
}

impl Area<'_> {
    fn place(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let bytes = encoded(table);
        let at = self.next;
        let end = at + bytes.len() as u64;
        if end > places::HIGH_MEMORY {
            return Err(BootError::Tables { what: "its tables do not fit below 1 MiB" });
        }
        self.ram.write(Gpa(at), &bytes)?;
        self.next = end.next_multiple_of(ALIGN);
        Ok(at)
    }
}

fn encoded(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ram: &Ram, gpa: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    fn read_table(ram: &Ram, gpa: u64) -> Vec<u8> {
        let size = u32::from_le_bytes(read(ram, gpa + 4, 4).try_into().unwrap());
        read(ram, gpa, size as usize)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    fn pointer(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    #[test]
    fn tables_hang_together_and_their_checksums_are_right() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let rsdp_at = write(&mut ram, &PlatformTables::standard(4)).unwrap();
        let rsdp = read(&ram, rsdp_at, 36);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
        let xsdt = read_table(&ram, pointer(&rsdp[24..32]));
        assert_eq!((&xsdt[..4], sum(&xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 24));
        let fadt = read_table(&ram, pointer(&xsdt[36..44]));
        assert_eq!((&fadt[..4], sum(&fadt)), (&b"FACP"[..], 0));
        let madt = read_table(&ram, pointer(&xsdt[44..52]));
        assert_eq!((&madt[..4], sum(&madt)), (&b"APIC"[..], 0));
        let mcfg = read_table(&ram, pointer(&xsdt[52..60]));
        assert_eq!((&mcfg[..4], sum(&mcfg)), (&b"MCFG"[..], 0));
        assert_eq!(pointer(&mcfg[44..52]), places::ECAM);
        let dsdt = read_table(&ram, pointer(&fadt[140..148]));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
        let facs_at = u64::from(u32::from_le_bytes(fadt[36..40].try_into().unwrap()));
        assert_eq!(facs_at % 64, 0);
        assert_eq!(read(&ram, facs_at, 4), b"FACS");
    }

    #[test]
    fn tables_of_the_largest_machine_fit() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let mut platform = PlatformTables::standard(254);
        platform.pvpanic = Some(0x505);
        assert!(write(&mut ram, &platform).is_ok());
    }

    #[test]
    fn tables_of_impossible_machines_are_refused() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let changes: [fn(&mut PlatformTables); 6] = [
            |p| p.vcpus = 0,
            |p| p.vcpus = 255,
            |p| p.serial[0].irq = 16,
            |p| p.serial = vec![p.serial[0]; 5],
            |p| p.pci.io.first = 0,
            |p| p.pci.memory.last = 0,
        ];
        for change in changes {
            let mut platform = PlatformTables::standard(1);
            change(&mut platform);
            assert!(matches!(write(&mut ram, &platform), Err(BootError::Tables { .. })));
        }
    }
}
