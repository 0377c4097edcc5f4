//! lc, wlc, sed and nq: the server with the least of something.
//!
//! A connection that is active costs as much as 256 that are not ([`overhead`], as in IPVS). The first server in the list wins a tie. The gauges are read without stopping
//! anybody, so two workers may pick the same server at the same moment; the next pick sees both.

use std::sync::Arc;

use super::{Candidate, Reason, overhead};
use crate::counters::Gauge;
use crate::table::DestId;

/// What is to be the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// lc: overhead.
    Connections,
    /// wlc: overhead / weight.
    WeightedConnections,
    /// sed: (active + 1) / weight.
    ExpectedDelay,
    /// nq: a server without active connections, else as sed.
    NeverQueue,
}

/// A compiled least-something.
#[derive(Debug)]
pub struct Least {
    measure: Measure,
    servers: Box<[Candidate]>,
}

impl Least {
    pub(super) fn new(measure: Measure, mut servers: Vec<Candidate>) -> Self {
        servers.retain(|server| server.weight > 0);
        Least { measure, servers: servers.into() }
    }

    #[inline]
    pub(super) fn pick(&self, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        self.choose(is_free).map(|server| server.dest)
    }

    #[inline(always)]
    pub(super) fn choose(&self, is_free: &impl Fn(DestId) -> bool) -> Option<&Candidate> {
        let mut best: Option<(u64, u64, &Candidate)> = None;
        for server in self.servers.iter().filter(|server| is_free(server.dest)) {
            let active = || u64::from(server.gauge.get().0);
            if self.measure == Measure::NeverQueue && active() == 0 {
                return Some(server);
            }
            let (load, weight) = match self.measure {
                Measure::Connections => (overhead(&server.gauge), 1),
                Measure::WeightedConnections => (overhead(&server.gauge), u64::from(server.weight)),
                Measure::ExpectedDelay | Measure::NeverQueue => (active() + 1, u64::from(server.weight)),
            };
            // load / weight < best, without dividing: 2^32 * 257 * 65535 fits in 64 bits.
            if best.is_none_or(|(least, of, _)| load * of < least * weight) {
                best = Some((load, weight, server));
            }
        }
        best.map(|(_, _, server)| server)
    }

    pub(super) fn reason(&self, is_free: &impl Fn(DestId) -> bool) -> Option<Reason> {
        Some(Reason::of_load(self.choose(is_free)?, self.servers.len()))
    }

    /// That of no server.
    pub(super) fn nobody() -> Self {
        Least { measure: Measure::Connections, servers: Box::default() }
    }

    /// A copy that looks at other gauges, where there are any.
    pub(super) fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Self {
        let servers = self.servers.iter().map(|server| server.rehearsal(&gauge)).collect();
        Least { measure: self.measure, servers }
    }
}
