//! What Prometheus scrapes: `GET /metrics`.
//!
//! Nothing is counted here. Every number is that of a counter which is kept anyway, by a worker, a prober or the ring of
//! events, and is read when somebody scrapes; so the metrics agree with `rvs list` and cost nothing while nobody looks.
//! Nothing stands here twice: what is a sum of other series (the traffic of all services, checks of all results) is left
//! to the query.
//!
//! Services and servers are labelled as in the logs, `service="tcp/192.0.2.10:80"`, `server="10.0.0.11:8080"`. A server has
//! nine series, so that ten thousand are 90 000 lines, eight megabytes; they are written into one string by a thread that
//! may block, in 15 ms, and the control thread only gathers the numbers.

mod families;
mod peers;
pub mod states;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::admin::api;
use crate::events::Tally;
use crate::health::Checks;
use states::ByState;

/// All that is scraped at one time.
#[derive(Debug)]
pub struct Scrape {
    /// Of DPDK.
    pub dpdk: String,
    /// When RVS was started.
    pub start: SystemTime,
    /// What the workers count, and the table.
    pub counters: api::Counters,
    /// Services and servers.
    pub services: Vec<api::Service>,
    /// Health checks by kind.
    pub checks: Vec<Checks>,
    /// How often what has happened.
    pub events: BTreeMap<&'static str, Tally>,
    /// Peer routers, if there are any.
    pub sync: Option<api::Sync>,
    /// Connections by state.
    pub states: ByState,
    /// The ports of local addresses, with full NAT.
    pub local_ports: Vec<LocalPorts>,
    /// The blocks of ports of pools of source NAT.
    pub snat_blocks: Vec<SnatBlocks>,
}

/// Blocks of ports of an address of a pool of source NAT.
#[derive(Debug)]
pub struct SnatBlocks {
    /// The address.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: &'static str,
    /// How many hosts have.
    pub used: u32,
    /// How many nobody has.
    pub free: u32,
}

/// Ports of a local address.
#[derive(Debug)]
pub struct LocalPorts {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: &'static str,
    /// How many connections have.
    pub taken: u64,
}

/// How metrics are written. Names and values are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What every tool reads.
    Text,
    /// What Prometheus asks for first.
    OpenMetrics,
}

impl Format {
    /// What a client that accepts these types gets.
    pub fn accepted(accept: &str) -> Format {
        if accept.contains("application/openmetrics-text") { Format::OpenMetrics } else { Format::Text }
    }

    /// For the HTTP header.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Scrape {
    /// Writes all families.
    pub fn render(self, format: Format) -> Result<String, fmt::Error> {
        let servers: usize = self.services.iter().map(|service| service.servers.len()).sum();
        // What a server takes, and all the rest; so the string does not move while it grows.
        let mut out = String::with_capacity((64 << 10) + servers * 1024);
        let mut registry = Registry::with_prefix("rvs");
        registry.register_collector(Box::new(self));
        match format {
            Format::Text => prometheus_text::encode(&mut out, &registry)?,
            Format::OpenMetrics => text::encode(&mut out, &registry)?,
        }
        Ok(out)
    }
}
