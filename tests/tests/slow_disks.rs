//! Twenty boots with a journalled disk, raw and qcow2, each ended by power-off.

#![forbid(unsafe_code)]

use whole::disk_boots::boots_leave_a_clean_disk;

const BOOTS: u32 = 20;

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn twenty_boots_leave_a_raw_disk_clean() {
    boots_leave_a_clean_disk("raw", BOOTS);
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn twenty_boots_leave_a_qcow2_disk_clean() {
    boots_leave_a_clean_disk("qcow2", BOOTS);
}
