//! MADT: the interrupt controllers (ACPI 6.5, 5.2.12).

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, PlatformTables, encoded};

const REVISION: u8 = 4;
const HEADER_SIZE: u32 = 36;
/// There are 8259s too, to be masked (5.2.12, PCAT_COMPAT).
const PCAT_COMPAT: u32 = 1;
const INTERRUPT_OVERRIDE: u8 = 2;
const LAPIC_NMI: u8 = 4;
/// MPS INTI flags: as the bus has it, or level-triggered and active high (table 5.26).
const BUS_DEFAULT: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0xd;

/// The MADT: all local APICs enabled, one I/O APIC, NMI at LINT1 of each processor.
pub(super) fn table(platform: &PlatformTables) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&platform.lapic_address.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..platform.vcpus {
        madt.append_slice(&encoded(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    madt.append_slice(&encoded(&IoApic::new(0, platform.ioapic_address, 0)));
    if platform.pit_gsi != 0 {
        madt.append_slice(&interrupt_override(0, platform.pit_gsi, BUS_DEFAULT));
    }
    madt.append_slice(&interrupt_override(platform.sci_gsi, platform.sci_gsi, LEVEL_ACTIVE_HIGH));
    const ALL_PROCESSORS: u8 = 0xff;
    const LINT1: u8 = 1;
    madt.append_slice(&[LAPIC_NMI, 6, ALL_PROCESSORS, 0, 0, LINT1]);
    madt
}

/// ISA interrupt `irq` is global interrupt `gsi` (5.2.12.5).
fn interrupt_override(irq: u8, gsi: u8, flags: u16) -> [u8; 10] {
    const ISA: u8 = 0;
    let [flags_low, flags_high] = flags.to_le_bytes();
    [INTERRUPT_OVERRIDE, 10, ISA, irq, gsi, 0, 0, 0, flags_low, flags_high]
}
