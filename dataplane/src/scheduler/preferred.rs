//! fo and ovf: the server of the highest weight, and with ovf the next one when that is full.
//!
//! A server is full for ovf if it has more active connections than its weight. If all are, nobody is picked. The first server in
//! the list wins a tie.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Candidate, Reason};
use crate::counters::Gauge;
use crate::table::DestId;

/// A compiled order of preference.
#[derive(Debug)]
pub struct Preferred {
    overflows: bool,
    /// Those that may be picked, the heaviest first.
    servers: Box<[Candidate]>,
}

impl Preferred {
    pub(super) fn new(overflows: bool, mut servers: Vec<Candidate>) -> Self {
        servers.retain(|server| server.weight > 0);
        servers.sort_by_key(|server| Reverse(server.weight));
        Preferred { overflows, servers: servers.into() }
    }

    #[inline]
    pub(super) fn pick(&self, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        self.choose(is_free).map(|server| server.dest)
    }

    fn choose(&self, is_free: &impl Fn(DestId) -> bool) -> Option<&Candidate> {
        let has_room = |server: &Candidate| !self.overflows || server.gauge.get().0 <= server.weight;
        self.servers.iter().find(|server| has_room(server) && is_free(server.dest))
    }

    pub(super) fn reason(&self, is_free: &impl Fn(DestId) -> bool) -> Option<Reason> {
        Some(Reason::of_load(self.choose(is_free)?, self.servers.len()))
    }

    /// A copy that looks at other gauges, where there are any.
    pub(super) fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Self {
        let servers = self.servers.iter().map(|server| server.rehearsal(&gauge)).collect();
        Preferred { overflows: self.overflows, servers }
    }
}
