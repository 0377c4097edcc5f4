//! Tunnels of IPv6 and across families: 6in6, 6in4 and 4in6, in one router beside each other.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{self, Cluster, Layout},
    config::{Config, Service},
    ipv6::{self, CLIENT, VIP, switch_on, vip, with_cluster},
    netns::Namespace,
    packet::Frame,
    pieces::data,
    servers::Server,
    shm::Place,
    tunnel::{End, Kind, path_mtu, through},
    wait::{self, PATIENCE},
};

use crate::start;

/// How much is sent through a tunnel, and comes back beside it.
const MUCH: usize = 1 << 20;
const ECHO: u16 = 7;

/// Who is inside of whom.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pair {
    SixInSix,
    SixInFour,
    FourInSix,
}

impl Pair {
    const ALL: [Pair; 3] = [Pair::SixInSix, Pair::SixInFour, Pair::FourInSix];

    /// A port of the virtual address.
    fn vip(self, port: u16) -> SocketAddr {
        match self {
            Pair::FourInSix => cluster::vip(port).into(),
            Pair::SixInSix | Pair::SixInFour => vip(port),
        }
    }

    /// A port of the `index`th real server.
    fn server(self, cluster: &Cluster, index: usize, port: u16) -> SocketAddr {
        match self {
            Pair::SixInFour => cluster.endpoint(index, port).into(),
            Pair::SixInSix | Pair::FourInSix => ipv6::endpoint(cluster, index, port),
        }
    }

    fn overhead(self, kind: Kind) -> usize {
        match self {
            Pair::SixInFour => kind.overhead(),
            Pair::SixInSix | Pair::FourInSix => kind.overhead_over_ipv6(),
        }
    }

    /// On this port, by this protocol, with the first real server.
    fn service(self, cluster: &Cluster, protocol: &'static str, port: u16, kind: Kind) -> Service {
        let service = Service { protocol, ..Service::tcp("tunnel", self.vip(port)) };
        service.setting(&kind.setting()).server(self.server(cluster, 0, port), 1)
    }
}

/// The web of both families, each with servers of both.
fn mixed_web(cluster: &Cluster, kind: Kind) -> [Service; 2] {
    [cluster::vip(80).into(), vip(80)].map(|address: SocketAddr| {
        let service = through(Service::tcp("tunnel", address).scheduler("rr"), kind);
        service
            .server(ipv6::endpoint(cluster, 0, 80), 1)
            .server(cluster.endpoint(1, 80), 1)
            .server(ipv6::endpoint(cluster, 2, 80), 1)
    })
}

fn with(config: Config, services: impl IntoIterator<Item = Service>) -> Config {
    services.into_iter().fold(config, Config::service)
}

fn pages_and_files_both_ways(kind: Kind) -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut ends = End::of_all_for_both(cluster, kind)?;
        let config = with(ipv6::config(cluster), mixed_web(cluster, kind));
        let config = Pair::ALL
            .into_iter()
            .zip(9000..)
            .fold(config, |config, (pair, port)| config.service(pair.service(cluster, "tcp", port, kind)));
        let _mirrors = Pair::ALL
            .into_iter()
            .zip(9000..)
            .map(|(pair, port)| Server::tcp_mirror(&cluster.real_servers[0], pair.vip(port)));
        let _mirrors = _mirrors.collect::<Result<Vec<_>>>()?;
        let router = start(cluster, &config)?;

        // On the router's wire: what it sends are outer packets, and nobody's answers come by.
        let wire = Capture::start(&cluster.lan, "router", "tcp or ip or ip6")?;
        for address in [cluster::vip(80).into(), vip(80)] {
            ensure!(client::get(&cluster.client, address, 30)?.counts()? == [10, 10, 10], "{address}");
        }
        let frames = wire.frames()?;
        let answers = frames.iter().filter_map(Frame::tcp).filter(|tcp| tcp.source() == cluster::vip(80));
        ensure!(answers.count() == 0, "an answer came by");

        for (pair, port) in Pair::ALL.into_iter().zip(9000..) {
            let before = router.count("too_big")?;
            client::there_and_back(&cluster.client, pair.vip(port), MUCH)
                .with_context(|| format!("{pair:?}"))?;
            // 6in4 has more room than 6in6 before it, and the client knows that of the first.
            let known = path_mtu(&cluster.client, pair.vip(port).ip())?;
            let expected = match pair {
                Pair::SixInFour => Pair::SixInSix.overhead(kind),
                pair => pair.overhead(kind),
            };
            ensure!(known == Some(1500 - expected as u64), "{pair:?}: {known:?}");
            ensure!(pair == Pair::SixInFour || router.count("too_big")? > before, "{pair:?}");
        }

        router.quiet()?;
        let listed = router.list()?;
        for server in ["192.0.2.12:80 ", "[2001:db8:2::11]:80 "] {
            let lines = listed.lines().filter(|line| line.contains(server) && line.contains(" Tunnel  1 "));
            ensure!(lines.count() == 2, "{server}: {listed}");
        }
        for (from, to, around) in [
            (format!("[{CLIENT}]:6000"), vip(9000), "2001:db8:2::1 -> 2001:db8:2::11"),
            (format!("[{CLIENT}]:6000"), vip(9001), "192.0.2.1 -> 192.0.2.11"),
            ("192.0.2.100:6000".to_owned(), cluster::vip(9002).into(), "2001:db8:2::1 -> 2001:db8:2::11"),
        ] {
            let told = router.rvs(&format!("explain --src {from} --dst {to}")).run()?;
            ensure!(told.contains(&format!("inside of    {} {around}", kind.listed())), "{told}");
        }
        ends.iter_mut().try_for_each(End::check)?;
        router.finish()
    })
}

