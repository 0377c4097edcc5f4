//! IPv6, end to end: the same programs, machines and promises as for IPv4, beside it.

mod errors;
mod operation;
mod pieces;
mod traffic;
mod tunnels;

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use harness::{
    cluster::{Cluster, Layout},
    config::Config,
    ipv6::{CLIENT, endpoint, vip},
    listing::{Counters, Stats},
    netns::Namespace,
    router::Router,
    wait::PATIENCE,
};

/// Where a real server answers over UDP: under direct routing by the virtual address, which it has itself.
fn answering(cluster: &Cluster, index: usize, port: u16) -> SocketAddr {
    match cluster.layout() {
        Layout::TwoArmed => endpoint(cluster, index, port),
        Layout::OneArmed => vip(port),
    }
}

/// The client's UDP socket on a port of its own, connected to one of the virtual address.
fn udp(cluster: &Cluster, port: u16, to: u16) -> Result<UdpSocket> {
    let socket = cluster.client.enter(|| Ok(UdpSocket::bind((CLIENT, port))?))?;
    socket.connect(vip(to))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Linux' own.
fn ping(from: &Namespace, words: &str) -> Result<String> {
    from.command("ping").words("-6 -c 1 -w 10").words(words).run()
}

/// The totals of a service.
fn stats(router: &Router, protocol: &str, address: impl Into<SocketAddr>) -> Result<Stats> {
    let address = address.into();
    let services = router.services()?;
    let mut found = services.iter().filter(|service| service.address == address);
    let found = found.find(|service| service.protocol.eq_ignore_ascii_case(protocol));
    Ok(found.with_context(|| format!("no {protocol} {address} in {services:?}"))?.stats)
}

/// Starts the router, and waits until it knows the MAC of each real server.
fn start(cluster: &Cluster, config: &Config) -> Result<Router> {
    let router = cluster.start_router(config)?;
    for service in config.services.iter().filter(|service| service.address.is_ipv6()) {
        router.wait_for_macs(CLIENT.into(), service.address, service.protocol)?;
    }
    Ok(router)
}

/// The counters at rest, none of which is of something dropped.
fn nothing_dropped(router: &Router) -> Result<Counters> {
    let counters = router.quiet()?;
    let fates = counters.fates();
    let is_drop = |name: &str| name.starts_with("dropped");
    let dropped: Vec<_> = fates.iter().filter(|(name, count)| is_drop(name) && **count > 0).collect();
    ensure!(dropped.is_empty(), "{dropped:?}");
    Ok(counters)
}
