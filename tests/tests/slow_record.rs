//! As `live_record`, on both engines.

#![forbid(unsafe_code)]

use whole::live;

const ENGINES: &[&str] = &["translate", "interp"];

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn running_guest_at_work_on_its_disk_replays_and_goes_live() {
    live::at_work(ENGINES);
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn recording_with_checkpoints_verifies_from_each_with_the_disk_of_that_time() {
    live::with_checkpoints(ENGINES);
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn clock_of_a_guest_is_the_host_s_again_after_a_pause() {
    live::clock_after_pauses(ENGINES);
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn clocks_read_all_the_time_are_the_host_s_and_never_go_back() {
    live::clocks(ENGINES);
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn flight_recorder_s_recording_has_the_disk_of_its_beginning() {
    live::flight(ENGINES);
}
