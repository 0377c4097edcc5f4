//! The keyed hash of (client address, client port, protocol).
//!
//! The key is random per start, and the mixing is a 64x64->128-bit multiplication folded onto itself.
//! With a linear hash (plain crc32c) an attacker's set of colliding clients collides under every key;
//! here whether two clients collide depends on the key.

use super::word::Client;
use crate::service::Protocol;

/// The secret key of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKey {
    /// Added (xor) before the multiplication.
    pub blind: u64,
    /// The multiplier; made odd.
    pub factor: u64,
}

/// A hash, and the two bucket choices in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(u64);

impl HashKey {
    /// Hashes a client under a protocol.
    #[inline]
    pub const fn hash(&self, client: Client, protocol: Protocol) -> Hash {
        let input = client.bits() ^ (protocol.number() as u64) << 48;
        Hash(fold(fold(input ^ self.blind, self.factor | 1), 0x9E37_79B9_7F4A_7C15))
    }

    /// An IPv6 client: the hash of its address, and its port. The lower half of the address goes first: whoever has a network of
    /// his own chooses that, and whether two of them collide depends on the key.
    #[inline]
    pub const fn wide_client(&self, address: u128, port: u16) -> Client {
        Client::wide(self.mix(address as u64, (address >> 64) as u64), port)
    }

    /// Hashes two words.
    pub(crate) const fn mix(&self, first: u64, second: u64) -> u64 {
        fold(fold(first ^ self.blind, self.factor | 1) ^ second, 0x9E37_79B9_7F4A_7C15)
    }
}

impl Hash {
    /// Another hash of the same client, for something else.
    pub const fn salted(self, salt: u64) -> u64 {
        fold(self.0 ^ salt, 0x9E37_79B9_7F4A_7C15)
    }

    /// The home bucket of a table with so many pairs of buckets.
    #[inline]
    pub const fn home(self, pairs: usize) -> usize {
        reduce(self.0, pairs) << 1 | self.0 as usize & 1
    }

    /// The bucket of the second choice: never the home bucket or its buddy (there are two pairs or more).
    #[inline]
    pub const fn second(self, pairs: usize) -> usize {
        let turned = self.0.rotate_left(32);
        let pair = reduce(self.0, pairs) + 1 + reduce(turned, pairs - 1);
        (if pair >= pairs { pair - pairs } else { pair }) << 1 | turned as usize & 1
    }
}

/// Maps a hash onto `0..n` by multiplication: any table size, no division, no power of two.
const fn reduce(hash: u64, n: usize) -> usize {
    ((hash as u128 * n as u128) >> 64) as usize
}

const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Consecutive clients, the usual case of a NAT in front or a load generator, must spread like
    /// random ones: chi-squared over the buckets within five standard deviations.
    #[test]
    fn neighbouring_clients_spread_evenly() {
        const BUCKETS: usize = 1024;
        const CLIENTS: u32 = 100 * BUCKETS as u32;
        let key = HashKey { blind: 0x0123_4567_89AB_CDEF, factor: 0xFEDC_BA98_7654_3211 };
        for second in [false, true] {
            let mut hits = [0u32; BUCKETS];
            for n in 0..CLIENTS {
                let hash = key.hash(Client::new(0x0A00_0000 + n / 16, 1024 + (n % 16) as u16), Protocol::Tcp);
                hits[if second { hash.second(BUCKETS / 2) } else { hash.home(BUCKETS / 2) }] += 1;
            }
            let expected = f64::from(CLIENTS) / BUCKETS as f64;
            let chi: f64 = hits.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
            let (mean, deviation) = ((BUCKETS - 1) as f64, (2.0 * (BUCKETS - 1) as f64).sqrt());
            assert!((chi - mean).abs() < 5.0 * deviation, "chi-squared {chi}, expected about {mean}");
        }
    }

    #[test]
    fn whether_two_clients_collide_depends_on_the_key() {
        let first = HashKey { blind: 1, factor: 0xD6E8_FEB8_6659_FD93 };
        let other = HashKey { blind: 2, factor: 0xA076_1D64_78BD_642F };
        let bucket = |key: &HashKey, n: u32| key.hash(Client::new(n, 80), Protocol::Udp).home(128);
        let colliding: Vec<u32> = (0..100_000).filter(|&n| bucket(&first, n) == 0).collect();
        let still = colliding.iter().filter(|&&n| bucket(&other, n) == bucket(&other, colliding[0])).count();
        assert!(still < colliding.len() / 16, "{still} of {} still collide", colliding.len());
    }

    #[test]
    fn the_second_choice_is_another_line_pair() {
        let key = HashKey { blind: 7, factor: 11 };
        for n in 0..10_000 {
            let hash = key.hash(Client::new(n, 1), Protocol::Tcp);
            assert_ne!(hash.home(2) >> 1, hash.second(2) >> 1);
        }
    }
}
