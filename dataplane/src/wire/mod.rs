//! Packet formats: one file a protocol, offsets private, fields in host order.
//!
//! The contract of all views: `parse` checks every length that the accessors rely on and says by its
//! error which check failed; values that make no sense are values (a port 0, an unknown EtherType), not
//! errors. Writers change exactly the fields that a router changes, and checksums only incrementally.

pub mod checksum;
pub mod ethernet;
pub mod ftp;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod made;
pub mod mss;
pub mod plain;
pub mod proxy;
pub mod sctp;
pub mod transport;
pub mod tunnel;
pub mod version;

/// Starts to load the cache line at an address. Never faults and changes nothing.
#[inline(always)]
pub fn prefetch<T>(target: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint; it has no architectural effect for any address, and this one is
        // that of a live reference. Measured reason: a random load from a large table costs 440-550
        // cycles on the machines that we measured, hidden when prefetched a stage ahead.
        unsafe { _mm_prefetch(std::ptr::from_ref(target).cast::<i8>(), _MM_HINT_T0) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = target;
}

/// Reads a big-endian 16-bit field.
#[inline]
fn read16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads bytes in the order of this machine, for comparing and summing, which need no order. One load; written
/// byte by byte the compiler takes it apart where it needs only some of them.
#[inline(always)]
fn read_native<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("callers read inside of headers whose length the type says")
}

/// Reads a big-endian 32-bit field.
#[inline]
fn read32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
