//! sh and dh: the client or the virtual address decides, through a table of 256 buckets.
//!
//! Bit-compatible with IPVS, so that a client keeps its server when a Linux director is replaced: the
//! bucket is the multiplicative hash of the address (plus the port, with `sh-port`), and the buckets are
//! dealt to the servers in turn, `weight` in a row for sh and one each for dh.
//!
//! A server of weight 0 keeps its buckets. Without `sh-fallback` its clients are refused, which is what
//! IPVS does and what its users expect of source *hashing*: other clients are not moved.

use super::{Candidate, Flow, Reason};
use crate::table::DestId;

const BUCKETS: usize = 256;

/// A compiled hash table.
#[derive(Clone, Debug)]
pub struct Hashed {
    key: Key,
    fallback: bool,
    buckets: Box<[Option<Bucket>]>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    dest: DestId,
    usable: bool,
}

#[derive(Clone, Copy, Debug)]
enum Key {
    Source,
    SourceAndPort,
    Destination,
}

impl Hashed {
    pub(super) fn source(servers: &[Candidate], port: bool, fallback: bool) -> Self {
        let key = if port { Key::SourceAndPort } else { Key::Source };
        Hashed { key, fallback, buckets: deal(servers, |server| server.weight.max(1)) }
    }

    pub(super) fn destination(servers: &[Candidate]) -> Self {
        Hashed { key: Key::Destination, fallback: false, buckets: deal(servers, |_| 1) }
    }

    #[inline]
    pub(super) fn pick(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        let (address, port) = self.hashed(flow);
        let first = bucket(address, port, 0);
        let chosen = self.buckets[first]?;
        if chosen.usable && is_free(chosen.dest) {
            return Some(chosen.dest);
        }
        if !self.fallback {
            return None;
        }
        // From the unusable bucket on, each hash with the next offset, as IPVS walks.
        (0..BUCKETS as u32)
            .map(|offset| (offset + first as u32) % BUCKETS as u32)
            .filter_map(|offset| self.buckets[bucket(address, port, offset)])
            .find(|candidate| candidate.usable && is_free(candidate.dest))
            .map(|candidate| candidate.dest)
    }

    #[inline(always)]
    fn hashed(&self, flow: &Flow) -> (u32, u16) {
        match self.key {
            Key::Source => (flow.source, 0),
            Key::SourceAndPort => (flow.source, flow.source_port),
            Key::Destination => (flow.destination, 0),
        }
    }

    pub(super) fn reason(&self, flow: &Flow) -> Option<Reason> {
        let (address, port) = self.hashed(flow);
        let row = bucket(address, port, 0);
        Some(Reason::Row { row, rows: BUCKETS, owner: self.buckets[row]?.dest })
    }
}

/// Deals the buckets to the servers in turn, so many in a row.
fn deal(servers: &[Candidate], in_a_row: impl Fn(&Candidate) -> u32) -> Box<[Option<Bucket>]> {
    let mut buckets = vec![None; BUCKETS].into_boxed_slice();
    if servers.is_empty() {
        return buckets;
    }
    let turns = servers
        .iter()
        .flat_map(|server| std::iter::repeat_n(server, (in_a_row(server) as usize).min(BUCKETS)));
    for (bucket, server) in buckets.iter_mut().zip(turns.cycle()) {
        *bucket = Some(Bucket { dest: server.dest, usable: server.weight > 0 });
    }
    buckets
}

/// The 8-bit multiplicative hash (golden ratio) of address and port, shifted by an offset.
pub(super) fn bucket(address: u32, port: u16, offset: u32) -> usize {
    let hash = address.wrapping_add(u32::from(port)).wrapping_mul(0x61C8_8647) >> 24;
    (hash.wrapping_add(offset) as usize) & (BUCKETS - 1)
}
