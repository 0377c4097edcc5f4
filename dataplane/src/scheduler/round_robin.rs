//! rr and wrr.
//!
//! IPVS keeps a pointer (and for wrr a current weight) under a spinlock. Here the whole sequence is a
//! function of one number, and that number a shared counter: one atomic addition a connection, exact over
//! all workers.
//!
//! The sequence of wrr: passes over the list with a threshold that starts at the greatest weight and
//! falls by the gcd of all weights; a pass takes the servers whose weight reaches the threshold. Between
//! two distinct weights all passes take the same servers, so the sequence is stored as *levels*, one for
//! each distinct weight, and a position in it is found by binary search. 1 000 servers with weights up to
//! 65535 take a few megabytes at the very worst instead of 65 million steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Candidate, Cursor, Reason, gcd};
use crate::table::DestId;

/// A compiled round robin.
#[derive(Debug)]
pub struct RoundRobin {
    levels: Box<[Level]>,
    /// Connections in a whole period.
    period: u64,
    cursor: Cursor,
}

/// Equal passes.
#[derive(Clone, Debug)]
struct Level {
    /// Position in the period behind the level's last connection.
    end: u64,
    /// Position of its first connection.
    start: u64,
    /// Whom each of its passes takes.
    servers: Box<[DestId]>,
}

impl RoundRobin {
    pub(super) fn plain(servers: &[Candidate], cursor: &Cursor) -> Self {
        Self::with_weights(servers, |_| 1, cursor)
    }

    pub(super) fn weighted(servers: &[Candidate], cursor: &Cursor) -> Self {
        Self::with_weights(servers, |server| server.weight, cursor)
    }

    fn with_weights(servers: &[Candidate], weight: impl Fn(&Candidate) -> u32, cursor: &Cursor) -> Self {
        let usable: Vec<(u32, DestId)> =
            servers.iter().filter(|s| s.weight > 0).map(|s| (weight(s), s.dest)).collect();
        let step = usable.iter().fold(0, |divisor, &(weight, _)| gcd(divisor, weight));
        let mut weights: Vec<u32> = usable.iter().map(|&(weight, _)| weight).collect();
        weights.sort_unstable_by(|a, b| b.cmp(a));
        weights.dedup();
        // IPVS begins with a pass over everybody (its threshold is 1 while the first servers are added),
        // which is the last pass of a period. Hence the lowest level's last pass is stored first.
        let mut passes: Vec<(u32, u64)> = Vec::new();
        for (index, &top) in weights.iter().enumerate() {
            let below = weights.get(index + 1).copied().unwrap_or(0);
            passes.push((top, u64::from((top - below) / step)));
        }
        if let Some(last) = passes.last_mut() {
            last.1 -= 1;
            let everybody = (last.0, 1);
            passes.insert(0, everybody);
        }
        let mut levels = Vec::new();
        let mut end = 0;
        for (threshold, count) in passes {
            let servers: Box<[DestId]> =
                usable.iter().filter(|(weight, _)| *weight >= threshold).map(|&(_, dest)| dest).collect();
            let start = end;
            end += count * servers.len() as u64;
            levels.push(Level { end, start, servers });
        }
        RoundRobin { levels: levels.into(), period: end, cursor: cursor.clone() }
    }

    #[inline]
    pub(super) fn pick(&self, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        self.levels.first()?;
        let mut position = self.cursor.fetch_add(1, Ordering::Relaxed) % self.period;
        // Each round finds a server, or gets behind a level: what is left is the round robin of those that are free.
        for _ in 0..=self.levels.len() {
            let level = &self.levels[self.levels.partition_point(|level| level.end <= position)];
            let length = level.servers.len() as u64;
            let server = |passed| level.servers[((position + passed - level.start) % length) as usize];
            let turns = 0..length.min(level.end - position);
            if let Some(passed) = turns.into_iter().find(|&passed| is_free(server(passed))) {
                if passed > 0 {
                    self.cursor.fetch_add(passed, Ordering::Relaxed);
                }
                return Some(server(passed));
            }
            self.cursor.fetch_add(level.end - position, Ordering::Relaxed);
            position = level.end % self.period;
        }
        None
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        let position = self.cursor.load(Ordering::Relaxed).checked_rem(self.period)?;
        Some(Reason::Turn { position, period: self.period })
    }

    /// A copy that goes its own way from here on.
    pub(super) fn rehearsal(&self) -> RoundRobin {
        let position = self.cursor.load(Ordering::Relaxed);
        let cursor = Arc::new(AtomicU64::new(position));
        RoundRobin { levels: self.levels.clone(), period: self.period, cursor }
    }
}
