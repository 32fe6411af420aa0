//! DSDT: what cannot be probed — the PCI host with its interrupt routing, ISA devices, power-off
//! (ACPI 6.5, chapters 6, 7.4.2 and 20).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, AmlStr, Device, EISAName, IO, Method, Name, Notify,
    PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::platform::{CmosClock, PciHost, SerialPort};
use crate::places;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, PlatformTables, encoded};

/// Integers are 64 bits wide from this revision on (19.6.29).
const REVISION: u8 = 2;
const HEADER_SIZE: u32 = 36;
const PCI_SLOTS: u32 = 32;
const PCI_PINS: u8 = 4;
const GENERATION_DEVICE: &str = "VGEN";

/// AML that is encoded already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Interrupt of an ISA device: edge-triggered, active high, exclusive (6.4.2.1).
struct IsaIrq(u8);

impl Aml for IsaIrq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const IRQ_DESCRIPTOR: u8 = 0x22;
        sink.byte(IRQ_DESCRIPTOR);
        sink.word(1 << self.0);
    }
}

/// The DSDT.
pub(super) fn table(platform: &PlatformTables) -> Sdt {
    let mut devices = vec![pci_host(&platform.pci)];
    let serial = platform.serial.iter().enumerate();
    devices.extend(serial.map(|(index, serial)| serial_port(index, serial)));
    devices.extend(platform.clock.map(|clock| cmos_clock(&clock)));
    devices.extend(platform.pvpanic.map(pvpanic));
    devices.push(generation_counter());
    let devices: Vec<&dyn Aml> = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&encoded(&Scope::new("\\_SB_".into(), devices)));
    dsdt.append_slice(&encoded(&power_off(platform.power.sleep_type_s5)));
    dsdt.append_slice(&encoded(&generation_event()));
    dsdt
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

fn device(path: &str, children: &[&dyn Aml]) -> Encoded {
    Encoded(encoded(&Device::new(path.into(), children.to_vec())))
}

/// The values of SLP_TYP for S5 (7.4.2.6).
fn power_off(sleep_type: u8) -> Name {
    let mut values = PackageBuilder::new();
    for value in [sleep_type, sleep_type, 0, 0] {
        values.add_element(&value);
    }
    name("_S5_", &values)
}

fn pci_host(pci: &PciHost) -> Encoded {
    let resources = ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, 0xff),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::<u16>::new_io(pci.io.first, pci.io.last, None),
        &AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            pci.memory.first,
            pci.memory.last,
            None,
        ),
    ])
    .encoded();
    device(
        "PCI0",
        &[
            &name("_HID", &EISAName::new("PNP0A03")),
            &name("_UID", &0u8),
            &name("_BBN", &0u8),
            &name("_SEG", &0u8),
            &name("_CRS", &resources),
            &name("_PRT", &interrupt_routing(pci.gsi_first)),
        ],
    )
}

/// `_PRT` (6.2.13): each pin of each slot to its global interrupt.
fn interrupt_routing(gsi_first: u8) -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut routes = PackageBuilder::new();
    for slot in 0..PCI_SLOTS {
        for pin in 0..PCI_PINS {
            let gsi = gsi_first + ((slot + u32::from(pin)) % 4) as u8;
            let mut route = PackageBuilder::new();
            route.add_element(&(slot << 16 | ANY_FUNCTION));
            route.add_element(&pin);
            route.add_element(&0u8);
            route.add_element(&gsi);
            routes.add_element(&route);
        }
    }
    routes
}

fn serial_port(index: usize, serial: &SerialPort) -> Encoded {
    let resources =
        ResourceTemplate::new(vec![&IO::new(serial.port, serial.port, 1, 8), &IsaIrq(serial.irq)])
            .encoded();
    device(
        ["COM1", "COM2", "COM3", "COM4"][index],
        &[
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &(index as u8 + 1)),
            &name("_CRS", &resources),
        ],
    )
}

fn cmos_clock(clock: &CmosClock) -> Encoded {
    let resources =
        ResourceTemplate::new(vec![&IO::new(clock.port, clock.port, 1, 2), &IsaIrq(clock.irq)])
            .encoded();
    device("RTC0", &[&name("_HID", &EISAName::new("PNP0B00")), &name("_CRS", &resources)])
}

/// QEMU's panic device, by which Linux finds it (QEMU, docs/specs/pvpanic.rst).
fn pvpanic(port: u16) -> Encoded {
    const PRESENT_ENABLED: u8 = 0xf;
    let id: AmlStr = "QEMU0001";
    let resources = ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)]).encoded();
    device(
        "PEVT",
        &[&name("_HID", &id), &name("_STA", &PRESENT_ENABLED), &name("_CRS", &resources)],
    )
}

/// The VM generation id (Microsoft, "Virtual Machine Generation ID", 2012): `ADDR` says where it
/// is, low half first.
fn generation_counter() -> Encoded {
    let (id, compatible): (AmlStr, AmlStr) = ("DOPP0001", "VM_Gen_Counter");
    let mut address = PackageBuilder::new();
    address.add_element(&(places::GENERATION as u32));
    address.add_element(&0u8);
    device(
        GENERATION_DEVICE,
        &[
            &name("_HID", &id),
            &name("_CID", &compatible),
            &name("_DDN", &compatible),
            &name("ADDR", &address),
        ],
    )
}

/// The event by which its driver hears of a new one.
fn generation_event() -> Encoded {
    const CHANGED: u8 = 0x80;
    let device = Path::new(&format!("\\_SB_.{GENERATION_DEVICE}"));
    let notify = Notify::new(&device, &CHANGED);
    let event = format!("_E{:02X}", places::GENERATION_EVENT);
    let method = Method::new(event.as_str().into(), 0, false, vec![&notify]);
    Encoded(encoded(&Scope::new("\\_GPE".into(), vec![&method])))
}

trait EncodedNow {
    fn encoded(&self) -> Encoded;
}

impl<A: Aml> EncodedNow for A {
    fn encoded(&self) -> Encoded {
        Encoded(encoded(self))
    }
}
