//! Packets that come in one after the other: `cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer sequence`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvs_fuzz::sequence(data));
