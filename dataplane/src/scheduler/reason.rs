//! Why a scheduler picks whom it picks, for operators who ask. Nothing here is on a packet's way.

use std::sync::Arc;

use super::least::Least;
use super::{Candidate, Flow, Picker};
use crate::counters::Gauge;
use crate::table::DestId;

/// What decides the next pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no server that could be picked.
    Nobody,
    /// No scheduler: the client comes back to its server.
    Template,
    /// rr and wrr: whose turn it is.
    Turn {
        /// Which connection of the period comes next, from 0.
        position: u64,
        /// Connections in a period.
        period: u64,
    },
    /// lc, wlc, sed and nq: the least loaded; lblc and lblcr: the least loaded of the virtual address's, or of all; twos and p2c: that of the two drawn; fo and ovf: the heaviest that is not full.
    Load {
        /// Its active connections.
        active: u32,
        /// Its other connections.
        inactive: u32,
        /// Its weight.
        weight: u32,
        /// How many servers were compared.
        of: usize,
    },
    /// sh, dh, mh and maglev: a row of a table.
    Row {
        /// Which.
        row: usize,
        /// How many there are.
        rows: usize,
        /// Whose row it is. If another server is picked, this one takes no connections; with sh and mh a fallback is on.
        owner: DestId,
    },
    /// rendezvous: the best score for its weight.
    Score {
        /// Its weight.
        weight: u32,
        /// How many servers there are.
        of: usize,
    },
}

impl Reason {
    /// The load of a server that was picked of so many.
    pub(super) fn of_load(server: &Candidate, of: usize) -> Reason {
        let (active, inactive) = server.gauge.get();
        Reason::Load { active, inactive, weight: server.weight, of }
    }
}

impl Picker {
    /// What decides the pick for this flow among the servers that are free, now. Picks nobody, and moves no position.
    pub fn reason(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Reason {
        match self {
            Picker::RoundRobin(picker) => picker.reason(),
            Picker::Least(picker) => picker.reason(is_free),
            Picker::Hashed(picker) => picker.reason(flow),
            Picker::Mh(picker) => picker.reason(flow),
            Picker::Preferred(picker) => picker.reason(is_free),
            Picker::Local(picker) => picker.reason(flow, is_free),
            Picker::Two(picker) => picker.reason(flow, is_free),
            Picker::Maglev(picker) => picker.reason(flow),
            Picker::Rendezvous(picker) => picker.reason(flow, is_free),
        }
        .unwrap_or(Reason::Nobody)
    }

    /// A scheduler without servers.
    pub fn nobody() -> Picker {
        Picker::Least(Least::nobody())
    }

    /// A copy that moves a position of its own, and looks at the gauges that it is given.
    pub fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Picker {
        match self {
            Picker::RoundRobin(picker) => Picker::RoundRobin(picker.rehearsal()),
            Picker::Least(picker) => Picker::Least(picker.rehearsal(gauge)),
            Picker::Hashed(picker) => Picker::Hashed(picker.clone()),
            Picker::Mh(picker) => Picker::Mh(picker.clone()),
            Picker::Preferred(picker) => Picker::Preferred(picker.rehearsal(gauge)),
            Picker::Local(picker) => Picker::Local(picker.rehearsal(gauge)),
            Picker::Two(picker) => Picker::Two(picker.rehearsal(gauge)),
            Picker::Maglev(picker) => Picker::Maglev(picker.clone()),
            Picker::Rendezvous(picker) => Picker::Rendezvous(picker.clone()),
        }
    }
}
