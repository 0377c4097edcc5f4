//! Destination NAT, seen on the wires at both sides of the router.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    nginx::BIG,
    packet::{Frame, Tcp, flag, mac_of},
    servers::Server,
    tally::{self, Tally},
    wait::PATIENCE,
    with_cluster,
};

/// Whether the frames hold all of a connection that both ends closed: each side's FIN, and its acknowledgement.
fn closed(frames: &[Frame]) -> bool {
    let fins: Vec<_> = frames
        .iter()
        .enumerate()
        .filter_map(|(index, frame)| {
            Some((index, frame.tcp().filter(|tcp| tcp.flags() & flag::FIN != 0)?.source()))
        })
        .collect();
    let (Some(first), Some(last)) = (fins.first(), fins.last()) else { return false };
    let acknowledged =
        frames[last.0 + 1..].iter().filter_map(Frame::tcp).any(|tcp| tcp.destination() == last.1);
    first.1 != last.1 && acknowledged
}

/// Identification, and the segment without what translation changes.
type Content = (u16, Vec<u8>);

/// The TCP frames of a capture, under what translation must not change; retransmissions would be equal.
fn by_content<'a>(frames: &'a [Frame], side: &str) -> Result<BTreeMap<Content, (&'a Frame, Tcp<'a>)>> {
    let mut map = BTreeMap::new();
    for frame in frames {
        let Some(tcp) = frame.tcp() else { continue };
        ensure!(tcp.ip().checksums_are_right(), "wrong checksum on {side}: {frame:02x?}");
        let key = (tcp.ip().identification(), tcp.untranslated());
        ensure!(map.insert(key, (frame, tcp)).is_none(), "sent twice on {side}: {frame:02x?}");
    }
    Ok(map)
}

/// One request, captured on both sides of the router: the client's and the bridge's port.
fn capture_a_request(cluster: &Cluster) -> Result<(Vec<Frame>, Vec<Frame>)> {
    let wan = Capture::start(&cluster.client, "eth0", "")?;
    let lan = Capture::start(&cluster.lan, "router", "")?;
    ensure!(client::get(&cluster.client, vip(80), 1)?.total() == 1);
    let wan = wan.finish("the end of the connection at the client", closed)?;
    let lan = lan.finish("the end of the connection at the real servers", closed)?;
    Ok((wan, lan))
}

#[test]
fn pcap_on_both_sides_of_a_nat_connection() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let nginx = cluster.start_web()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        // The first connection has to find its real server's MAC first, and may be sent twice meanwhile.
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        router.quiet()?;
        let (wan, lan) = capture_a_request(cluster)?;
        let (outside, inside) = (by_content(&wan, "the wan")?, by_content(&lan, "the lan")?);
        ensure!(
            outside.len() == inside.len() && outside.len() >= 8,
            "{} and {}",
            outside.len(),
            inside.len()
        );

        let user = outside.values().find(|(_, tcp)| tcp.flags() == flag::SYN).context("no SYN")?.1.source();
        let server =
            inside.values().find(|(_, tcp)| tcp.flags() == flag::SYN).context("no SYN")?.1.destination();
        ensure!((0..3).any(|index| server == cluster.endpoint(index, 8080)), "sent to {server}");
        for (key, (out_frame, out)) in &outside {
            let (in_frame, inner) = inside.get(key).context("a packet of the wan is missing on the lan")?;
            if out.source() == user {
                ensure!(out.destination() == vip(80));
                ensure!((inner.source(), inner.destination()) == (user, server), "addresses: {inner:?}");
                ensure!(inner.ip().ttl() == out.ip().ttl() - 1, "the time to live of a request: {inner:?}");
                ensure!(in_frame.source_mac() == mac_of(cluster.layout().gateway()));
                ensure!(in_frame.destination_mac() == mac_of(*server.ip()));
            } else {
                ensure!((inner.source(), inner.destination()) == (server, user), "addresses: {inner:?}");
                ensure!((out.source(), out.destination()) == (vip(80), user), "addresses: {out:?}");
                ensure!(out.ip().ttl() == inner.ip().ttl() - 1, "the time to live of an answer: {out:?}");
                ensure!(out_frame.source_mac() == cluster.router_mac());
                ensure!(out_frame.destination_mac() == mac_of(CLIENT));
            }
        }
        // Nothing with a real server's address reaches the client: neither as address nor inside anything.
        for index in 0..3 {
            let address = cluster.layout().real_server(index);
            ensure!(!wan.iter().any(|frame| frame.mentions(address)), "{address} seen at the client");
        }
        for server in &nginx {
            ensure!(server.clients()?.iter().all(|address| *address == CLIENT.to_string()));
        }
        router.finish()
    })
}

