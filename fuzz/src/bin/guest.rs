//! libFuzzer's program for [`fuzz::guest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::guest::run(data));
