//! libFuzzer's program for [`fuzz::chipset`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::chipset::run(data));
