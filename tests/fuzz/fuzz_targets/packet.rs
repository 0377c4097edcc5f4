//! A frame that comes in: `cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvs_fuzz::packet(data));
