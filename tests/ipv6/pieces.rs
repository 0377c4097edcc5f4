//! Extension headers: fragments, and options that only the destination looks at.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{self, Cluster, Layout},
    ipv6::{self, CLIENT, endpoint, vip, with_cluster},
    listing::Counters,
    packet::{Craft, ETHERNET, ipv6_fragments, mac_of},
    pieces::{LARGE, data, shuffled},
    raw::RawSender,
    servers::Server,
    wait::{self, PATIENCE},
};

use crate::{answering, nothing_dropped, start, udp};

const ECHO: u16 = 7;
/// What a packet of 1500 bytes holds behind its header.
const IN_A_PACKET: usize = 1460;

/// The fragments of a large datagram to the echo service, in an order that the seed decides.
fn request(cluster: &Cluster, seed: usize) -> Vec<Vec<u8>> {
    let craft = Craft::udp((CLIENT, 5000), vip(ECHO), &data(LARGE, seed));
    let craft = craft.between(mac_of(cluster::CLIENT), cluster.router_mac());
    shuffled(ipv6_fragments(&craft.build(), IN_A_PACKET, 1000 + seed as u32), seed)
}

fn receive(socket: &UdpSocket, expected: &[u8], what: &str) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).with_context(|| format!("{what} did not come"))?;
    ensure!(buffer[..length] == *expected, "{what} is another one");
    Ok(())
}

fn held(counters: &Counters) -> u64 {
    counters.workers.iter().map(|worker| worker.held).sum()
}

fn shuffled_datagrams(layout: Layout) -> Result<()> {
    with_cluster(layout, |cluster| {
        const DATAGRAMS: usize = 60;
        let servers = cluster.real_servers.iter().enumerate();
        let echo = servers.map(|(index, server)| Server::udp_echo(server, answering(cluster, index, ECHO)));
        let servers = echo.collect::<Result<Vec<_>>>()?;
        let config = ipv6::config(cluster).with_fragments();
        let config = config.service(ipv6::balanced(cluster, "udp", ECHO, ECHO));
        let router = start(cluster, &config)?;
        let socket = client::heard(&cluster.client, (CLIENT, 5000), vip(ECHO))?;
        let before = router.quiet()?;
        let served = servers.iter().map(Server::served).collect::<Vec<_>>();
        let sender = RawSender::open(&cluster.client, "eth0")?;
        for seed in 0..DATAGRAMS {
            let request = request(cluster, seed);
            ensure!(request.len() == 6);
            request.iter().try_for_each(|fragment| sender.send(fragment))?;
            receive(&socket, &data(LARGE, seed), &format!("the echo of datagram {seed}"))?;
        }
        // And as Linux makes fragments of what a program sends.
        for seed in 0..DATAGRAMS {
            socket.send(&data(LARGE, seed))?;
            receive(&socket, &data(LARGE, seed), &format!("the echo of Linux' datagram {seed}"))?;
        }
        let met: Vec<u64> =
            servers.iter().zip(served).map(|(server, before)| server.served() - before).collect();
        ensure!(
            met.iter().filter(|count| **count == 2 * DATAGRAMS as u64).count() == 1,
            "one gets all: {met:?}"
        );

        let after = nothing_dropped(&router)?;
        // The echo comes back in six fragments, too, in the order of its making.
        let each_way = if layout == Layout::TwoArmed { 2 } else { 1 };
        let forwarded = after.fates()["forwarded"] - before.fates()["forwarded"];
        ensure!(forwarded == 2 * 6 * DATAGRAMS as u64 * each_way, "{forwarded} forwarded");
        let held = held(&after) - held(&before);
        ensure!(held > DATAGRAMS as u64, "only {held} had to wait: they came in order");
        router.finish()
    })
}

#[test]
fn eight_kilobytes_in_six_fragments_shuffled_nat() -> Result<()> {
    shuffled_datagrams(Layout::TwoArmed)
}

#[test]
fn eight_kilobytes_in_six_fragments_shuffled_dr() -> Result<()> {
    shuffled_datagrams(Layout::OneArmed)
}

