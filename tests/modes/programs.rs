//! What people measure and look around with: iperf3, dig, traceroute, tracepath and mtr.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout},
    config::Config,
    ipv6,
    listing::Stats,
    process::Daemon,
    router::Router,
    servers::Server,
    tunnel::forget_paths,
    wait::{self, PATIENCE},
};
use serde_json::Value;

use crate::way::{Mode, Numbered, Way, on_each, start, with_ways};

/// The router's configuration with a service of each protocol on each way's port.
fn both_protocols(cluster: &Cluster, ways: &[Numbered]) -> Config {
    ways.iter().fold(ipv6::config(cluster), |config, (way, port)| {
        let service = |protocol| way.service(cluster, protocol, *port);
        config.service(service("tcp")).service(service("udp"))
    })
}

fn names(layout: Layout) -> Result<()> {
    with_ways(layout, |cluster, ways| {
        let router = start(cluster, ways, &both_protocols(cluster, ways), "udp")?;
        on_each(ways, |way, port| {
            let _dns = Server::dns(way.machine(cluster), way.listens(cluster, port), "rs")?;
            (0..5).try_for_each(|number| {
                client::dig(&cluster.client, port + number, way.vip(port)).map(drop)
            })?;
            ensure!(stats(&router, "udp", way, port)?.connections == 5);
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn names_two_armed() -> Result<()> {
    names(Layout::TwoArmed)
}

#[test]
fn names_one_armed() -> Result<()> {
    names(Layout::OneArmed)
}

/// What is sent over TCP, in bytes.
const STREAM: u64 = 2 << 20;
/// And over UDP, where a datagram has 1200 of them.
const DATAGRAMS: u64 = 400;

/// The totals of a way's service.
fn stats(router: &Router, protocol: &str, way: Way, port: u16) -> Result<Stats> {
    let services = router.services()?;
    let is_it = |service: &&harness::listing::Service| {
        service.address == way.vip(port) && service.protocol.eq_ignore_ascii_case(protocol)
    };
    Ok(services.iter().find(is_it).context("no such service")?.stats)
}

/// A server where the way ends.
fn iperf3_server(cluster: &Cluster, way: Way, port: u16) -> Result<Daemon> {
    let at = way.listens(cluster, port);
    let mut server = way
        .machine(cluster)
        .command("iperf3")
        .words(&format!("--server --forceflush --bind {} --port {}", at.ip(), at.port()))
        .spawn(&format!("iperf3-{port}"))?;
    wait::until("iperf3 listens", PATIENCE, || {
        server.check_running()?;
        ensure!(server.log().contains("Server listening"));
        Ok(())
    })?;
    Ok(server)
}

/// The end of iperf3's report, of a run with these words.
fn iperf3(cluster: &Cluster, way: Way, port: u16, words: &str) -> Result<Value> {
    let to = way.vip(port);
    // A window of fewer packets than the driver's ring has slots: nothing is lost for want of room.
    let words = format!("--client {} --port {} --json --window 128K {words}", to.ip(), to.port());
    let report =
        cluster.client.command("iperf3").words(&words).limit(Duration::from_secs(40)).run().context(words)?;
    let mut report: Value = serde_json::from_str(&report)?;
    Ok(report["end"].take())
}

fn streams_and_datagrams(layout: Layout) -> Result<()> {
    with_ways(layout, |cluster, ways| {
        let router = start(cluster, ways, &both_protocols(cluster, ways), "tcp")?;
        on_each(ways, |way, port| {
            let _server = iperf3_server(cluster, way, port)?;
            for words in ["", "--reverse", "--set-mss 400"] {
                let before = stats(&router, "tcp", way, port)?;
                let end = iperf3(cluster, way, port, &format!("--bytes {STREAM} {words}"))?;
                let received = end["sum_received"]["bytes"].as_u64().context("no bytes")?;
                // When all is sent, iperf3 ends: something may still be on its way.
                ensure!(received + (256 << 10) >= STREAM, "{words}: {received} received");
                router.quiet()?;
                let more = stats(&router, "tcp", way, port)? - before;
                ensure!(more.connections == 2, "one to control, one for data: {more:?}");
                // 400 bytes each, of which options are some, behind the headers of IPv6 and TCP.
                let short = more.bytes_in <= (400 + 40 + 20) * more.packets_in;
                ensure!(words != "--set-mss 400" || short, "{more:?}");
            }
            let words = format!("--udp --bitrate 10M --length 1200 --bytes {}", DATAGRAMS * 1200);
            let end = iperf3(cluster, way, port, &words)?;
            let [packets, lost] = ["packets", "lost_packets"].map(|name| end["sum"][name].as_u64());
            ensure!((packets, lost) == (Some(DATAGRAMS), Some(0)), "{end:#}");
            let all = stats(&router, "udp", way, port)?;
            ensure!(all.connections == 1 && all.packets_in > DATAGRAMS, "{all:?}");
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn streams_and_datagrams_two_armed() -> Result<()> {
    streams_and_datagrams(Layout::TwoArmed)
}

#[test]
fn streams_and_datagrams_one_armed() -> Result<()> {
    streams_and_datagrams(Layout::OneArmed)
}

/// The hops by the lines that a program says of them, each `NUMBER[.|--] ADDRESS ...`.
fn hops(said: &str) -> Vec<&str> {
    let is_hop = |line: &&str| line.trim_start().starts_with(|first: char| first.is_ascii_digit());
    said.lines().filter(is_hop).filter_map(|line| line.split_whitespace().nth(1)).collect()
}

/// Two hops to a virtual address: the router, and what is behind it, which answers by that address. The router's own server
/// is no hop behind it.
fn the_way_is_seen(layout: Layout) -> Result<()> {
    /// Of the ports of a way: one that nobody listens on, and the first of those that tracepath asks.
    const CLOSED: u16 = 1;
    const PROBED: u16 = 10;
    with_ways(layout, |cluster, ways| {
        let ways: Vec<_> = ways.iter().copied().filter(|(way, _)| way.mode != Mode::Local).collect();
        for server in &cluster.real_servers {
            server.sysctl("net/ipv4/icmp_ratelimit", 0)?;
            server.sysctl("net/ipv6/icmp/ratelimit", 0)?;
        }
        let config = ways
            .iter()
            .fold(ipv6::config(cluster), |config, (way, port)| way.marked(cluster, config, *port, 50));
        let router = start(cluster, &ways, &config, "tcp")?;
        on_each(&ways, |way, port| {
            let _echo = Server::tcp_echo(way.machine(cluster), way.listens(cluster, port), "")?;
            let (closed, address) = (port + CLOSED, way.vip(port).ip());
            let expected = [way.router().to_string(), address.to_string()];
            for (program, words) in [
                ("traceroute", format!("-n -q 2 -w 3 -T -p {port}")),
                ("traceroute", format!("-n -q 2 -w 3 -U -p {closed}")),
                ("mtr", format!("-n -r -c 2 -i 0.2 -G 0.5 --tcp -P {port}")),
                ("mtr", format!("-n -r -c 2 -i 0.2 -G 0.5 --udp -P {closed}")),
            ] {
                let command = cluster.client.command(program).arg(way.option()).words(&words);
                let said = command.arg(address.to_string()).limit(Duration::from_secs(30)).run()?;
                ensure!(hops(&said) == expected, "{program} {words}: {said}");
            }
            forget_paths(&cluster.client)?;
            let words = format!("{} -n -p {} {address}", way.option(), port + PROBED);
            let said = cluster.client.command("tracepath").words(&words).run()?;
            let mtu = 1500 - way.overhead();
            ensure!(said.contains(&format!("Resume: pmtu {mtu} hops 2 ")), "{said}");
            ensure!(expected.iter().all(|hop| hops(&said).contains(&&**hop)), "{said}");
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn the_way_is_seen_two_armed() -> Result<()> {
    the_way_is_seen(Layout::TwoArmed)
}

#[test]
fn the_way_is_seen_one_armed() -> Result<()> {
    the_way_is_seen(Layout::OneArmed)
}
