//! What users do: pages, downloads, uploads, names, datagrams; and what the router itself answers.

use std::{io::Read, io::Write, net::Shutdown, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{self, Cluster, Layout},
    ipv6::{self, CLIENT, ROUTER, VIP, endpoint, real_server, vip, with_cluster},
    nginx::{BIG, big_file},
    packet::show_mac,
    servers::Server,
    tally::{self, Tally, Traffic},
    wait::{self, PATIENCE},
};

use crate::{answering, nothing_dropped, ping, start, stats, udp};

/// Both families at once, and each client is known to the servers by its own address.
fn pages(layout: Layout) -> Result<()> {
    with_cluster(layout, |cluster| {
        let nginx = cluster.start_web()?;
        let config = ipv6::config(cluster).service(cluster.web().scheduler("rr")).service(ipv6::web(cluster));
        let router = start(cluster, &config)?;
        let wire = Capture::start(&cluster.client, "eth0", "tcp")?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        ensure!(client::get(&cluster.client, cluster::vip(80), 30)?.counts()? == [10, 10, 10]);
        for server in &nginx {
            let clients = server.wait_logged(20)?;
            let of = |address: String| clients.iter().filter(|client| **client == address).count();
            let counts = (of(CLIENT.to_string()), of(cluster::CLIENT.to_string()));
            ensure!(counts == (10, 10), "{}: {clients:?}", server.name());
        }

        // The virtual address is the router's, by its MAC.
        let neighbours = cluster.client.ip_json(&format!("-6 neigh show {VIP} dev eth0"))?;
        ensure!(neighbours[0]["lladdr"] == show_mac(cluster.router_mac()), "{neighbours}");
        nothing_dropped(&router)?;
        for stats in [stats(&router, "tcp", vip(80))?, stats(&router, "tcp", cluster::vip(80))?] {
            ensure!(stats.connections == 30 && stats.packets_in >= 30 * 5, "{stats:?}");
            ensure!((stats.packets_out > 0) == (layout == Layout::TwoArmed), "{stats:?}");
        }
        // Nothing with a real server's address reaches the client: neither as address nor inside anything.
        let frames = wire.frames()?;
        ensure!(frames.iter().filter(|frame| frame.mentions(VIP)).count() >= 30 * 8, "{}", frames.len());
        for index in 0..3 {
            let address = real_server(layout, index);
            ensure!(!frames.iter().any(|frame| frame.mentions(address)), "{address} seen at the client");
        }
        router.finish()
    })
}

#[test]
fn pages_in_turn_nat() -> Result<()> {
    pages(Layout::TwoArmed)
}

#[test]
fn pages_in_turn_dr() -> Result<()> {
    pages(Layout::OneArmed)
}

/// What both ends have counted of a service's traffic is what the service says.
fn assert_equal(stats: harness::listing::Stats, traffic: Traffic) -> Result<()> {
    let (sent, received) = (traffic.sent, traffic.received);
    ensure!((stats.packets_in, stats.bytes_in) == (sent.packets, sent.bytes), "{stats:?}, {traffic:?}");
    ensure!(
        (stats.packets_out, stats.bytes_out) == (received.packets, received.bytes),
        "{stats:?}, {traffic:?}"
    );
    Ok(())
}

/// Counts at the client and at all servers.
fn tallies(cluster: &Cluster, protocol: &str, port: u16, server_port: u16) -> Result<(Tally, Vec<Tally>)> {
    let near = Tally::of_client(&cluster.client, &VIP.to_string(), protocol, port)?;
    let far = cluster.real_servers.iter().map(|server| Tally::of_server(server, protocol, server_port));
    Ok((near, far.collect::<Result<_>>()?))
}

#[test]
fn a_long_download_arrives_as_it_was_sent() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let (near, far) = tallies(cluster, "tcp", 80, 8080)?;
        let router = start(cluster, &ipv6::config(cluster).service(ipv6::web(cluster)))?;
        let mut download = client::start_download(&cluster.client, vip(80), "100m", "download")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        let bytes = std::fs::read(cluster.state().file("download"))?;
        ensure!(bytes.len() == BIG && bytes == big_file(), "{} bytes came", bytes.len());
        let traffic = tally::wait_equal(&near, &far)?;
        nothing_dropped(&router)?;
        let stats = stats(&router, "tcp", vip(80))?;
        ensure!(stats.connections == 1, "{stats:?}");
        assert_equal(stats, traffic)?;
        router.finish()
    })
}

