//! twos and p2c: of two servers that are drawn by lot, the less loaded one for its weight.
//!
//! Nearly as even as the least of all, and it looks at two gauges however many servers there are ("The Power of Two Choices in
//! Randomized Load Balancing", Mitzenmacher 2001). The load is that of wlc, and of two that are equal the first draw wins.
//!
//! twos is that of IPVS: a lot is from 0 to the sum of all weights, both included, so that the first server has one chance more,
//! and one server may be drawn twice. The workers share a position for their draws.
//! p2c draws two different servers, each by its weight exactly, and by the connection's hash: no cache line that all workers write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::flow::{mixed, scaled};
use super::{Candidate, Cursor, Flow, Reason, overhead};
use crate::counters::Gauge;
use crate::table::DestId;

/// A compiled draw.
#[derive(Debug)]
pub struct Two {
    servers: Box<[Candidate]>,
    /// The sum of the weights up to each server, its own included.
    sums: Box<[u64]>,
    draw: Draw,
}

/// What makes a draw random.
#[derive(Clone, Debug)]
enum Draw {
    /// Counts the draws of all workers: the seed of the next one.
    Counted(Cursor),
    /// The connection itself, by a key.
    Hashed(u64),
}

impl Two {
    pub(super) fn twos(servers: Vec<Candidate>, cursor: &Cursor) -> Self {
        Self::new(servers, Draw::Counted(cursor.clone()))
    }

    pub(super) fn p2c(servers: Vec<Candidate>, key: u64) -> Self {
        Self::new(servers, Draw::Hashed(key))
    }

    fn new(mut servers: Vec<Candidate>, draw: Draw) -> Self {
        servers.retain(|server| server.weight > 0);
        let sum = |sum: &mut u64, server: &Candidate| {
            *sum += u64::from(server.weight);
            Some(*sum)
        };
        let sums = servers.iter().scan(0, sum).collect();
        Two { servers: servers.into(), sums, draw }
    }

    #[inline]
    pub(super) fn pick(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        if self.servers.is_empty() {
            return None;
        }
        let drawn = match &self.draw {
            Draw::Counted(cursor) => self.with_replacement(cursor.fetch_add(1, Ordering::Relaxed)),
            Draw::Hashed(key) => self.distinct(flow.hash(*key)),
        };
        self.choose(drawn, is_free).map(|server| server.dest)
    }

    fn with_replacement(&self, draw: u64) -> [usize; 2] {
        let lots = self.sum() + 1;
        [2 * draw, 2 * draw + 1].map(|seed| self.at(scaled(mixed(seed), lots).saturating_sub(1)))
    }

    fn distinct(&self, hash: u64) -> [usize; 2] {
        let first = self.at(scaled(mixed(hash), self.sum()));
        // The lots without those of the first.
        let weight = u64::from(self.servers[first].weight);
        let lot = scaled(mixed(!hash), self.sum() - weight);
        let before = self.sums[first] - weight;
        [first, self.at(if lot < before { lot } else { lot + weight })]
    }

    fn sum(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// Whose lot it is; the number of servers if it is nobody's.
    fn at(&self, lot: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= lot)
    }

    fn choose(&self, drawn: [usize; 2], is_free: &impl Fn(DestId) -> bool) -> Option<&Candidate> {
        let first = self.servers.get(drawn[0])?;
        // Where there is only one server nobody else is drawn.
        let second = self.servers.get(drawn[1]).unwrap_or(first);
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

    pub(super) fn reason(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<Reason> {
        if self.servers.is_empty() {
            return None;
        }
        let drawn = match &self.draw {
            Draw::Counted(cursor) => self.with_replacement(cursor.load(Ordering::Relaxed)),
            Draw::Hashed(key) => self.distinct(flow.hash(*key)),
        };
        let server = self.choose(drawn, is_free)?;
        Some(Reason::of_load(server, self.servers.len().min(2)))
    }

    /// A copy that goes its own way from here on, and looks at other gauges, where there are any.
    pub(super) fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Self {
        let draw = match &self.draw {
            Draw::Counted(cursor) => Draw::Counted(Arc::new(AtomicU64::new(cursor.load(Ordering::Relaxed)))),
            &Draw::Hashed(key) => Draw::Hashed(key),
        };
        let servers = self.servers.iter().map(|server| server.rehearsal(&gauge)).collect();
        Two { servers, sums: self.sums.clone(), draw }
    }
}
