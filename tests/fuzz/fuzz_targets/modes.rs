//! Packets that come in one after the other, through every mode.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvs_fuzz::modes(data));