#[test]
fn pages_and_files_both_ways_ipip() -> Result<()> {
    pages_and_files_both_ways(Kind::Ipip)
}

#[test]
fn pages_and_files_both_ways_gre() -> Result<()> {
    pages_and_files_both_ways(Kind::Gre)
}

#[test]
fn pages_and_files_both_ways_gue() -> Result<()> {
    pages_and_files_both_ways(Kind::Gue(5555))
}

/// The address of the real server behind the narrow link.
const FAR: &str = "2001:db8:e::11";

/// A real server behind another router, by a link of 1400 bytes.
fn behind_a_narrow_link(cluster: &Cluster) -> Result<Namespace> {
    let between = &cluster.real_servers[1];
    let far = Namespace::create(cluster.state(), "far")?;
    between.ip(&format!("link add far0 mtu 1400 type veth peer name eth0 netns {}", far.name()))?;
    switch_on(between, "far0")?;
    switch_on(&far, "eth0")?;
    // It is no real server: the virtual addresses are none of its own, and it may not take their source for a fake.
    between.ip(&format!(
        "address del {}/32 dev lo\naddress del {VIP}/128 dev lo\nlink set far0 up\n\
         address add 10.1.0.1/24 dev far0\naddress add 2001:db8:e::1/64 dev far0 nodad",
        cluster::VIP
    ))?;
    // It does not know that its segments come by a tunnel, and asks for as long ones as usual.
    far.ip(&format!(
        "link set eth0 mtu 1400 up\naddress add 10.1.0.11/24 dev eth0\naddress add {FAR}/64 dev eth0 nodad\n\
         route add default via 10.1.0.1 advmss 1460\nroute add default via 2001:db8:e::1 advmss 1440\n\
         address add {}/32 dev lo\naddress add {VIP}/128 dev lo nodad",
        cluster::VIP
    ))?;
    between.plain_wire("far0")?;
    far.plain_wire("eth0")?;
    between.sysctl("net/ipv4/ip_forward", 1)?;
    between.sysctl("net/ipv6/conf/all/forwarding", 1)?;
    Ok(far)
}

/// The router between says so of the outer packet, in its family, and the client has to hear it of its own, in its own.
fn the_mtu_beyond_the_router_is_found(kind: Kind) -> Result<()> {
    for pair in Pair::ALL {
        with_cluster(Layout::OneArmed, |cluster| {
            let far = behind_a_narrow_link(cluster)?;
            let mut end = End::start(&far, kind)?;
            switch_on(&far, "untun0")?;
            let _mirror = Server::tcp_mirror(&far, pair.vip(9000))?;
            let server: SocketAddr = match pair {
                Pair::SixInFour => "10.1.0.11:9000".parse()?,
                Pair::SixInSix | Pair::FourInSix => format!("[{FAR}]:9000").parse()?,
            };
            let service = Service::tcp("tunnel", pair.vip(9000)).setting(&kind.setting()).server(server, 1);
            let router = cluster.start_router(&ipv6::config(cluster).service(service))?;
            cluster
                .router
                .ip("route add 10.1.0.0/24 via 192.0.2.12\nroute add 2001:db8:e::/64 via 2001:db8:2::12")?;
            wait::until("the way to the far server", PATIENCE, || {
                client::there_and_back(&cluster.client, pair.vip(9000), 10)
            })?;
            client::there_and_back(&cluster.client, pair.vip(9000), MUCH)?;
            let known = path_mtu(&cluster.client, pair.vip(9000).ip())?;
            let expected = 1400 - pair.overhead(kind) as u64;
            ensure!(known == Some(expected), "{pair:?}: the client believes {known:?}, not {expected}");
            ensure!(router.count("tunnel_error")? > 0);
            end.check()?;
            router.finish()
        })?;
    }
    Ok(())
}

