//! Debian boots to its login prompt, does some work, and leaves its disk in order.

#![forbid(unsafe_code)]

use whole::debian_boot::boots_works_and_powers_off;

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn debian_boots_works_and_powers_off_when_asked_to() {
    // Most of it is code memory and its tables.
    boots_works_and_powers_off("translate", 256);
}
