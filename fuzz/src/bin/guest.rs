//! libFuzzer's program for [`fuzz::guest`].
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    if fuzz::guest::makes_headway(data) { Corpus::Keep } else { Corpus::Reject }
});