#[test]
fn the_mtu_beyond_the_router_is_found_ipip() -> Result<()> {
    the_mtu_beyond_the_router_is_found(Kind::Ipip)
}

#[test]
fn the_mtu_beyond_the_router_is_found_gre() -> Result<()> {
    the_mtu_beyond_the_router_is_found(Kind::Gre)
}

#[test]
fn the_mtu_beyond_the_router_is_found_gue() -> Result<()> {
    the_mtu_beyond_the_router_is_found(Kind::Gue(6080))
}

/// Nobody takes packets out there: Linux says that it does not know the protocol, and the client hears that there is no way to the host.
#[test]
fn a_server_without_a_tunnel_is_unreachable() -> Result<()> {
    for pair in Pair::ALL {
        with_cluster(Layout::OneArmed, |cluster| {
            cluster.real_servers[0].sysctl("net/ipv4/icmp_ratelimit", 0)?;
            cluster.real_servers[0].sysctl("net/ipv6/icmp/ratelimit", 0)?;
            let config = ipv6::config(cluster).service(pair.service(cluster, "tcp", 80, Kind::Ipip));
            let router = start(cluster, &config)?;
            let error = client::connect(&cluster.client, pair.vip(80)).expect_err("nobody is there");
            ensure!(format!("{error:#}").contains("No route to host"), "{pair:?}: {error:#}");
            ensure!(router.count("tunnel_error")? > 0);
            router.finish()
        })?;
    }
    Ok(())
}

/// Of IPv4 what may be fragmented goes over IPv6, where no router does that: this one is who sends the outer packet, and it does.
#[test]
fn datagrams_that_may_be_fragmented_are() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let (pair, kind) = (Pair::FourInSix, Kind::Ipip);
        let mut ends = End::of_all_for_both(cluster, kind)?;
        let _echo = Server::udp_echo(&cluster.real_servers[0], pair.vip(ECHO))?;
        let config = ipv6::config(cluster).service(pair.service(cluster, "udp", ECHO, kind));
        let router = start(cluster, &config)?;
        // Sockets that are made from now on leave "don't fragment" out.
        cluster.client.sysctl("net/ipv4/ip_no_pmtu_disc", 1)?;
        let socket = client::heard(&cluster.client, (cluster::CLIENT, 5000), pair.vip(ECHO))?;
        let mut buffer = [0; 2048];
        for length in [1432, 1433, 1472] {
            let before = router.count("to_fragment")?;
            let message = data(length, length);
            socket.send(&message)?;
            let received = socket.recv(&mut buffer).with_context(|| format!("no echo of {length}"))?;
            ensure!(buffer[..received] == message);
            // 1432 bytes are 1460 with their headers, and 1500 in the tunnel.
            ensure!(router.count("to_fragment")? - before == u64::from(length > 1432), "{length} bytes");
        }
        ends.iter_mut().try_for_each(End::check)?;
        router.finish()
    })
}

/// The next router knows the connection of the one that was killed, client and server of whichever family.
#[test]
fn a_connection_outlives_its_router() -> Result<()> {
    for pair in Pair::ALL {
        with_cluster(Layout::OneArmed, |cluster| {
            let (place, server) = (Place::new(cluster)?, &cluster.real_servers[0]);
            let mut ends = End::of_all_for_both(cluster, Kind::Ipip)?;
            let _echo = Server::tcp_echo(server, pair.vip(ECHO), "")?;
            let mut config = ipv6::config(cluster).service(pair.service(cluster, "tcp", ECHO, Kind::Ipip));
            config.keep = place.keep();
            let router = start(cluster, &config)?;
            let mut stream = client::connect(&cluster.client, pair.vip(ECHO))?;
            client::echo(&mut stream, b"at first")?;
            router.kill()?;
            let router = start(cluster, &config)?;
            client::echo(&mut stream, b"with the next router")?;
            ensure!(router.services()?[0].stats.connections == 0, "it is the same connection");
            // The table that was kept knows no addresses of IPv6, until a packet comes that renews the connection.
            let client = stream.local_addr()?.to_string();
            wait::until("the client is known", PATIENCE, || {
                client::echo(&mut stream, b"again")?;
                let listed = router.rvs("list --connections").run()?;
                ensure!(listed.contains(&client), "no {client} in {listed}");
                Ok(())
            })?;
            ends.iter_mut().try_for_each(End::check)?;
            router.finish()
        })?;
    }
    Ok(())
}
