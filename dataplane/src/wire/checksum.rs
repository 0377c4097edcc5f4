//! Internet checksums, changed incrementally.
//!
//! The checksum of RFC 1071 is the one's complement of the one's-complement sum of all 16-bit words. A
//! router that changes a few words need not, and must not, sum the packet again: a new sum would turn a
//! packet that was damaged before it came here into one that looks right. RFC 1624 (equation 3) gives the
//! update, `HC' = ~(~HC + ~m + m')`, for a word `m` that becomes `m'`.
//!
//! All changes of one rewrite are known in advance, so their `~m + m'` is summed once, as a [`Delta`],
//! when the snapshot is compiled. Applying it is two additions. Sum on the wire and delta are different
//! types, so that neither can be stored where the other belongs.

use super::{read_native, read16};

/// A sum of changes, `Σ(~m + m')`, in one's-complement arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u16);

/// Mends the checksum that stands at a place for what has changed.
pub fn mend(bytes: &mut [u8], at: usize, delta: Delta) {
    let sum = delta.apply(read16(bytes, at));
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

impl Delta {
    /// A 16-bit word becomes another.
    pub const fn word(old: u16, new: u16) -> Self {
        Delta(fold(!old as u32 + new as u32))
    }

    /// A 32-bit field, aligned to 16 bits, becomes another.
    pub const fn double(old: u32, new: u32) -> Self {
        Self::word((old >> 16) as u16, (new >> 16) as u16).and(Self::word(old as u16, new as u16))
    }

    /// A 128-bit field becomes another.
    pub fn wide(old: u128, new: u128) -> Self {
        let quarter = |shift| Self::double((old >> shift) as u32, (new >> shift) as u32);
        quarter(96).and(quarter(64)).and(quarter(32)).and(quarter(0))
    }

    /// Both changes.
    #[inline]
    pub const fn and(self, other: Delta) -> Self {
        Delta(fold(self.0 as u32 + other.0 as u32))
    }

    /// The change back.
    pub const fn reversed(self) -> Self {
        Delta(!self.0)
    }

    /// The checksum of the changed packet.
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        // A sum of two needs to be folded once.
        let sum = !checksum as u32 + self.0 as u32;
        !((sum & 0xFFFF) + (sum >> 16)) as u16
    }
}

/// The one's-complement sum of some bytes, not complemented: 0xFFFF for a header that contains its own
/// right checksum. An odd last byte counts as the high half of a word.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut words = bytes.chunks_exact(2);
    let mut total: u32 = words.by_ref().map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    if let [last] = words.remainder() {
        total += u32::from(*last) << 8;
    }
    fold(total)
}

/// Whether a 20-byte header's sum is right: the one check that is made on every packet.
#[inline]
pub fn is_valid_20(header: &[u8; 20]) -> bool {
    let first = u64::from_ne_bytes(read_native(header, 0));
    let second = u64::from_ne_bytes(read_native(header, 8));
    is_valid_sum(first, second, u32::from_ne_bytes(read_native(header, 16)))
}

/// Whether 20 bytes that are not all zeros sum to 0xFFFF. One's-complement sums do not depend on the byte order, but for
/// the order of the result's bytes; and 0xFFFF reads the same either way.
///
/// A one's-complement sum is a sum modulo 65535, so that it is right if the bytes, as one number, are a multiple of 65535.
/// Of an odd divisor that can be told by one multiplication (Granlund and Montgomery, 1994): by the inverse modulo
/// 2^64, multiples come out as the quotient, and nothing else so small. A third of the instructions of folding.
#[inline(always)]
pub(super) fn is_valid_sum(first: u64, second: u64, rest: u32) -> bool {
    const INVERSE: u64 = 0xFFFE_FFFE_FFFE_FFFF;
    const _: () = assert!(INVERSE.wrapping_mul(0xFFFF) == 1);
    // Carries come back in at the other end: 2^64 is 1 modulo 65535.
    let (sum, carry) = first.overflowing_add(second);
    let (sum, again) = sum.overflowing_add(u64::from(rest) + u64::from(carry));
    (sum + u64::from(again)).wrapping_mul(INVERSE) <= u64::MAX / 0xFFFF
}

/// A sum of 16-bit words as one word, carries added.
#[inline]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285, and the rest of the header sums to 0xCD7A.
        assert_eq!(Delta::word(0x5555, 0x3285).apply(0xDD2F), 0x0000);
    }

    proptest! {
        #[test]
        fn incremental_equals_from_scratch(
            mut data in prop::collection::vec(any::<u8>(), 8..64),
            new in any::<u32>(),
        ) {
            data[0] |= 1; // RFC 1624 holds for sums that are not all zeros; real headers never are
            data.truncate(data.len() & !1);
            let old = u32::from_be_bytes([data[2], data[3], data[4], data[5]]);
            let before = !sum(&data);
            data[2..6].copy_from_slice(&new.to_be_bytes());
            let delta = Delta::double(old, new);
            prop_assert_eq!(delta.apply(before), !sum(&data));
            prop_assert_eq!(delta.reversed().apply(!sum(&data)), before);
        }

        #[test]
        fn the_fast_header_check_equals_the_plain_one(mut header in any::<[u8; 20]>(), mend in any::<bool>()) {
            if mend {
                header[10..12].fill(0);
                let checksum = !sum(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            prop_assert_eq!(is_valid_20(&header), sum(&header) == 0xFFFF);
        }
    }
}
