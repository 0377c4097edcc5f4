//! What `rvs list --json` and `rvs list --counters --json` say.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Deserialize;

/// A service with its counters.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Service {
    /// `tcp` or `udp`, in whichever case.
    pub protocol: String,
    /// Virtual address and port.
    pub address: SocketAddr,
    /// The scheduler's name.
    pub scheduler: String,
    /// Totals since the start.
    pub stats: Stats,
    /// The real servers.
    pub servers: Vec<Server>,
}

/// A real server in a service.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// What it has of that now.
    pub effective_weight: u32,
    /// `enabled`, `drained`, `disabled`, `leaving` or `sorry`.
    pub state: String,
    /// Whether its check says that it is alive.
    pub up: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Connections that count as active.
    pub active: u64,
    /// Those that do not any more.
    pub inactive: u64,
    /// Totals since the start.
    pub stats: Stats,
}

/// Totals.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients, counted from the IP header on.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

impl std::ops::Sub for Stats {
    type Output = Stats;

    fn sub(self, before: Stats) -> Stats {
        Stats {
            connections: self.connections - before.connections,
            packets_in: self.packets_in - before.packets_in,
            packets_out: self.packets_out - before.packets_out,
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
        }
    }
}

impl std::iter::Sum for Stats {
    fn sum<I: Iterator<Item = Stats>>(all: I) -> Stats {
        all.fold(Stats::default(), |sum, one| Stats {
            connections: sum.connections + one.connections,
            packets_in: sum.packets_in + one.packets_in,
            packets_out: sum.packets_out + one.packets_out,
            bytes_in: sum.bytes_in + one.bytes_in,
            bytes_out: sum.bytes_out + one.bytes_out,
        })
    }
}

/// The workers' counters.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Counters {
    /// Which snapshot is in force: grows with every reload, and whenever Linux finds or loses a neighbour.
    pub generation: u64,
    /// The connection table.
    pub table: Table,
    /// The workers.
    pub workers: Vec<Worker>,
}

/// The connection table.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Table {
    /// How many connections it could hold at most.
    pub slots: u64,
    /// How many it holds.
    pub connections: u64,
}

/// What one worker has done.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Worker {
    /// Its number.
    pub index: u32,
    /// Looks at its queues that found something.
    pub bursts: u64,
    /// Packets taken from its queues.
    pub received: u64,
    /// Packets sent on.
    pub forwarded: u64,
    /// Those of them that were no service's.
    pub routed: u64,
    /// Packets given to Linux, by reason.
    pub punted: BTreeMap<String, u64>,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Fragments that wait for the first of their datagram.
    pub waiting: u64,
    /// Fragments that have had to.
    pub held: u64,
    /// Packets that Linux sent through it.
    pub injected: u64,
    /// Services' traffic that it handled.
    #[serde(flatten)]
    pub stats: Stats,
}

impl Worker {
    /// Whether everything received has gone somewhere under a name.
    pub fn accounts(&self) -> bool {
        let named: u64 = self.punted.values().chain(self.dropped.values()).sum();
        self.received == self.forwarded + named + self.waiting
    }
}

impl Counters {
    /// Everything that packets can become, by name, over all workers: `forwarded`, `punted NAME`, `dropped NAME`.
    pub fn fates(&self) -> BTreeMap<String, u64> {
        let mut fates = BTreeMap::new();
        for worker in &self.workers {
            *fates.entry("forwarded".to_owned()).or_default() += worker.forwarded;
            for (kind, reasons) in [("punted", &worker.punted), ("dropped", &worker.dropped)] {
                for (reason, count) in reasons {
                    *fates.entry(format!("{kind} {reason}")).or_default() += count;
                }
            }
        }
        fates
    }

    /// Packets received by all workers.
    pub fn received(&self) -> u64 {
        self.workers.iter().map(|worker| worker.received).sum()
    }
}
