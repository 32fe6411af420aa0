//! Architectural behaviour, checked by bare-metal kernels in ring 0 and 3, from `tests/arch`.
//!
//! Each kernel prints `PASS name`, `FAIL name: detail` and `DONE count` on COM1 and leaves through
//! the debug-exit port. The same files run in QEMU, which keeps the expectations honest:
//! `cargo test -p whole --test arch -- --ignored` needs `qemu-system-x86_64`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use whole::{Bits, Ended, Guest, build_kernel};

/// Most branches a kernel may take.
const BRANCHES_MAX: u64 = 400_000_000;

/// What QEMU's translator is known to do otherwise than the manual says: it has no alignment
/// checks, EXT bits, segment limits in compatibility mode and a few reserved-bit checks.
const TRANSLATOR_DIFFERS: &str = "\
    1g_reserved_bits ac_push ac_user_store ac_user_word apic_relocated code_limit \
    code_limit_inside_instruction code_limit_jump compat_es_limit compat_limit compat_null_ds \
    compat_read_only compat_ss_ebp compat_stack_limit compat_write_code cpuid_address_widths \
    cr8_reserved cross_store_both_absent \
    cross_store_first_absent cross_store_second_absent expand_down_at_limit \
    expand_down_small_top far_call_l_and_d fxrstor_mxcsr_reserved gp_ext_selector gp_ldt_null \
    gp_mxcsr_reserved gp_rdmsr_unknown gp_ss_null_with_rpl gp_wrmsr_non_canonical \
    lar_keeps_register lar_lsl_verr_verw large_page_reserved_low_bits lsl_value ltr_null \
    mf_at_mmx mov_ss_data np_ext_of_exception nx_reserved_without_nxe pae_pointer_reserved_gp \
    pae_pointers_are_registers pae_reserved_high_bits pf_rmw_absent pml4_page_size_reserved \
    pse_reserved rdpmc_runs_or_gp real_wrap_gp_ip rep_data_breakpoints reserved_address_bit_load \
    reserved_address_bit_user_store smap_implicit_descriptor ss_ist_non_canonical \
    ss_non_canonical_pop ss_non_canonical_push ss_non_canonical_rbp ss_non_canonical_ret \
    ss_rsp0_non_canonical step_and_data syscall_fmask tf_rep ts_ist_beyond_limit two_at_once \
    ud_into_64 ud_mov_to_cs ud_xm_without_osxmmexcpt v86_limit wrfsbase_non_canonical \
    x2apic_eoi_nonzero x2apic_icr_high_gone x2apic_tpr_reserved x87_overflow x87_underflow \
    xm_divide xm_rip_is_of_divsd xrstor_mxcsr xrstor_mxcsr_with_avx_only xsave_partial_mxcsr \
    xsave_ts xsaveopt_avx_initial xsaveopt_initial_not_written";

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
    let last = lines().next_back().unwrap_or("nothing");
    let wanted = format!("DONE {count}");
    assert!(
        failed.is_empty() && last == wanted && passed == count,
        "{name} ended by {ended:?}, {passed} passed, last line {last:?}, not {wanted:?}:\n{}",
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

#[test]
fn protected_and_real_mode_match_the_manual() {
    check("legacy", Bits::B32, 68);
}

#[test]
fn triple_fault_shuts_down() {
    let (ended, console) = run("shutdown", Bits::B64);
    assert_eq!((ended, console.trim_end()), (Ended::Shutdown, "SHUTDOWN"));
}

/// Runs a kernel in QEMU and checks that only known differences fail.
fn check_in_qemu(name: &str, bits: Bits) {
    let kernel = build_kernel(name, bits, &folder().join("qemu")).unwrap();
    let mut qemu = Command::new("timeout");
    qemu.args(["60", "qemu-system-x86_64"]);
    qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "64", "-display", "none"]);
    qemu.args(["-no-reboot", "-serial", "stdio"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]);
    let output = qemu.arg(kernel).output().expect("qemu-system-x86_64 is needed");
    let console = String::from_utf8_lossy(&output.stdout);
    let known: Vec<&str> = TRANSLATOR_DIFFERS.split_whitespace().collect();
    let unknown: Vec<&str> = console
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("FAIL "))
        .filter(|line| !known.contains(&line.split(':').next().unwrap_or(line)))
        .collect();
    assert!(unknown.is_empty(), "{name} in QEMU:\n{}", unknown.join("\n"));
    let last = console.lines().next_back().unwrap_or("nothing");
    assert!(last.starts_with("DONE "), "{name} in QEMU ended with {last:?}");
}

/// The oracle: the same kernels in QEMU. Run it when a kernel changes.
#[test]
#[ignore = "needs qemu-system-x86_64"]
fn qemu_agrees_but_for_known_differences() {
    for name in ["exceptions", "paging", "debug", "segments", "memory", "state", "apic"] {
        check_in_qemu(name, Bits::B64);
    }
    check_in_qemu("legacy", Bits::B32);
}
