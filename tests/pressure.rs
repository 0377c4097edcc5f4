//! Who may begin a connection, and how many: lists of sources, limits.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    packet::{Craft, mac_of},
    raw::RawSender,
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const PORT: u16 = 7;

fn start_echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers.map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, PORT), "")).collect()
}

/// Whether the client's SYN is answered, if it asks once.
fn is_let_in(cluster: &Cluster, address: SocketAddrV4) -> bool {
    let connect =
        || Ok(TcpStream::connect_timeout(&SocketAddr::V4(address), Duration::from_millis(500)).is_ok());
    cluster.client.enter(connect).unwrap_or(false)
}

fn dropped(router: &Router, name: &str) -> Result<u64> {
    Ok(router.counters()?.fates().get(&format!("dropped {name}")).copied().unwrap_or(0))
}

#[test]
fn a_list_of_sources_is_read_anew_by_a_reload() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = start_echo(cluster)?;
        let file = cluster.state().file("deny");
        let mut list = String::from("# whoever has bothered us\n");
        for number in 0..50_000 {
            writeln!(list, "198.18.{}.{}", number / 200, number % 200)?;
        }
        std::fs::write(&file, &list)?;
        let setting = format!("sources = {{ deny_file = {file:?} }}");
        let config = cluster.config().service(cluster.web_on(PORT, PORT).setting(&setting));
        let mut router = cluster.start_router(&config)?;
        let mut held = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut held, b"in")?;

        std::fs::write(&file, format!("{list}{CLIENT} # and now this one\n"))?;
        router.apply_by_signal(&config)?;
        ensure!(!is_let_in(cluster, vip(PORT)));
        ensure!(dropped(&router, "source_denied")? >= 1, "{:?}", router.counters()?.fates());
        client::echo(&mut held, b"it goes on")?;

        // A bad list changes nothing.
        std::fs::write(&file, format!("{list}198.18.300.1\n"))?;
        let refused = router.reload()?;
        let place = format!("{}:50002:1 is no prefix", file.display());
        ensure!(refused.stderr.contains(&place), "{refused:?}");
        ensure!(!is_let_in(cluster, vip(PORT)));

        std::fs::write(&file, &list)?;
        router.apply_by_signal(&config)?;
        let mut again = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut again, b"back")?;
        wait::until("all is forwarded", PATIENCE, || {
            let services = router.services()?;
            ensure!(services[0].stats.connections == 2, "{services:?}");
            Ok(())
        })?;
        router.finish()
    })
}

/// Sends so many SYNs, each from a port of its own and from one of so many addresses that nobody has.
fn flood(cluster: &Cluster, count: u16, addresses: u32) -> Result<()> {
    let sender = RawSender::open(&cluster.client, "eth0")?;
    for number in 0..count {
        let host = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + u32::from(number) % addresses;
        let craft = Craft::syn(SocketAddrV4::new(host.into(), 1024 + number), vip(PORT));
        sender.send(&craft.between(mac_of(CLIENT), cluster.router_mac()).build())?;
    }
    Ok(())
}

/// Waits until this many packets are dropped under a name.
fn wait_dropped(router: &Router, name: &str, count: u64) -> Result<()> {
    wait::until(&format!("{count} dropped as {name}"), PATIENCE, || {
        let now = dropped(router, name)?;
        ensure!(now >= count, "{now}");
        Ok(())
    })
}

#[test]
fn in_a_flood_of_syns_clients_get_through_and_the_table_stays_small() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = start_echo(cluster)?;
        let service = |mode: &str| {
            let service = cluster.web_on(PORT, PORT);
            cluster.config().workers(2).service(service.setting(mode))
        };
        let router = cluster.start_router(&service("limit = { half_open_rate = 20 }"))?;
        let mut held = client::connect(&cluster.client, vip(PORT))?;
        for _ in 0..5 {
            flood(cluster, 200, 200)?;
            let mut late = client::connect(&cluster.client, vip(PORT))?;
            client::echo(&mut late, b"in the midst of it")?;
            client::echo(&mut held, b"it goes on")?;
        }
        let listed = router.list()?;
        ensure!(listed.contains("  SYN flood"), "{listed}");
        let now = router.service()?;
        ensure!(now.stats.connections < 200, "{now:?}");
        ensure!(now.stats.packets_in > 1000, "they went on: {now:?}");
        wait::until("it opens", PATIENCE, || {
            let listed = router.list()?;
            ensure!(!listed.contains("SYN flood"), "{listed}");
            Ok(())
        })?;
        client::echo(&mut held, b"it goes on")?;
        router.finish()
    })
}

#[test]
fn limits_hold_against_a_flood_and_let_others_in() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = start_echo(cluster)?;
        let limited = |limit: &str| {
            let service = cluster.web_on(PORT, PORT).setting(&format!("limit = {{ {limit} }}"));
            cluster.config().workers(2).service(service)
        };
        // One source, which sends in a moment what it may in a hundred seconds.
        let mut router = cluster.start_router(&limited("source_rate = 4, source_burst = 8"))?;
        flood(cluster, 400, 1)?;
        wait_dropped(&router, "source_limited", 350)?;
        let mut held = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut held, b"another source")?;
        ensure!(router.service()?.stats.connections < 60, "{:?}", router.service()?);

        // Many sources. What is left when the flood has ended is everybody's.
        router.apply_by_signal(&limited("rate = 20, burst = 30"))?;
        flood(cluster, 400, 400)?;
        wait_dropped(&router, "rate_limited", 250)?;
        let mut late = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut late, b"after it")?;
        client::echo(&mut held, b"in any case")?;

        // Two are there already, which the next sweep counts.
        router.apply_by_signal(&limited("source_connections = 3"))?;
        wait::until("the client has three", PATIENCE, || {
            ensure!(!is_let_in(cluster, vip(PORT)));
            Ok(())
        })?;
        wait_dropped(&router, "source_limited", 351)?;
        for stream in [&mut held, &mut late] {
            client::echo(stream, b"as ever")?;
        }
        router.apply_by_signal(&limited("source_connections = 100"))?;
        ensure!(is_let_in(cluster, vip(PORT)));
        router.finish()
    })
}
