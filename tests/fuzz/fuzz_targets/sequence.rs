//! Packets that come in one after the other.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rvs_fuzz::sequence(data));
