//! Clients behind a narrow way: whoever sends longer packets is told, in every mode.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{self, Cluster, Layout},
    ipv6::{self, switch_on},
    netns::Namespace,
    router::Router,
    servers::Server,
    tunnel::{forget_paths, path_mtu},
    wait::{self, PATIENCE},
};

use crate::way::{Family, Mode, Way, on_each, start, with_ways};

/// How much goes there and comes back.
const MUCH: usize = 300_000;
/// The far client's addresses.
const FAR: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 101, 2), Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0, 0, 0, 2));

/// A client that is two routers away, and knows nothing of the narrow link between them.
///
/// ```text
///   router ==== client ==narrow== middle ==== far
///                  near0      near0    far0      eth0
/// ```
struct Far {
    near: Namespace,
    middle: Namespace,
    far: Namespace,
}

impl Far {
    /// Behind the client of a cluster.
    fn behind(cluster: &Cluster) -> Result<Far> {
        let Cluster { client, router, real_servers, .. } = cluster;
        let create = |role| Namespace::create(cluster.state(), role);
        let (middle, far) = (create("middle")?, create("far")?);
        client.ip(&format!("link add near0 type veth peer name near0 netns {}", middle.name()))?;
        middle.ip(&format!("link add far0 type veth peer name eth0 netns {}", far.name()))?;
        let ends = [(client, "near0"), (&middle, "near0"), (&middle, "far0"), (&far, "eth0")];
        let addresses = ["198.51.100.1/24", "198.51.100.2/24", "198.51.101.1/24", "198.51.101.2/24"];
        let of_ipv6 = ["2001:db8:f::1/64", "2001:db8:f::2/64", "2001:db8:f:1::1/64", "2001:db8:f:1::2/64"];
        for ((machine, interface), (four, six)) in ends.into_iter().zip(addresses.into_iter().zip(of_ipv6)) {
            switch_on(machine, interface)?;
            machine.ip(&format!(
                "link set {interface} up\naddress add {four} dev {interface}\naddress add {six} dev {interface} nodad"
            ))?;
            machine.plain_wire(interface)?;
        }
        far.ip("route add default via 198.51.101.1\nroute add default via 2001:db8:f:1::1")?;
        middle.ip("route add default via 198.51.100.1\nroute add default via 2001:db8:f::1")?;
        client.ip(
            "route add 198.51.101.0/24 via 198.51.100.2\nroute add 2001:db8:f:1::/64 via 2001:db8:f::2",
        )?;
        for machine in [client, &middle] {
            machine.sysctl("net/ipv4/ip_forward", 1)?;
            machine.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        }
        let back = format!(
            "route add 198.51.101.0/24 via {}\nroute add 2001:db8:f:1::/64 via {}",
            cluster::CLIENT,
            ipv6::CLIENT
        );
        router.ip(&back)?;
        if cluster.layout() == Layout::OneArmed {
            real_servers.iter().try_for_each(|server| server.ip(&back))?;
        }
        Ok(Far { near: client.clone(), middle, far })
    }

    /// From now on the narrow link takes so many bytes.
    fn narrow(&self, mtu: u16) -> Result<()> {
        let order = format!("link set near0 mtu {mtu}");
        [&self.near, &self.middle].into_iter().try_for_each(|end| end.ip(&order))
    }
}

/// As the server of a way sees the far client.
fn as_seen(way: Way) -> Result<IpAddr> {
    Ok(match (way.mode, way.clients) {
        (Mode::FullNat, _) => way.pool().parse()?,
        (_, Family::Four) => FAR.0.into(),
        (_, Family::Six) => FAR.1.into(),
    })
}

/// The server says that it takes long segments, and so does the client; longer ones than get through, of which each has to be told.
fn the_mtu_on_the_way_is_found(layout: Layout) -> Result<()> {
    with_ways(layout, |cluster, ways| {
        let config = ways.iter().fold(ipv6::config(cluster), |config, (way, port)| {
            config.service(way.service(cluster, "tcp", *port))
        });
        let router = start(cluster, ways, &config, "tcp")?;
        let behind = Far::behind(cluster)?;
        for mtu in [1400, 1280] {
            behind.narrow(mtu)?;
            on_each(ways, |way, port| {
                let server = way.machine(cluster);
                let _mirror = Server::tcp_mirror(server, way.listens(cluster, port))?;
                [server, &behind.far].into_iter().try_for_each(forget_paths)?;
                client::there_and_back(&behind.far, way.vip(port), MUCH)
                    .with_context(|| format!("behind {mtu}"))?;
                let known = path_mtu(server, as_seen(way)?)?;
                ensure!(known == Some(mtu.into()), "the server believes {known:?}, not {mtu}");
                // The way up: narrower still where it is by a tunnel.
                let known = path_mtu(&behind.far, way.vip(port).ip())?;
                let expected = u64::from(mtu).min(1500 - way.overhead() as u64);
                ensure!(known == Some(expected), "the client believes {known:?}, not {expected}");
                Ok(())
            })?;
        }
        router.finish()
    })
}

#[test]
fn the_mtu_on_the_way_is_found_two_armed() -> Result<()> {
    the_mtu_on_the_way_is_found(Layout::TwoArmed)
}

#[test]
fn the_mtu_on_the_way_is_found_one_armed() -> Result<()> {
    the_mtu_on_the_way_is_found(Layout::OneArmed)
}

/// Here the real server is who begins, and has an address of the pool.
#[test]
fn the_mtu_on_the_way_is_found_by_source_nat() -> Result<()> {
    with_ways(Layout::TwoArmed, |cluster, _| {
        let config = ipv6::config(cluster).service(cluster.web());
        let snat = "[[snat]]\ninside = [\"10.0.0.0/24\"]\noutside = [\"192.0.2.50\"]\n";
        let router = Router::start_text(cluster, &format!("{snat}{config}"), &config)?;
        let behind = Far::behind(cluster)?;
        behind.far.sysctl("net/ipv4/icmp_ratelimit", 0)?;
        let server = &cluster.real_servers[0];
        let _mirror = Server::tcp_mirror(&behind.far, (FAR.0, 7))?;
        wait::until("the way to the far machine", PATIENCE, || {
            client::there_and_back(server, (FAR.0, 7), 10)
        })?;
        for mtu in [1400, 1280] {
            behind.narrow(mtu)?;
            [server, &behind.far].into_iter().try_for_each(forget_paths)?;
            client::there_and_back(server, (FAR.0, 7), MUCH).with_context(|| format!("behind {mtu}"))?;
            for (machine, to) in [(server, FAR.0), (&behind.far, Ipv4Addr::new(192, 0, 2, 50))] {
                let known = path_mtu(machine, to)?;
                ensure!(known == Some(mtu.into()), "{} believes {known:?}, not {mtu}", machine.name());
            }
        }
        router.finish()
    })
}
