//! libFuzzer's program for [`fuzz::disk`].
#![no_main]

// A panic inside the qcow2 library becomes an error of `disk::open`, which libFuzzer's own panic
// hook would not let happen. Panics that nobody catches are still reported by the macro.
libfuzzer_sys::fuzz_target!(
    init: { std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))) },
    |data: &[u8]| fuzz::disk::run(data)
);
