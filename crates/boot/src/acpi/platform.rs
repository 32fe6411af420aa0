//! What ACPI says of the machine, as plain data that the machine fills in from its own constants.

use crate::error::BootError;

/// I/O ports of the fixed ACPI hardware (ACPI 6.5, 4.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerPorts {
    /// PM1a event block, 4 bytes.
    pub event: u16,
    /// PM1a control block, 2 bytes.
    pub control: u16,
    /// Power-management timer, 4 bytes, all 32 bits counting.
    pub timer: u16,
    /// General-purpose event block 0.
    pub gpe0: u16,
    /// Its bytes, status and enables together.
    pub gpe0_size: u8,
    /// SLP_TYP value of power-off, 0..8.
    pub sleep_type_s5: u8,
}

/// The register that resets the machine (ACPI 6.5, 4.8.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRegister {
    /// I/O port, 1 byte.
    pub port: u16,
    /// Value to write.
    pub value: u8,
}

/// A 16550 serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its 8 ports.
    pub port: u16,
    /// ISA interrupt, 0..16.
    pub irq: u8,
}

/// The CMOS clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmosClock {
    /// Index port; data is the next.
    pub port: u16,
    /// ISA interrupt, 0..16.
    pub irq: u8,
    /// Register that holds the century, or 0 for none.
    pub century: u8,
}

/// I/O ports that PCI devices may be given: `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoWindow {
    /// First port, not 0.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Physical addresses that PCI devices may be given: `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryWindow {
    /// First address, not 0.
    pub first: u32,
    /// Last address.
    pub last: u32,
}

/// The PCI host bridge: configuration mechanism #1 and ECAM, bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Window for port BARs.
    pub io: IoWindow,
    /// Window for memory BARs.
    pub memory: MemoryWindow,
    /// Physical address of the configuration space of buses 0 to 255 (ECAM), 256 MiB.
    pub ecam: u32,
    /// First of four level-triggered interrupts: pin p (INTA is 0) of slot s raises
    /// `gsi_first + (s + p) % 4`.
    pub gsi_first: u8,
}

/// All that ACPI describes. There is no HPET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformTables {
    /// vCPUs, with local APIC ids from 0; 1 to 254.
    pub vcpus: u8,
    /// Physical address of the local APICs.
    pub lapic_address: u32,
    /// Physical address of the I/O APIC (id 0, interrupts from 0).
    pub ioapic_address: u32,
    /// I/O APIC input that the timer (ISA interrupt 0) is wired to; PCs have it at 2.
    pub pit_gsi: u8,
    /// ACPI's own interrupt, level-triggered, active high.
    pub sci_gsi: u8,
    /// Fixed hardware.
    pub power: PowerPorts,
    /// Reset register.
    pub reset: ResetRegister,
    /// Whether a keyboard controller is to be looked for.
    pub keyboard_controller: bool,
    /// Whether a VGA is to be looked for.
    pub vga: bool,
    /// CMOS clock.
    pub clock: Option<CmosClock>,
    /// Serial ports, four at most.
    pub serial: Vec<SerialPort>,
    /// PCI host bridge.
    pub pci: PciHost,
    /// Port of a pvpanic device.
    pub pvpanic: Option<u16>,
    /// VM generation id at start.
    pub generation: [u8; 16],
}

const SERIAL_PORTS_MAX: usize = 4;
const VCPUS_MAX: u8 = 254;
const ISA_IRQS: u8 = 16;
const SLEEP_TYPES: u8 = 8;

impl PlatformTables {
    /// The standard machine: two serial ports, a CMOS clock, PCI, neither keyboard controller nor
    /// VGA, and the timer at I/O APIC input 2.
    pub fn standard(vcpus: u8) -> PlatformTables {
        PlatformTables {
            vcpus,
            lapic_address: 0xfee0_0000,
            ioapic_address: 0xfec0_0000,
            pit_gsi: 2,
            sci_gsi: 9,
            power: PowerPorts {
                event: 0x600,
                control: 0x604,
                timer: 0x608,
                gpe0: 0x620,
                gpe0_size: 8,
                sleep_type_s5: 5,
            },
            reset: ResetRegister { port: 0xcf9, value: 6 },
            keyboard_controller: false,
            vga: false,
            clock: Some(CmosClock { port: 0x70, irq: 8, century: 0x32 }),
            serial: vec![SerialPort { port: 0x3f8, irq: 4 }, SerialPort { port: 0x2f8, irq: 3 }],
            pci: PciHost {
                io: IoWindow { first: 0x1000, last: 0xffff },
                memory: MemoryWindow { first: 0xc000_0000, last: 0xdfff_ffff },
                ecam: crate::places::ECAM as u32,
                gsi_first: 16,
            },
            pvpanic: None,
            generation: [0; 16],
        }
    }

    /// Refuses what no table can say.
    pub(super) fn check(&self) -> Result<(), BootError> {
        let (io, memory) = (self.pci.io, self.pci.memory);
        let irqs = self.serial.iter().map(|s| s.irq).chain(self.clock.map(|c| c.irq));
        let wrongs = [
            (!(1..=VCPUS_MAX).contains(&self.vcpus), "it has no vCPU or more than 254"),
            (self.serial.len() > SERIAL_PORTS_MAX, "it has more than 4 serial ports"),
            (irqs.max() >= Some(ISA_IRQS), "an ISA interrupt is above 15"),
            (self.sci_gsi >= ISA_IRQS, "the ACPI interrupt is above 15"),
            (self.power.sleep_type_s5 >= SLEEP_TYPES, "the sleep type is above 7"),
            (self.pci.gsi_first > u8::MAX - 3, "the PCI interrupts are above 255"),
            (io.first == 0 || io.first > io.last, "the PCI port window is empty or starts at 0"),
            (
                memory.first == 0 || memory.first > memory.last,
                "the PCI memory window is empty or starts at 0",
            ),
        ];
        match wrongs.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(BootError::Tables { what }),
            None => Ok(()),
        }
    }
}
