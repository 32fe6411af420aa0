//! libFuzzer's program for [`fuzz::saved`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::saved::run(data));
