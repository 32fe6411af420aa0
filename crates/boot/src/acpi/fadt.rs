//! FADT: the fixed hardware (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, PlatformTables};

/// Latencies that say there is no C2 and no C3 (5.2.9, P_LVL2_LAT, P_LVL3_LAT).
const NO_C2_US: u16 = 101;
const NO_C3_US: u16 = 1001;

/// Bits of IAPC_BOOT_ARCH (5.2.9.3).
mod boot_arch {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    pub(super) const NO_VGA: u16 = 1 << 2;
    pub(super) const NO_CMOS_CLOCK: u16 = 1 << 5;
}

/// The FADT. ACPI mode is always on (SMI_CMD 0); the power button is a fixed feature, the sleep
/// button is absent, and the clock cannot wake.
pub(super) fn table(platform: &PlatformTables, facs: u64, dsdt: u64) -> FADT {
    let power = platform.power;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .gpe_info(u32::from(power.gpe0), 0, power.gpe0_size, 0, 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // Both forms of the address, which must agree; old readers know only the short one.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(platform.sci_gsi).into();
    fadt.pm1a_evt_blk = u32::from(power.event).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(power.control).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(power.timer).into();
    fadt.pm_tmr_len = 4;
    fadt.p_lvl2_lat = NO_C2_US.into();
    fadt.p_lvl3_lat = NO_C3_US.into();
    fadt.century = platform.clock.map_or(0, |clock| clock.century);
    fadt.iapc_boot_arch = boot_architecture(platform).into();
    let reset_port = u64::from(platform.reset.port);
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, reset_port);
    fadt.reset_value = platform.reset.value;
    fadt.finalize()
}

fn boot_architecture(platform: &PlatformTables) -> u16 {
    let mut bits = boot_arch::LEGACY_DEVICES;
    if platform.keyboard_controller {
        bits |= boot_arch::KEYBOARD_CONTROLLER;
    }
    if !platform.vga {
        bits |= boot_arch::NO_VGA;
    }
    if platform.clock.is_none() {
        bits |= boot_arch::NO_CMOS_CLOCK;
    }
    bits
}
