//! mh: Maglev hashing, bit-compatible with IPVS `mh` (table of 4093, SipHash-1-3 with its fixed keys).
//!
//! Every router with the same servers in the same order fills the same table, so a flow that lands on
//! another router goes to the same server; and when a server goes, few flows of the others move.
//! A server that was quiesced keeps its rows, so that its return moves nobody; its clients are refused
//! meanwhile, or with `mh-fallback` go elsewhere.
//! A server whose weight grows (slow start) gets the rows that it will have one after the other. The table is that
//! without it meanwhile, so that no flow moves but to it.
//! ("Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.)

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::{Candidate, Flow, Reason, gcd};
use crate::table::DestId;

/// Rows of the table: the prime that Linux uses by default.
pub(super) const ROWS: usize = 4093;

/// A weight is scaled down so that no server takes more than `2^SHIFT_BITS` turns in a row.
const SHIFT_BITS: u32 = 6;

const FIRST_KEY: u64 = 2_654_435_761;
const SECOND_KEY: u64 = 2_654_446_892;

/// A compiled Maglev table.
#[derive(Clone, Debug)]
pub struct Maglev {
    port: bool,
    fallback: bool,
    rows: Box<[u32]>,
    servers: Box<[(DestId, bool)]>,
}

impl Maglev {
    pub(super) fn new(servers: &[Candidate], port: bool, fallback: bool) -> Self {
        let rows = rows(servers);
        let servers = servers.iter().map(|server| (server.dest, server.weight > 0)).collect();
        Maglev { port, fallback, rows, servers }
    }

    #[inline]
    pub(super) fn pick(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        let port = self.hashed_port(flow);
        let first = row(flow.source, port, 0);
        let (dest, usable) = self.owner(first)?;
        if usable && is_free(dest) {
            return Some(dest);
        }
        // Nobody is free: to find that out by the rows would be 4093 hashes for each SYN of a flood.
        if !self.fallback || !self.servers.iter().any(|&(dest, usable)| usable && is_free(dest)) {
            return None;
        }
        (0..ROWS as u32)
            .filter_map(|offset| self.owner(row(flow.source, port, offset.wrapping_add(first as u32))))
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
        self.servers.get(*self.rows.get(row)? as usize).copied()
    }
}

pub(super) fn row(address: u32, port: u16, offset: u32) -> usize {
    hash(FIRST_KEY, address, port, offset) as usize % ROWS
}

fn hash(key: u64, address: u32, port: u16, offset: u32) -> u32 {
    let mut hasher = SipHasher13::new_with_keys(key, key);
    hasher.write(&offset.wrapping_add(u32::from(port)).wrapping_add(address).to_le_bytes());
    hasher.finish() as u32
}

/// Who owns each row, by index.
fn rows(servers: &[Candidate]) -> Box<[u32]> {
    let grows = |server: &Candidate| (1..server.last_weight).contains(&server.weight);
    let everybody = fill(servers, |_| true);
    // Whoever grows alone has nobody to leave rows to.
    if !servers.iter().any(grows) || !servers.iter().any(|server| server.weight > 0 && !grows(server)) {
        return everybody;
    }
    let mut rows = fill(servers, |server| !grows(server));
    for (server, index) in servers.iter().zip(0..).filter(|(server, _)| grows(server)) {
        let owned = everybody.iter().filter(|owner| **owner == index).count() as u64;
        let used = (owned * u64::from(server.weight)).div_ceil(u64::from(server.last_weight));
        let its = rows.iter_mut().zip(&everybody).filter(|(_, owner)| **owner == index);
        its.take(used as usize).for_each(|(row, _)| *row = index);
    }
    rows
}

/// The servers that take part take their preferred rows in turn, as many a turn as their weight says.
fn fill(servers: &[Candidate], takes_part: impl Fn(&Candidate) -> bool) -> Box<[u32]> {
    struct Preference {
        server: u32,
        next: usize,
        skip: usize,
        turns: u32,
    }

    let taking_part =
        || servers.iter().zip(0..).filter(|(server, _)| server.last_weight > 0 && takes_part(server));
    let weights = || taking_part().map(|(server, _)| server.last_weight);
    let divisor = weights().fold(0, gcd).max(1);
    let greatest = weights().map(|weight| weight / divisor).max().unwrap_or(0);
    let shift = (u32::BITS - greatest.leading_zeros()).saturating_sub(SHIFT_BITS);
    let mut preferences: Vec<Preference> = taking_part()
        .map(|(server, index)| Preference {
            server: index,
            next: hash(FIRST_KEY, server.address, server.port, 0) as usize % ROWS,
            skip: hash(SECOND_KEY, server.address, server.port, 0) as usize % (ROWS - 1) + 1,
            turns: ((server.last_weight / divisor) >> shift).max(1),
        })
        .collect();
    if preferences.is_empty() {
        return Box::default();
    }
    let mut rows = vec![u32::MAX; ROWS].into_boxed_slice();
    let mut left = ROWS;
    loop {
        for preference in &mut preferences {
            for _ in 0..preference.turns {
                while rows[preference.next] != u32::MAX {
                    preference.next = (preference.next + preference.skip) % ROWS;
                }
                rows[preference.next] = preference.server;
                left -= 1;
                if left == 0 {
                    return rows;
                }
            }
        }
    }
}
