//! ICMPv6 errors: those that the router tells, and those of others about balanced connections.

use std::{io::ErrorKind, net::Ipv6Addr, time::Duration};

use anyhow::{Result, bail, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{Cluster, Layout},
    ipv6::{self, ROUTER, VIP, endpoint, vip, with_cluster},
    netns::Namespace,
    nginx::big_file,
    packet::{ETHERNET, Frame},
    servers::Server,
    wait::{self, PATIENCE},
};

use crate::{
    ping,
    traffic::{sinks, upload},
    udp,
};

/// Source, type and code of an ICMPv6 message (RFC 4443).
fn message(frame: &Frame) -> Option<(Ipv6Addr, u8, u8)> {
    let ip = frame.bytes.get(ETHERNET..)?;
    let source: [u8; 16] = ip.get(8..24)?.try_into().ok()?;
    (ip[6] == 58).then_some((source.into(), *ip.get(40)?, *ip.get(41)?))
}

/// Waits for an ICMPv6 error at the client; all that came until then.
fn errors(wire: Capture) -> Result<Vec<(Ipv6Addr, u8, u8)>> {
    let errors = |frames: &[Frame]| {
        frames.iter().filter_map(message).filter(|(_, kind, _)| *kind < 128).collect::<Vec<_>>()
    };
    Ok(errors(&wire.finish("an error", |frames| !errors(frames).is_empty())?))
}

/// As a traceroute meets it: of a service's packet, and of one that Linux would route.
#[test]
fn the_end_of_the_hop_limit_is_told_by_the_router() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = Server::udp_echo(&cluster.real_servers[0], endpoint(cluster, 0, 7))?;
        let service = ipv6::service(cluster, "udp", 7).server(endpoint(cluster, 0, 7), 1);
        let router = cluster.start_router(&ipv6::config(cluster).service(service))?;
        ping(&cluster.client, &VIP.to_string())?;
        let wire = Capture::start(&cluster.client, "eth0", "icmp6")?;
        let socket = udp(cluster, 33_434, 7)?;
        socket2::SockRef::from(&socket).set_unicast_hops_v6(1)?;
        socket.send(b"how far")?;
        // Time exceeded in transit (RFC 4443, 3.3).
        let told = errors(wire)?;
        ensure!(told == [(ROUTER, 3, 0)], "{told:?}");
        ensure!(
            router.counters()?.fates().get("dropped ttl_expired") == Some(&1),
            "{:?}",
            router.counters()?
        );
        // Far enough.
        socket2::SockRef::from(&socket).set_unicast_hops_v6(2)?;
        wait::until("the echo", PATIENCE, || {
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send(b"how far")?;
            Ok(socket.recv(&mut [0; 16])?)
        })?;

        cluster.client.ip(&format!("route add 2001:db8:a::/64 via {ROUTER}"))?;
        let beyond = ipv6::real_server(cluster.layout(), 0);
        ping(&cluster.client, &beyond.to_string())?;
        let said = ping(&cluster.client, &format!("-t 1 {beyond}")).expect_err("it is too far");
        ensure!(format!("{said:#}").contains(&format!("From {ROUTER}")), "{said:#}");
        router.finish()
    })
}

#[test]
fn a_client_learns_at_once_that_no_server_listens() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        cluster.real_servers[0].sysctl("net/ipv6/icmp/ratelimit", 0)?;
        let service = ipv6::service(cluster, "udp", 53).server(endpoint(cluster, 0, 53), 1);
        let router = cluster.start_router(&ipv6::config(cluster).service(service))?;
        let wire = Capture::start(&cluster.client, "eth0", "icmp6")?;
        refused(cluster, 53)?;
        let told = errors(wire)?;
        ensure!(told.iter().all(|told| *told == (VIP, 1, 4)), "{told:?}");
        router.finish()
    })
}

/// A socket hears of errors only that quote what it has sent itself.
fn refused(cluster: &Cluster, port: u16) -> Result<()> {
    let socket = udp(cluster, 5000, port)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    wait::until("the refusal", PATIENCE, || {
        socket.send(b"?")?;
        match socket.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => bail!("{other:?}"),
        }
    })
}

#[test]
fn a_service_without_a_server_says_so() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        // All are found dead: nobody listens.
        let web = ipv6::web(cluster).checked();
        let idle = ipv6::service(cluster, "udp", 53).server(endpoint(cluster, 0, 53), 0);
        let router = cluster.start_router(&ipv6::config(cluster).service(web).service(idle))?;
        (0..3).try_for_each(|index| wait_down(&router, index))?;
        let wire = Capture::start(&cluster.client, "eth0", "icmp6")?;
        let error = client::connect(&cluster.client, vip(80)).expect_err("nobody takes connections");
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        refused(cluster, 53)?;
        // Port unreachable (RFC 4443, 3.1), by the address that was asked.
        let told = errors(wire)?;
        ensure!(told.iter().all(|told| *told == (VIP, 1, 4)), "{told:?}");
        ensure!(router.counters()?.fates().get("dropped no_server").is_some_and(|count| *count >= 2));
        router.finish()
    })
}

fn wait_down(router: &harness::router::Router, index: usize) -> Result<()> {
    wait::until("a server is found dead", PATIENCE, || {
        let services = router.services()?;
        let server =
            services.iter().find(|service| service.address == vip(80)).map(|web| &web.servers[index]);
        ensure!(server.is_some_and(|server| !server.up), "{server:?}");
        Ok(())
    })
}

fn assert_downloaded(from: &Namespace) -> Result<()> {
    let mut download = client::start_download(from, vip(80), "100m", "download")?;
    ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
    let bytes = std::fs::read(from.state().file("download"))?;
    ensure!(bytes == big_file(), "{} bytes came", bytes.len());
    Ok(())
}

/// Here it is the router itself who cannot send what clients and servers send.
#[test]
fn the_mtu_of_a_port_is_found() -> Result<()> {
    for narrow in [0, 1] {
        with_cluster(Layout::TwoArmed, |cluster| {
            let _nginx = cluster.start_web()?;
            let _sinks = sinks(cluster, 9)?;
            let config = ipv6::config(cluster).service(ipv6::web(cluster));
            let mut config = config.service(ipv6::balanced(cluster, "tcp", 9, 9));
            config.ports[narrow].mtu = Some(1280);
            let router = cluster.start_router(&config)?;
            assert_downloaded(&cluster.client)?;
            upload(cluster, 9)?;
            let too_big = router.counters()?.fates().get("dropped too_big").copied();
            ensure!(too_big.is_some_and(|count| count > 0), "{too_big:?}");
            // The client keeps what it was told, as a server does.
            let known = cluster.client.ip_json(&format!("-6 route get {VIP}"))?.to_string();
            ensure!(known.contains("\"mtu\":1280") == (narrow == 1), "{known}");
            router.finish()
        })?;
    }
    Ok(())
}
