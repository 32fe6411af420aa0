//! libFuzzer's program for [`fuzz::kernel`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::kernel::run(data));
