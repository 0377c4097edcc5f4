//! A fast hash for tables whose contents nobody outside can choose.

use std::hash::{Hash, Hasher};

/// A multiplicative hash of integers. The snapshot's tables hold what the operator configured and what Linux
/// knows, so nobody can fill them with collisions; and a look-up that finds nothing costs no more for it.
#[derive(Debug, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.0 ^ n) * 0x9E37_79B9_7F4A_7C15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

/// An IPv6 address and what else belongs to the key, to be hashed in three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideKey {
    /// The address.
    pub address: u128,
    /// The rest.
    pub rest: u64,
}

impl Hash for WideKey {
    #[inline]
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for word in [self.address as u64, (self.address >> 64) as u64, self.rest] {
            hasher.write_u64(word);
        }
    }
}