/// A client each of whose packets carries padding as destination options (RFC 8200, 4.6), and which wants back what it says.
const WITH_OPTIONS: &str = "
import socket, sys
stream = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
stream.settimeout(10)
stream.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
stream.connect((sys.argv[1], int(sys.argv[2])))
for length in [1, 2, 1000, 1399, 20000, 65536]:
    message = bytes(n * 7 & 255 for n in range(length))
    stream.sendall(message)
    answer = b''
    while len(answer) < length:
        answer += stream.recv(65536)
    assert answer == message, length
";

#[test]
fn a_connection_with_destination_options() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let address = match layout {
                Layout::TwoArmed => endpoint(cluster, 0, ECHO),
                Layout::OneArmed => vip(ECHO),
            };
            let _echo = Server::tcp_echo(&cluster.real_servers[0], address, "")?;
            let service = ipv6::service(cluster, "tcp", ECHO).server(endpoint(cluster, 0, ECHO), 1);
            let router = start(cluster, &ipv6::config(cluster).service(service))?;
            let wire = Capture::start(&cluster.real_servers[0], "eth0", "ip6")?;
            let vip = vip(ECHO);
            let python = cluster.client.command("/usr/bin/python3").args(["-c", WITH_OPTIONS]);
            python.args([vip.ip().to_string(), vip.port().to_string()]).run()?;
            let optional =
                wire.frames()?.iter().filter(|frame| frame.bytes.get(ETHERNET + 6) == Some(&60)).count();
            ensure!(optional > 60, "{optional} with options have come to the server");
            nothing_dropped(&router)?;
            let stats = crate::stats(&router, "tcp", vip)?;
            ensure!(stats.connections == 1 && stats.packets_in > 60, "{stats:?}");
            router.finish()
        })?;
    }
    Ok(())
}

/// What nobody should send: each is counted under one name, none reaches a server, and all goes on.
#[test]
fn rubbish_is_counted_and_harms_nobody() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let echo = Server::udp_echo(&cluster.real_servers[0], endpoint(cluster, 0, ECHO))?;
        let service = ipv6::service(cluster, "udp", ECHO).server(endpoint(cluster, 0, ECHO), 1);
        let router = cluster.start_router(&ipv6::config(cluster).service(service))?;
        let socket = udp(cluster, 5000, ECHO)?;
        socket.send(b"first")?;
        receive(&socket, b"first", "the first echo")?;
        let (before, served) = (router.quiet()?, echo.served());

        let good = Craft::udp((CLIENT, 5001), vip(ECHO), &[7; 64]);
        let good = good.between(mac_of(cluster::CLIENT), cluster.router_mac()).build();
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = good.clone();
            frame[ETHERNET + at..ETHERNET + at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let all = [
            ("another version", with(0, &[0x40])),
            ("a length beyond the frame", with(4, &[0x7f, 0xff])),
            ("a length without a whole UDP header", with(4, &[0, 7])),
            ("no length", with(4, &[0, 0])),
            ("a header cut off", good[..ETHERNET + 39].to_vec()),
            ("UDP longer than its packet", with(44, &[0x7f, 0xff])),
            ("UDP shorter than its header", with(44, &[0, 7])),
            ("destination options beyond the packet", with(6, &[60, 64, 60])),
            ("fragments of no bytes", ipv6_fragments(&good, 72, 1)[0][..ETHERNET + 48].to_vec()),
            ("the virtual address as source", with(8, &ipv6::VIP.octets())),
        ];
        let sender = RawSender::open(&cluster.client, "eth0")?;
        for (what, frame) in &all {
            sender.send(frame).context(*what)?;
        }
        let count = all.len() as u64;
        let after = wait::until("all have come", PATIENCE, || {
            let after = router.assert_accounts()?;
            let received = after.received() - before.received();
            ensure!(received >= count, "{received} of {count}");
            Ok(after)
        })?;
        let moved = |kind: &str| -> u64 {
            let (now, then) = (after.fates(), before.fates());
            let of_kind = now.iter().filter(|(name, _)| name.starts_with(kind));
            of_kind.map(|(name, count)| count - then.get(name).copied().unwrap_or(0)).sum()
        };
        ensure!(
            moved("forwarded") == 0 && echo.served() == served,
            "{:?} was {:?}",
            after.fates(),
            before.fates()
        );
        ensure!(moved("dropped") >= count, "{:?} was {:?}", after.fates(), before.fates());
        socket.send(b"last")?;
        receive(&socket, b"last", "the last echo")?;
        router.finish()
    })
}
