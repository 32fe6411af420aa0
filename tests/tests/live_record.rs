//! Recording a guest with a disk while it runs: what it shows afterwards, on the default engine
//! (L1, L2, L5, C3, C7).

#![forbid(unsafe_code)]

use whole::live;

/// `slow_record` has them on both.
const ENGINES: &[&str] = &["translate"];

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn running_guest_at_work_on_its_disk_replays_and_goes_live() {
    live::at_work(ENGINES);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn recording_with_checkpoints_verifies_from_each_with_the_disk_of_that_time() {
    live::with_checkpoints(ENGINES);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn clock_of_a_guest_is_the_host_s_again_after_a_pause() {
    live::clock_after_pauses(ENGINES);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn clocks_read_all_the_time_are_the_host_s_and_never_go_back() {
    live::clocks(ENGINES);
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn flight_recorder_s_recording_has_the_disk_of_its_beginning() {
    live::flight(ENGINES);
}
