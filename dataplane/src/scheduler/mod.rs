//! Which real server gets a new connection: the schedulers of Linux IPVS, and three that it does not have (`maglev`, `rendezvous`
//! and `p2c`).
//!
//! A [`Picker`] is compiled with the snapshot from the servers that may be chosen, so a pick never has to
//! ask whether a server is alive. What changes between snapshots (the round-robin position, the gauges of
//! live connections) is shared by all workers and outlives snapshots, so that the spread is exact over
//! all workers and does not start anew at each reload.
//!
//! Order matters to operators who compare with IPVS, which keeps the servers *newest first*: the last one
//! in the configuration is the first in every list here, and wins ties. `maglev` and `rendezvous` have an order of their own, the
//! same on all routers.

mod flow;
mod hashed;
mod least;
mod local;
mod maglev;
mod mh;
mod preferred;
mod reason;
mod rendezvous;
mod roster;
mod round_robin;
mod rows;
mod two;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use self::flow::{FLOW_KEY, Flow};
use self::hashed::Hashed;
use self::least::Least;
use self::local::{Addresses, Kind, Local};
use self::maglev::{LastTables, Maglev};
use self::mh::Mh;
use self::preferred::Preferred;
pub use self::reason::Reason;
use self::rendezvous::Rendezvous;
pub use self::roster::{AtRisk, NextRoster, RosterMember, RosterSpec, Rosters};
use self::round_robin::RoundRobin;
use self::two::Two;
use crate::counters::Gauge;
use crate::service::{Scheduler, SchedulerFlag};
use crate::table::DestId;

/// A real server that a scheduler knows.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its id in the service.
    pub dest: DestId,
    /// Its address and port.
    pub address: SocketAddr,
    /// Its weight; 0 takes no new connections.
    pub weight: u32,
    /// Its weight before it became 0 or began to grow, else its weight: `mh` keeps the rows of a quiesced server.
    pub last_weight: u32,
    /// Its live connections.
    pub gauge: Arc<Gauge>,
}

impl Candidate {
    /// The same with another gauge: one that is given, or a copy.
    fn rehearsal(&self, gauge: impl Fn(DestId) -> Option<Arc<Gauge>>) -> Self {
        let gauge = gauge(self.dest).unwrap_or_else(|| Arc::new(self.gauge.copy()));
        Candidate { gauge, ..self.clone() }
    }
}

/// A round-robin position that outlives snapshots.
pub type Cursor = Arc<AtomicU64>;

/// What a scheduler keeps from one snapshot to the next. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Its round-robin position.
    pub cursor: Cursor,
    last_tables: LastTables,
    addresses: Addresses,
}

/// A compiled scheduler.
#[derive(Debug)]
pub enum Picker {
    /// rr and wrr.
    RoundRobin(RoundRobin),
    /// lc, wlc, sed and nq.
    Least(Least),
    /// sh and dh.
    Hashed(Hashed),
    /// mh.
    Mh(Mh),
    /// fo and ovf.
    Preferred(Preferred),
    /// lblc and lblcr.
    Local(Local),
    /// twos and p2c.
    Two(Two),
    /// maglev.
    Maglev(Maglev),
    /// rendezvous.
    Rendezvous(Rendezvous),
}

impl Picker {
    /// Compiles a scheduler for servers in the order of the configuration. `key` is that of flows' hashes, the same on all routers
    /// that have to agree ([`FLOW_KEY`], or a secret); the schedulers of IPVS have theirs.
    pub fn new(
        kind: Scheduler,
        flags: &[SchedulerFlag],
        servers: &[Candidate],
        kept: &Kept,
        key: u64,
    ) -> Self {
        let newest_first: Vec<Candidate> = servers.iter().rev().cloned().collect();
        let has = |flag| flags.contains(&flag);
        match kind {
            Scheduler::Rr => Picker::RoundRobin(RoundRobin::plain(&newest_first, &kept.cursor)),
            Scheduler::Wrr => Picker::RoundRobin(RoundRobin::weighted(&newest_first, &kept.cursor)),
            Scheduler::Lc => Picker::Least(Least::new(least::Measure::Connections, newest_first)),
            Scheduler::Wlc => Picker::Least(Least::new(least::Measure::WeightedConnections, newest_first)),
            Scheduler::Sed => Picker::Least(Least::new(least::Measure::ExpectedDelay, newest_first)),
            Scheduler::Nq => Picker::Least(Least::new(least::Measure::NeverQueue, newest_first)),
            Scheduler::Sh => Picker::Hashed(Hashed::source(
                &newest_first,
                has(SchedulerFlag::ShPort),
                has(SchedulerFlag::ShFallback),
            )),
            Scheduler::Dh => Picker::Hashed(Hashed::destination(&newest_first)),
            Scheduler::Mh => {
                Picker::Mh(Mh::new(&newest_first, has(SchedulerFlag::MhPort), has(SchedulerFlag::MhFallback)))
            }
            Scheduler::Fo => Picker::Preferred(Preferred::new(false, newest_first)),
            Scheduler::Ovf => Picker::Preferred(Preferred::new(true, newest_first)),
            Scheduler::Twos => Picker::Two(Two::twos(newest_first, &kept.cursor)),
            Scheduler::Lblc => Picker::Local(Local::new(Kind::One, newest_first, &kept.addresses)),
            Scheduler::Lblcr => Picker::Local(Local::new(Kind::Set, newest_first, &kept.addresses)),
            Scheduler::P2c => Picker::Two(Two::p2c(newest_first, key)),
            Scheduler::Maglev => Picker::Maglev(Maglev::new(servers, &kept.last_tables, key)),
            Scheduler::Rendezvous => Picker::Rendezvous(Rendezvous::new(servers, key)),
        }
    }

    /// One that looks at nothing but the flow, for a service whose scheduler looks at more. Asking each of a few servers takes no memory.
    pub fn by_hash(servers: &[Candidate], kept: &Kept, key: u64) -> Self {
        match servers.len() {
            0..=32 => Picker::Rendezvous(Rendezvous::new(servers, key)),
            _ => Picker::Maglev(Maglev::new(servers, &kept.last_tables, key)),
        }
    }

    /// The server for a new connection; `None` if there is none that may take it.
    pub fn pick(&self, flow: &Flow) -> Option<DestId> {
        self.pick_free(|| *flow, &|_| true)
    }

    /// The same among the servers that are free. One that is not is passed over; with the hashing schedulers of IPVS it keeps
    /// its clients as one of weight 0 does. The flow is asked for by whoever looks at it.
    #[inline(always)]
    pub fn pick_free(
        &self,
        flow: impl FnOnce() -> Flow,
        is_free: &impl Fn(DestId) -> bool,
    ) -> Option<DestId> {
        match self {
            Picker::RoundRobin(picker) => picker.pick(is_free),
            Picker::Least(picker) => picker.pick(is_free),
            Picker::Hashed(picker) => picker.pick(&flow(), is_free),
            Picker::Mh(picker) => picker.pick(&flow(), is_free),
            Picker::Preferred(picker) => picker.pick(is_free),
            Picker::Local(picker) => picker.pick(&flow(), is_free),
            Picker::Two(picker) => picker.pick(&flow(), is_free),
            Picker::Maglev(picker) => picker.pick(&flow(), is_free),
            Picker::Rendezvous(picker) => picker.pick_for(&flow(), is_free),
        }
    }
}

/// What a server's connections cost it: one that is active as much as 256 that are not.
#[inline]
fn overhead(gauge: &Gauge) -> u64 {
    let (active, inactive) = gauge.get();
    257 * u64::from(active) + u64::from(inactive)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
