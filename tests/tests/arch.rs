//! Architectural behaviour, checked by bare-metal kernels in ring 0 and 3 (sources in `tests/arch`).
//!
//! Each kernel prints `PASS name`, `FAIL name: detail` and `DONE count` on COM1 and leaves through
//! the debug-exit port. The same files run in QEMU, which keeps the expectations honest:
//! `cargo test -p whole --test arch -- --ignored` needs `qemu-system-x86_64`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use whole::{Bits, Ended, Guest, build_kernel};

/// Most branches a kernel may take.
const BRANCHES_MAX: u64 = 400_000_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("arch")
}

/// Runs a kernel on Doppel to its end.
fn run(name: &str, bits: Bits) -> (Ended, String) {
    let kernel = build_kernel(name, bits, &folder()).unwrap();
    let mut guest = Guest::new(64 << 20, Vec::new()).unwrap();
    guest.boot(&std::fs::read(kernel).unwrap(), None, "").unwrap();
    let ended = guest.run(BRANCHES_MAX);
    (ended, guest.outside.console())
}

/// Checks that every line is a PASS and that there are `count` of them.
fn check(name: &str, bits: Bits, count: usize) {
    let (ended, console) = run(name, bits);
    let lines = || console.lines().map(str::trim_end);
    let failed: Vec<&str> = lines().filter(|line| line.starts_with("FAIL")).collect();
    let passed = lines().filter(|line| line.starts_with("PASS")).count();
    let last = lines().last().unwrap_or("nothing");
    let wanted = format!("DONE {count}");
    assert!(
        failed.is_empty() && last == wanted && passed == count,
        "{name} ended by {ended:?}, {passed} passed, last line {last:?} (should be {wanted:?}):\n{}",
        failed.join("\n")
    );
    assert!(matches!(ended, Ended::Power(_)), "{name} ended by {ended:?}");
}

#[test]
fn exceptions_match_the_manual() {
    check("exceptions", Bits::B64, 126);
}

#[test]
fn paging_matches_the_manual() {
    check("paging", Bits::B64, 168);
}

#[test]
fn debug_matches_the_manual() {
    check("debug", Bits::B64, 59);
}

#[test]
fn segmentation_matches_the_manual() {
    check("segments", Bits::B64, 223);
}

#[test]
fn memory_and_self_modifying_code_match_the_manual() {
    check("memory", Bits::B64, 78);
}

#[test]
fn processor_state_matches_the_manual() {
    check("state", Bits::B64, 171);
}

#[test]
fn interrupt_controllers_match_the_manual() {
    check("apic", Bits::B64, 98);
}
