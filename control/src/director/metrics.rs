//! What the director knows of what is scraped.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use dataplane::service::Protocol;
use dataplane::snapshot::Snapshot;
use dataplane::snat::{Given, Snat};
use dataplane::table::{LocalAddress, Table};
use dataplane::worker;
use dpdk::Eal;

use super::Director;
use crate::metrics::states::{self, ByState, States};
use crate::metrics::{Format, LocalPorts, Scrape, SnatBlocks};

/// What metrics need beside what is there anyway.
pub(super) struct Metrics {
    start: SystemTime,
    states: Arc<States>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { start: SystemTime::now(), states: Arc::default() }
    }
}

/// All but the connections' states, and what those are read from.
pub(super) struct Gathered {
    scrape: Scrape,
    table: Arc<Table>,
    snapshot: Arc<Snapshot>,
    states: Arc<States>,
}

impl Director {
    pub(super) fn gather(&self) -> Gathered {
        let scrape = Scrape {
            dpdk: Eal::version().to_string(),
            start: self.metrics.start,
            counters: self.counters(),
            services: self.services.listed().iter().map(|service| self.describe(service)).collect(),
            checks: self.health.checks(),
            events: self.events.tally(),
            sync: self.peers.described(),
            states: ByState::default(),
            local_ports: Vec::new(),
            snat_blocks: Vec::new(),
        };
        let snapshot = self.publisher.current();
        Gathered { scrape, table: self.table.clone(), snapshot, states: self.metrics.states.clone() }
    }
}

impl Gathered {
    /// Reads the table, if it is time, and writes everything, in a thread that may block.
    pub(super) async fn render(self, format: Format) -> Result<String> {
        let Gathered { mut scrape, table, snapshot, states } = self;
        let render = move || {
            scrape.states = states.get(states::PERIOD, || states::count(&table, &snapshot, worker::now()));
            scrape.local_ports = local_ports(&snapshot);
            scrape.snat_blocks = snapshot.snats.all().iter().flat_map(|snat| snat_blocks(snat)).collect();
            scrape.render(format)
        };
        let written = tokio::task::spawn_blocking(render).await.context("RVS is stopping")?;
        written.context("cannot write the metrics")
    }
}

/// How many ports of each local address are taken, of those that have any.
fn local_ports(snapshot: &Snapshot) -> Vec<LocalPorts> {
    let of = |local: &LocalAddress, protocol: Protocol| LocalPorts {
        address: local.address,
        protocol: protocol.name(),
        taken: local.taken(protocol) as u64,
    };
    let all =
        snapshot.locals().flat_map(|local| Protocol::ALL.iter().map(move |&protocol| of(local, protocol)));
    all.collect()
}

/// The blocks of each address of a pool and each protocol.
fn snat_blocks(snat: &Snat) -> impl Iterator<Item = SnatBlocks> {
    let all = snat.blocks();
    let of = move |Given { address, blocks }| {
        let of_address = ["tcp", "udp", "icmp"].into_iter().zip(blocks);
        of_address.map(move |(protocol, used)| SnatBlocks {
            address: Ipv4Addr::from(address),
            protocol,
            used,
            free: all - used,
        })
    };
    snat.given().into_iter().flat_map(of)
}