/// Says `same` to whoever has sent the big file, and has ended.
pub fn sinks(cluster: &Cluster, port: u16) -> Result<Vec<Server>> {
    let sink = |(index, server)| {
        Server::tcp(server, endpoint(cluster, index, port), |mut stream| {
            let mut bytes = Vec::new();
            if stream.read_to_end(&mut bytes).is_ok() {
                let _ = stream.write_all(if bytes == big_file() { b"same" } else { b"another" });
            }
        })
    };
    cluster.real_servers.iter().enumerate().map(sink).collect()
}

/// Sends the big file, and waits for the word that it has come.
pub fn upload(cluster: &Cluster, port: u16) -> Result<()> {
    let mut stream = client::connect(&cluster.client, vip(port))?;
    stream.write_all(&big_file())?;
    stream.shutdown(Shutdown::Write)?;
    let mut word = String::new();
    stream.read_to_string(&mut word)?;
    ensure!(word == "same", "{word:?} came");
    Ok(())
}

#[test]
fn a_long_upload_arrives_as_it_was_sent() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _sinks = sinks(cluster, 9)?;
        let (near, far) = tallies(cluster, "tcp", 9, 9)?;
        let service = ipv6::balanced(cluster, "tcp", 9, 9);
        let router = start(cluster, &ipv6::config(cluster).service(service))?;
        upload(cluster, 9)?;
        let traffic = tally::wait_equal(&near, &far)?;
        nothing_dropped(&router)?;
        assert_equal(stats(&router, "tcp", vip(9))?, traffic)?;
        router.finish()
    })
}

fn iperf(protocol: &str, words: &str) -> Result<()> {
    const PORT: u16 = 5201;
    with_cluster(Layout::TwoArmed, |cluster| {
        let server = &cluster.real_servers[0];
        let (near, far) = tallies(cluster, protocol, PORT, PORT)?;
        let mut daemon =
            server.command("iperf3").words("-6 --server --one-off --forceflush").spawn("iperf3")?;
        wait::until("iperf3 listens", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("Server listening"));
            Ok(())
        })?;
        let service = |protocol| ipv6::service(cluster, protocol, PORT).server(endpoint(cluster, 0, PORT), 1);
        let config = ipv6::config(cluster).service(service("tcp")).service(service("udp"));
        let router = cluster.start_router(&config)?;
        let iperf = cluster.client.command("iperf3").args(["-6", "--client", &VIP.to_string(), "--json"]);
        let output =
            iperf.words("--time 3 --window 256K").words(words).limit(Duration::from_secs(40)).run()?;
        daemon.wait(PATIENCE)?;
        let report: serde_json::Value = serde_json::from_str(&output)?;
        let bytes =
            report["end"]["sum_received"]["bytes"].as_u64().or(report["end"]["sum"]["bytes"].as_u64());
        ensure!(bytes.with_context(|| output.clone())? > 1_000_000, "{output}");
        let traffic = tally::wait_equal(&near, &far)?;
        router.quiet()?;
        assert_equal(stats(&router, protocol, vip(PORT))?, traffic)?;
        router.finish()
    })
}

#[test]
fn iperf3_tcp() -> Result<()> {
    iperf("tcp", "")
}

#[test]
fn iperf3_tcp_in_the_other_direction() -> Result<()> {
    iperf("tcp", "--reverse")
}

/// At a pace that the socket driver keeps up with.
#[test]
fn iperf3_udp() -> Result<()> {
    iperf("udp", "--udp --bitrate 10M --length 1200")
}

fn names_and_datagrams(layout: Layout) -> Result<()> {
    with_cluster(layout, |cluster| {
        let mut servers = Vec::new();
        for (index, namespace) in cluster.real_servers.iter().enumerate() {
            servers.push(Server::dns(namespace, answering(cluster, index, 53), &format!("rs{}", index + 1))?);
            servers.push(Server::udp_echo(namespace, answering(cluster, index, 7))?);
        }
        let config = ipv6::config(cluster).service(ipv6::balanced(cluster, "udp", 53, 53));
        let router = start(cluster, &config.service(ipv6::balanced(cluster, "udp", 7, 7)))?;
        // Every dig has a port of its own and is a connection of its own.
        let mut counts = [0; 3];
        for port in 6000..6030 {
            let name = client::dig(&cluster.client, port, vip(53))?;
            let index = ["rs1", "rs2", "rs3"].iter().position(|known| *known == name).context(name)?;
            counts[index] += 1;
        }
        ensure!(counts == [10, 10, 10], "{counts:?}");

        // One port is one connection: all its datagrams meet the same server, and all come back.
        let before: Vec<u64> = servers.iter().map(Server::served).collect();
        let socket = udp(cluster, 5000, 7)?;
        for length in 1..=100 {
            let message = vec![length as u8; length * 14];
            socket.send(&message)?;
            let mut buffer = [0; 2048];
            let received = socket.recv(&mut buffer).with_context(|| format!("no echo of {length}"))?;
            ensure!(buffer[..received] == message);
        }
        let met: Vec<u64> =
            servers.iter().zip(before).map(|(server, before)| server.served() - before).collect();
        ensure!(met.iter().filter(|count| **count == 100).count() == 1, "one server gets all: {met:?}");

        nothing_dropped(&router)?;
        let (names, echo) = (stats(&router, "udp", vip(53))?, stats(&router, "udp", vip(7))?);
        let out = u64::from(layout == Layout::TwoArmed);
        ensure!((names.connections, names.packets_in, names.packets_out) == (30, 30, 30 * out), "{names:?}");
        ensure!((echo.connections, echo.packets_in, echo.packets_out) == (1, 100, 100 * out), "{echo:?}");
        // Addresses, ports, lengths and data: 40 + 8 bytes a datagram, and 14 to 1400.
        ensure!(echo.bytes_in == 100 * 48 + 14 * 5050, "{echo:?}");
        router.finish()
    })
}

