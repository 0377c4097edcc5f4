//! Datagrams of 8 KB, in six pieces that come in any order.

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{self, Cluster, Layout},
    ipv6,
    listing::Counters,
    packet::{Craft, fragments, ipv6_fragments, mac_of},
    pieces::{LARGE, data, shuffled},
    raw::RawSender,
    servers::Server,
};

use crate::way::{Family, Way, on_each, start, with_ways};

/// Six fragments, each with room for the headers of any tunnel.
const IN_A_PACKET: usize = 1384;
const DATAGRAMS: usize = 20;

/// The pieces of a datagram to a port from the same one of the client.
fn request(cluster: &Cluster, way: Way, port: u16, seed: usize) -> Vec<Vec<u8>> {
    let craft = Craft::udp((way.client(), port), way.vip(port), &data(LARGE, seed));
    let frame = craft.between(mac_of(cluster::CLIENT), cluster.router_mac()).build();
    // No number twice within the time that the router remembers one.
    let number = port + seed as u16;
    let pieces = match way.clients {
        Family::Four => fragments(&frame, IN_A_PACKET, number),
        Family::Six => ipv6_fragments(&frame, IN_A_PACKET, number.into()),
    };
    shuffled(pieces, seed)
}

/// How many pieces had to wait for the first.
fn held(counters: &Counters) -> u64 {
    counters.workers.iter().map(|worker| worker.held).sum()
}

/// What was dropped, by its reason.
fn dropped(counters: &Counters) -> Vec<(String, u64)> {
    counters.fates().into_iter().filter(|(fate, _)| fate.starts_with("dropped")).collect()
}

fn all_arrive(layout: Layout) -> Result<()> {
    with_ways(layout, |cluster, ways| {
        let config = ways.iter().fold(ipv6::config(cluster).with_fragments(), |config, (way, port)| {
            config.service(way.service(cluster, "udp", *port))
        });
        let router = start(cluster, ways, &config, "udp")?;
        let sender = RawSender::open(&cluster.client, "eth0")?;
        on_each(ways, |way, port| {
            let _echo = Server::udp_echo(way.machine(cluster), way.listens(cluster, port))?;
            let socket = client::heard(&cluster.client, (way.client(), port), way.vip(port))?;
            let before = router.quiet()?;
            for seed in 0..DATAGRAMS {
                let request = request(cluster, way, port, seed);
                ensure!(request.len() == 6, "{} fragments", request.len());
                request.iter().try_for_each(|fragment| sender.send(fragment))?;
                let mut buffer = vec![0; 65_536];
                let length = socket.recv(&mut buffer).with_context(|| format!("no echo of {seed}"))?;
                ensure!(buffer[..length] == data(LARGE, seed), "the echo of {seed} is another one");
            }
            let after = router.quiet()?;
            ensure!(held(&after) - held(&before) > DATAGRAMS as u64, "they came in order");
            ensure!(dropped(&after) == dropped(&before), "{:?} {:?}", dropped(&before), dropped(&after));
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn eight_kilobytes_in_six_fragments_shuffled_two_armed() -> Result<()> {
    all_arrive(Layout::TwoArmed)
}

#[test]
fn eight_kilobytes_in_six_fragments_shuffled_one_armed() -> Result<()> {
    all_arrive(Layout::OneArmed)
}
