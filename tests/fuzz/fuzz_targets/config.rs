//! A configuration that is read: `cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvs_fuzz::config(data));
