//! A thousand random points of a run, on each engine and restored on either: what is restored is
//! what was captured, and goes on as the original does.

#![forbid(unsafe_code)]

use whole::kept::random_points;

/// Points of a run; then another begins, because disks get another layer at each.
const POINTS: u32 = 50;

fn points(engine: &str, other: &str, runs: u64) {
    for seed in 1..=runs {
        random_points(engine, other, seed * 0x0dd5_1de5, POINTS);
    }
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn random_points_from_the_translator() {
    points("translate", "interp", 14);
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn random_points_from_the_interpreter() {
    points("interp", "translate", 6);
}
