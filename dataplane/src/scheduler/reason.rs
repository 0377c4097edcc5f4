//! Why a scheduler picks whom it picks, for operators who ask. Nothing here is on a packet's way.

use std::sync::Arc;

use super::least::Least;
use super::{Flow, Picker};
use crate::counters::Gauge;
use crate::table::DestId;

/// What decides the next pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no server that could be picked.
    Nobody,
    /// rr and wrr: whose turn it is.
    Turn {
        /// Which connection of the period comes next, from 0.
        position: u64,
        /// Connections in a period.
        period: u64,
    },
    /// lc, wlc, sed and nq: the least loaded.
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
    /// sh, dh and mh: a row of a table.
    Row {
        /// Which.
        row: usize,
        /// How many there are.
        rows: usize,
        /// Whose row it is. If another server is picked, this one takes no connections, and a fallback is on.
        owner: DestId,
    },
}

impl Picker {
    /// What decides the pick for this flow, now. Picks nobody, and moves no position.
    pub fn reason(&self, flow: &Flow) -> Reason {
        match self {
            Picker::RoundRobin(picker) => picker.reason(),
            Picker::Least(picker) => picker.reason(),
            Picker::Hashed(picker) => picker.reason(flow),
            Picker::Maglev(picker) => picker.reason(flow),
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
            Picker::Maglev(picker) => Picker::Maglev(picker.clone()),
        }
    }
}
