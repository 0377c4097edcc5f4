//! From what was configured and what is known of Linux and of the servers' health, to a snapshot.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dataplane::fib::{Adjacency, Fib, PortIndex, Route, Via};
use dataplane::service::Protocol;
use dataplane::snapshot::{DestSpec, PortSpec, ServiceSpec, Snapshot};

use crate::config::{Config, Server, Service};
use crate::health::{Health, Target};
use crate::ids::{Ids, ServerKey, ServiceKey};
use crate::net::Mirror;

/// A port and its twin, as far as snapshots depend on them.
#[derive(Clone, Debug)]
pub struct PortLink {
    /// The twin's interface.
    pub ifindex: u32,
    /// The port's MAC, which is the twin's.
    pub mac: [u8; 6],
    /// The longest IP packet.
    pub mtu: u16,
}

/// A compiled snapshot and what has to be done for it.
pub struct Compiled {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Neighbours that real servers and gateways are reached through.
    pub next_hops: BTreeSet<(PortIndex, Ipv4Addr)>,
}

impl ServiceKey {
    /// The identity of a configured service.
    pub fn of(service: &Service) -> Self {
        ServiceKey { address: service.address, protocol: service.protocol }
    }
}

impl ServerKey {
    /// The identity of a configured server.
    pub fn of(service: &Service, server: &Server) -> Self {
        ServerKey { address: server.address, mode: service.mode }
    }
}

/// What is to be checked for this server.
pub fn targets(service: &Service, server: &Server) -> impl Iterator<Item = Target> {
    let checks = if server.check { &service.checks[..] } else { &[] };
    let address = server.address;
    checks.iter().map(move |check| Target { address: check.target(address), check: check.clone() })
}

/// Compiles a snapshot.
pub fn compile(
    generation: u64,
    config: &Config,
    ids: &mut Ids,
    health: &Health,
    mirror: &Mirror,
    ports: &[PortLink],
) -> Compiled {
    let mut specs = Vec::with_capacity(config.services.len());
    for service in &config.services {
        specs.push(describe(service, ids, health));
    }
    let fib = fib(mirror, ports);
    let next_hops = next_hops(&specs, mirror, ports, &fib);
    let ports = ports.iter().map(PortLink::spec).collect();
    let snapshot = Snapshot::new(generation, ports, &specs, ids.removed(), fib);
    Compiled { snapshot, next_hops }
}

fn describe(service: &Service, ids: &mut Ids, health: &Health) -> ServiceSpec {
    let key = ServiceKey::of(service);
    let mut dests = Vec::with_capacity(service.servers.len());
    for server in &service.servers {
        let record = ids.enter_server(key, ServerKey::of(service, server), server.weight);
        dests.push(DestSpec {
            id: record.id,
            address: server.address,
            weight: server.weight,
            last_weight: record.last_weight,
            up: targets(service, server).all(|target| health.is_up(&target)),
            traffic: record.counters.clone(),
            gauge: record.gauge.clone(),
        });
    }
    ServiceSpec {
        address: service.address,
        protocol: service.protocol,
        mode: service.mode,
        scheduler: service.scheduler,
        flags: service.flags.clone(),
        cursor: ids.enter_service(key).cursor.clone(),
        timeouts: service.timeouts,
        dests,
    }
}

/// Linux' routes and neighbours, as far as they lead over ports.
fn fib(mirror: &Mirror, ports: &[PortLink]) -> Fib {
    let port_of = |ifindex| (0..).zip(ports).find(|(_, port)| port.ifindex == ifindex);
    // The router's own addresses first: of two routes with an equal prefix the first counts.
    let own = mirror.addresses.iter().map(|&(_, address, _)| Route {
        prefix: address.into(),
        length: 32,
        via: Via::Nowhere,
    });
    // In order of the metric within a prefix.
    let routes = mirror.routes.iter().map(|route| Route {
        prefix: route.destination.into(),
        length: route.length,
        via: match (port_of(route.ifindex), route.gateway) {
            (Some((index, _)), Some(gateway)) => Via::Gateway(index, gateway.into()),
            (Some((index, _)), None) => Via::OnLink(index),
            (None, _) => Via::Nowhere,
        },
    });
    let neighbours = mirror.neighbours.iter().filter_map(|(&(ifindex, address), &mac)| {
        let (index, port) = port_of(ifindex)?;
        Some(((index, u32::from(address)), Adjacency::new(index, port.mtu, mac, port.mac)))
    });
    Fib::new(own.chain(routes), neighbours)
}

/// The neighbours that servers and gateways are reached through, known or not. Linux does not see the data
/// path's packets, so it has to be told that these are in use.
fn next_hops(
    specs: &[ServiceSpec],
    mirror: &Mirror,
    ports: &[PortLink],
    fib: &Fib,
) -> BTreeSet<(PortIndex, Ipv4Addr)> {
    let gateways = mirror.routes.iter().filter_map(|route| {
        let port = ports.iter().position(|port| port.ifindex == route.ifindex)?;
        Some((port as PortIndex, route.gateway?))
    });
    let servers = specs.iter().flat_map(|spec| &spec.dests).filter_map(|dest| {
        let (port, address) = fib.neighbour_of(u32::from(*dest.address.ip()))?;
        Some((port, Ipv4Addr::from(address)))
    });
    gateways.chain(servers).collect()
}

/// "tcp/192.0.2.10:80", for logs.
pub fn service_name(protocol: Protocol, address: impl std::fmt::Display) -> String {
    format!("{}/{address}", protocol.name())
}

impl PortLink {
    /// What the packet path has to know of it.
    pub fn spec(&self) -> PortSpec {
        PortSpec { mac: self.mac }
    }
}
