//! Large datagrams, and the orders in which their pieces come.

/// Data of a datagram that fills six packets of 1500 bytes.
pub const LARGE: usize = 8192;

/// So much data, of which every part is something else.
pub fn data(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 256 + seed * 17) as u8).collect()
}

/// As Fisher and Yates do it; the same for the same seed.
pub fn shuffled<T>(mut all: Vec<T>, seed: usize) -> Vec<T> {
    let mut state = seed as u64 * 2 + 1;
    for last in (1..all.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(last, (state >> 33) as usize % (last + 1));
    }
    all
}