#[test]
fn nothing_with_a_real_servers_address_reaches_the_client_when_a_server_refuses() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        // No server runs: connections are refused by RST, datagrams by ICMP errors that quote the packet.
        let udp = (0..3).fold(Service::udp("nat", vip(53)).scheduler("rr"), |service, index| {
            service.server(cluster.endpoint(index, 53), 1)
        });
        let router = cluster.start_router(&cluster.config().service(cluster.web()).service(udp))?;
        let wan = Capture::start(&cluster.client, "eth0", "")?;
        let lan = Capture::start(&cluster.lan, "router", "icmp")?;
        ensure!(client::connect(&cluster.client, vip(80)).is_err());
        ensure!(client::dig(&cluster.client, 6000, vip(53)).is_err());
        lan.finish("an ICMP error of a real server", |frames| {
            frames.iter().filter_map(Frame::ipv4).any(|ip| ip.protocol() == 1)
        })?;
        router.quiet()?;
        // A last packet in order behind everything else: the answer to a ping.
        client::ping(&cluster.client, VIP)?;
        let frames = wan.finish("the ping", |frames| {
            frames.iter().filter_map(Frame::ipv4).any(|ip| ip.protocol() == 1 && ip.payload()[0] == 0)
        })?;
        for index in 0..3 {
            let address = cluster.layout().real_server(index);
            let seen: Vec<_> = frames.iter().filter(|frame| frame.mentions(address)).collect();
            ensure!(seen.is_empty(), "{address} seen at the client: {seen:02x?}");
        }
        router.finish()
    })
}

#[test]
fn a_long_download_arrives_as_it_was_sent() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let near = Tally::of_client(&cluster.client, "192.0.2.10", "tcp", 80)?;
        let far: Vec<_> = cluster
            .real_servers
            .iter()
            .map(|server| Tally::of_server(server, "tcp", 8080))
            .collect::<Result<_>>()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let mut download = client::start_download(&cluster.client, vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        let bytes = std::fs::read(cluster.state().file("download"))?;
        ensure!(bytes.len() == BIG && bytes == harness::nginx::big_file(), "{} bytes came", bytes.len());
        let traffic = tally::wait_equal(&near, &far)?;
        router.quiet()?;
        let stats = router.service()?.stats;
        ensure!(stats.connections == 1, "{stats:?}");
        ensure!(
            (stats.packets_in, stats.bytes_in) == (traffic.sent.packets, traffic.sent.bytes),
            "{stats:?}"
        );
        ensure!(
            (stats.packets_out, stats.bytes_out) == (traffic.received.packets, traffic.received.bytes),
            "{stats:?} but {traffic:?}"
        );
        router.finish()
    })
}

#[test]
fn connections_in_both_directions_carry_data_of_every_size() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers: Vec<_> = (0..3)
            .map(|index| Server::tcp_echo(&cluster.real_servers[index], cluster.endpoint(index, 8080), ""))
            .collect::<Result<_>>()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let mut stream = client::connect(&cluster.client, vip(80))?;
        // Odd and even, empty checksums and full segments: incremental updates must hold for all.
        for length in (1..200).chain([1447, 1448, 1449, 20_000, 65_536]) {
            let message: Vec<u8> = (0..length).map(|at: u32| (at * 7 + length) as u8).collect();
            client::echo(&mut stream, &message).with_context(|| format!("{length} bytes"))?;
        }
        client::close(stream)?;
        router.finish()
    })
}
