//! IPv6, end to end: the same programs, machines and promises as for IPv4, beside it.

mod errors;
mod operation;
mod pieces;
mod traffic;

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use harness::{
    cluster::{Cluster, Layout},
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

/// The counters at rest, none of which is of something dropped.
///
/// On a machine that is busy with other things, next hops may not have answered within the second that a start waits for
/// them. The router says so, and has no server for a client that comes before they do.
fn nothing_dropped(router: &Router) -> Result<Counters> {
    let counters = router.quiet()?;
    let was_late = router.log().contains("not every next hop has answered yet");
    let fates = counters.fates();
    let is_drop = |name: &str| name.starts_with("dropped") && !(was_late && name == "dropped no_server");
    let dropped: Vec<_> = fates.iter().filter(|(name, count)| is_drop(name) && **count > 0).collect();
    ensure!(dropped.is_empty(), "{dropped:?}");
    Ok(counters)
}
