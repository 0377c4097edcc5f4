//! twos: of two servers that are drawn by lot, the less loaded one for its weight.
//!
//! Nearly as even as the least of all, and it looks at two gauges however many servers there are ("The Power of Two Choices in
//! Randomized Load Balancing", Mitzenmacher 2001). The load is that of wlc. As in IPVS a lot is from 0 to the sum of all weights,
//! both included, so that the first server has one chance more; and of two that are equal the first draw wins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Candidate, Cursor, Reason, overhead};
use crate::counters::Gauge;
use crate::table::DestId;

/// A compiled draw.
#[derive(Debug)]
pub struct Twos {
    servers: Box<[Candidate]>,
    /// The sum of the weights up to each server, its own included.
    sums: Box<[u64]>,
    /// Counts the draws of all workers: the seed of the next one.
    cursor: Cursor,
}

impl Twos {
    pub(super) fn new(mut servers: Vec<Candidate>, cursor: &Cursor) -> Self {
        servers.retain(|server| server.weight > 0);
        let sum = |sum: &mut u64, server: &Candidate| {
            *sum += u64::from(server.weight);
            Some(*sum)
        };
        let sums = servers.iter().scan(0, sum).collect();
        Twos { servers: servers.into(), sums, cursor: cursor.clone() }
    }

    #[inline]
    pub(super) fn pick(&self, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        if self.servers.is_empty() {
            return None;
        }
        self.choose(self.cursor.fetch_add(1, Ordering::Relaxed), is_free).map(|server| server.dest)
    }

    fn choose(&self, draw: u64, is_free: &impl Fn(DestId) -> bool) -> Option<&Candidate> {
        let lots = self.sums.last()? + 1;
        let drawn = |random: u64| {
            let lot = ((u128::from(random) * u128::from(lots)) >> 64) as u64;
            self.servers.get(self.sums.partition_point(|sum| *sum < lot))
        };
        let (first, second) = (drawn(mixed(2 * draw))?, drawn(mixed(2 * draw + 1))?);
        let cost = |server: &Candidate, of: &Candidate| overhead(&server.gauge) * u64::from(of.weight);
        match [first, second].map(|server| is_free(server.dest)) {
            [true, true] => Some(if cost(first, second) > cost(second, first) { second } else { first }),
            [true, false] => Some(first),
            [false, true] => Some(second),
            // The least loaded of all that are.
            [false, false] => {
                let free = self.servers.iter().filter(|server| is_free(server.dest));
                free.reduce(
                    |best, server| if cost(best, server) > cost(server, best) { server } else { best },
                )
            }
        }
    }

    pub(super) fn reason(&self, is_free: &impl Fn(DestId) -> bool) -> Option<Reason> {
        let server = self.choose(self.cursor.load(Ordering::Relaxed), is_free)?;
        Some(Reason::of_load(server, self.servers.len().min(2)))
    }

    /// A copy that goes its own way from here on, and looks at other gauges, where there are any.
    pub(super) fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Self {
        let cursor = Arc::new(AtomicU64::new(self.cursor.load(Ordering::Relaxed)));
        let servers = self.servers.iter().map(|server| server.rehearsal(&gauge)).collect();
        Twos { servers, sums: self.sums.clone(), cursor }
    }
}

/// A number that looks random: the output function of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(number: u64) -> u64 {
    let a = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let b = (a ^ a >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let c = (b ^ b >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    c ^ c >> 31
}
