//! libFuzzer's program for [`fuzz::virtio`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtio::run(data));