#[test]
fn names_and_datagrams_nat() -> Result<()> {
    names_and_datagrams(Layout::TwoArmed)
}

#[test]
fn names_and_datagrams_dr() -> Result<()> {
    names_and_datagrams(Layout::OneArmed)
}

/// Linux answers, through the twin, and nobody else: one-armed, the real servers have the virtual address, too.
#[test]
fn the_router_answers_pings_and_ports_without_a_service() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let router = start(cluster, &ipv6::config(cluster).service(ipv6::web(cluster)))?;
            let wire = Capture::start(&cluster.client, "eth0", "ip6")?;
            for address in [ROUTER, VIP] {
                ping(&cluster.client, &address.to_string())?;
                ping(&cluster.client, &format!("-s 1400 {address}"))?;
            }
            let _echo = Server::tcp_echo(&cluster.router, vip(8022), "")?;
            let mut stream = client::connect(&cluster.client, vip(8022))?;
            client::echo(&mut stream, &[b'y'; 10_000])?;
            client::close(stream)?;
            let refused = client::connect(&cluster.client, vip(8023)).expect_err("nobody listens");
            ensure!(format!("{refused:#}").contains("refused"), "{refused:#}");
            let frames = wire.frames()?;
            let own = harness::packet::mac_of(cluster::CLIENT);
            let others: Vec<_> = frames
                .iter()
                .filter(|frame| {
                    frame.mentions(VIP) && ![own, cluster.router_mac()].contains(&frame.source_mac())
                })
                .collect();
            ensure!(frames.len() > 20 && others.is_empty(), "{} frames, {others:02x?}", frames.len());
            nothing_dropped(&router)?;
            router.finish()
        })?;
    }
    Ok(())
}

/// No health check: nobody has talked to the real servers yet, and nobody knows their MACs.
#[test]
fn the_first_connection_ever_is_not_lost() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let _nginx = cluster.start_web()?;
            let router = cluster.start_router(&ipv6::config(cluster).service(ipv6::web(cluster)))?;
            // TCP without extension headers, and SYN alone: requests only.
            let wire = Capture::start(&cluster.client, "eth0", "ip6[6] == 6 and ip6[53] == 2")?;
            ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
            let frames = wire.finish("three requests", |frames| frames.len() >= 3)?;
            // A second SYN for one connection would mean that the first was lost while the neighbour was asked for.
            ensure!(frames.len() == 3, "a SYN was lost: {frames:02x?}");
            router.finish()
        })?;
    }
    Ok(())
}

#[test]
fn a_neighbour_that_changes_its_mac_is_followed() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = ipv6::config(cluster).service(ipv6::web(cluster).checked());
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 9)?.counts()? == [3, 3, 3]);
        let server = &cluster.real_servers[1];
        server.ip("link set eth0 address 02:00:0a:00:00:99")?;
        // The server says so, as a machine that takes over an address does.
        server.sysctl("net/ipv6/conf/eth0/ndisc_notify", 1)?;
        server.ip("link set eth0 down\nlink set eth0 up")?;
        let address = real_server(cluster.layout(), 1);
        server.ip(&format!(
            "address replace {address}/64 dev eth0 nodad\nroute replace default via {}",
            ipv6::gateway(cluster.layout())
        ))?;
        wait::until("requests reach it at its new place", Duration::from_secs(60), || {
            let counts = client::get(&cluster.client, vip(80), 9)?.counts()?;
            ensure!(counts == [3, 3, 3], "{counts:?}");
            Ok(())
        })?;
        router.finish()
    })
}
