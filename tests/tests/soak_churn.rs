//! Code that is generated, run and thrown away, a day's worth: the monitor's memory stays.

#![forbid(unsafe_code)]

use std::time::Duration;

use whole::doppel::Running;
use whole::soak::{Job, length};

const HOURS: Duration = Duration::from_secs(6 * 3600);
/// What the monitor may grow by between the first half of the work and its end.
const GROWTH_MAX: u64 = 4 << 20;
/// How often the program says how far it is.
const TIMES: usize = 64;

/// A day of a busy just-in-time compiler: 64 KiB of new code a second, none of it kept. (A server's
/// compilers make tens of MiB in their first minutes and then little.)
const DAY_MIB: u64 = 24 * 3600 / 16;

/// The monitor's memory at each report of the guest's program.
fn watch(vm: &Running) -> Vec<u64> {
    let mut at = 0;
    let mut sizes = Vec::new();
    loop {
        at = vm.wait_from(at, "CHURN ", HOURS);
        at = vm.wait_from(at, "\n", HOURS);
        let console = vm.console();
        let line = console[..at].trim_end().lines().last().unwrap_or_default();
        if !line.ends_with(" KiB") {
            return sizes;
        }
        sizes.push(vm.monitor_memory());
    }
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn churned_code_leaves_no_memory_behind() {
    let mib = length("code-mib", 64, DAY_MIB);
    let check = |vm: &Running| {
        let sizes = watch(vm);
        assert!(sizes.len() > TIMES / 2, "only {} reports:\n{}", sizes.len(), vm.console());
        let most = |sizes: &[u64]| sizes.iter().copied().max().unwrap_or_default();
        // Code memory is filled, and what the host reclaimed is back, only after a third of a short
        // run.
        let (early, late) = sizes.split_at(sizes.len() / 2);
        let (early, late) = (most(early), most(late));
        println!("monitor: {} KiB in the first half, {} KiB after", early >> 10, late >> 10);
        assert!(late <= early + GROWTH_MAX, "the monitor grows: {sizes:?}");
    };
    let output = Job {
        name: "churn",
        files: &[("churn.c", include_bytes!("../soak/churn.c"))],
        settings: format!("MIB={mib}"),
        script: include_str!("../soak/churn.sh"),
        time_max: HOURS,
    }
    .twice(check);
    assert!(output.contains("CHURN ok "), "{output}");
    println!("{mib} MiB of code generated and run");
}
