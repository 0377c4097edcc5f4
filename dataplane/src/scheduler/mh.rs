//! mh: Maglev hashing, bit-compatible with IPVS `mh` (table of 4093, SipHash-1-3 with its fixed keys).
//!
//! Every router with the same servers in the same order fills the same table, so a flow that lands on
//! another router goes to the same server; and when a server goes, few flows of the others move ([`super::rows`]).
//! A server that was quiesced keeps its rows, so that its return moves nobody; its clients are refused
//! meanwhile, or with `mh-fallback` go elsewhere.

use super::rows::{Member, Turns, rows};
use super::{Candidate, Flow, Reason};
use crate::snapshot::folded;
use crate::table::DestId;

/// Rows of the table: the prime that Linux uses by default.
pub(super) const ROWS: usize = 4093;

const FIRST_KEY: u64 = 2_654_435_761;
const SECOND_KEY: u64 = 2_654_446_892;

/// A compiled table of IPVS' Maglev hashing.
#[derive(Clone, Debug)]
pub struct Mh {
    port: bool,
    fallback: bool,
    rows: Box<[u16]>,
    servers: Box<[(DestId, bool)]>,
}

impl Mh {
    pub(super) fn new(servers: &[Candidate], port: bool, fallback: bool) -> Self {
        let member = |server: &Candidate| {
            let of_server = |key| hash(key, folded(server.address), server.address.port(), 0);
            let (first, skip) = (of_server(FIRST_KEY), of_server(SECOND_KEY));
            Member { first, skip, weight: server.weight, last_weight: server.last_weight }
        };
        let members: Vec<Member> = servers.iter().map(member).collect();
        let servers = servers.iter().map(|server| (server.dest, server.weight > 0)).collect();
        Mh { port, fallback, rows: rows::<ROWS>(&members, Turns::Bunched), servers }
    }

    #[inline(always)]
    pub(super) fn pick(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        let port = self.hashed_port(flow);
        let first = row(flow.source, port, 0);
        let (dest, usable) = self.owner(first)?;
        if usable && is_free(dest) {
            return Some(dest);
        }
        self.elsewhere(flow.source, port, first, is_free)
    }

    /// The server of another row, with `mh-fallback`.
    #[cold]
    #[inline(never)]
    fn elsewhere(
        &self,
        source: u32,
        port: u16,
        first: usize,
        is_free: &impl Fn(DestId) -> bool,
    ) -> Option<DestId> {
        // Nobody is free: to find that out by the rows would be 4093 hashes for each SYN of a flood.
        if !self.fallback || !self.servers.iter().any(|&(dest, usable)| usable && is_free(dest)) {
            return None;
        }
        (0..ROWS as u32)
            .filter_map(|offset| self.owner(row(source, port, offset.wrapping_add(first as u32))))
            .find(|&(dest, usable)| usable && is_free(dest))
            .map(|(dest, _)| dest)
    }

    #[inline(always)]
    fn hashed_port(&self, flow: &Flow) -> u16 {
        if self.port { flow.source_port } else { 0 }
    }

    pub(super) fn reason(&self, flow: &Flow) -> Option<Reason> {
        let row = row(flow.source, self.hashed_port(flow), 0);
        let (owner, _) = self.owner(row)?;
        Some(Reason::Row { row, rows: ROWS, owner })
    }

    fn owner(&self, row: usize) -> Option<(DestId, bool)> {
        self.servers.get(usize::from(*self.rows.get(row)?)).copied()
    }
}

#[inline]
pub(super) fn row(address: u32, port: u16, offset: u32) -> usize {
    hash(FIRST_KEY, address, port, offset) as usize % ROWS
}

/// SipHash-1-3 of one number of 32 bits with twice the same key, as Linux' `hsiphash_1u32` has it (Aumasson and Bernstein, "SipHash: a
/// fast short-input PRF"). That of the library, which the test compares with, is two calls that keep their state in memory: a third
/// of what `mh` costs a new connection.
#[inline]
fn hash(key: u64, address: u32, port: u16, offset: u32) -> u32 {
    const LENGTH: u64 = 4 << 56;
    let message = LENGTH | u64::from(offset.wrapping_add(u32::from(port)).wrapping_add(address));
    let [a, b, c, d] =
        [0x736F_6D65_7073_6575, 0x646F_7261_6E64_6F6D, 0x6C79_6765_6E65_7261, 0x7465_6462_7974_6573]
            .map(|word| word ^ key);
    let [a, b, c, d] = sip_round([a, b, c, d ^ message]);
    let state = [a ^ message, b, c ^ 0xFF, d];
    let [a, b, c, d] = sip_round(sip_round(sip_round(state)));
    (a ^ b ^ c ^ d) as u32
}

#[inline]
fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32).wrapping_add(d);
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    [a, b, c.rotate_left(32), d]
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    proptest! {
        #[test]
        fn is_siphash(key: u64, address: u32, port: u16, offset: u32) {
            let mut hasher = SipHasher13::new_with_keys(key, key);
            hasher.write(&offset.wrapping_add(u32::from(port)).wrapping_add(address).to_le_bytes());
            prop_assert_eq!(super::hash(key, address, port, offset), hasher.finish() as u32);
        }
    }
}
