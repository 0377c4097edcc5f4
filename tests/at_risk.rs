//! `track = "at-risk"`: connections that need no entry go on, whatever becomes of servers, and those that need one have it.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::{Config, Service},
    netns::Namespace,
    peers::{self, ADDRESSES},
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};
use serde_json::Value;

/// Where a real server says that it is well.
const HEALTH: u16 = 8081;
const NAMES: [&str; 3] = ["one", "two", "six"];

/// A connection, who serves it, and from which port it comes.
type Talk = (TcpStream, String, u16);

fn config(cluster: &Cluster, servers: &[usize]) -> Config {
    let service = Service::tcp("dr", vip(80))
        .scheduler("maglev")
        .setting("track = \"at-risk\"")
        .check(&format!("kind = \"tcp\", port = {HEALTH}"));
    let servers = servers.iter().map(|&index| cluster.endpoint(index, 80));
    cluster.config().workers(2).service(servers.fold(service, |service, server| service.server(server, 1)))
}

fn start(cluster: &Cluster, config: &Config) -> Result<Router> {
    let router = cluster.start_router(config)?;
    router.wait_for_macs(CLIENT.into(), vip(80).into(), "tcp")?;
    Ok(router)
}

fn echoes(cluster: &Cluster) -> Result<Vec<Server>> {
    let names = cluster.real_servers.iter().zip(NAMES);
    names.map(|(namespace, name)| Server::tcp_echo(namespace, vip(80), name)).collect()
}

fn well(cluster: &Cluster, index: usize) -> Result<Server> {
    Server::tcp_echo(&cluster.real_servers[index], cluster.endpoint(index, HEALTH), "")
}

fn begin(cluster: &Cluster, ports: std::ops::Range<u16>) -> Result<Vec<Talk>> {
    let named = |port| {
        let from: SocketAddr = SocketAddrV4::new(CLIENT, port).into();
        let (stream, name) = client::named(&cluster.client, from, vip(80).into())?;
        Ok((stream, name, port))
    };
    ports.map(named).collect()
}

fn go_on(talks: &mut [Talk], when: &str) -> Result<()> {
    talks.iter_mut().try_for_each(|(stream, name, port)| {
        client::echo(stream, b"still there")
            .with_context(|| format!("{when}: from port {port}, with {name:?}"))
    })
}

fn explain(router: &Router, port: u16, flags: &str) -> Result<Value> {
    let words = format!("explain --src {CLIENT}:{port} --dst {} --flags {flags} --json", vip(80));
    Ok(serde_json::from_str(&router.rvs(&words).run()?)?)
}

#[test]
fn connections_go_on_through_failures_drains_and_reloads_with_few_entries() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _servers = echoes(cluster)?;
        let (_first, _third) = (well(cluster, 0)?, well(cluster, 2)?);
        let second = well(cluster, 1)?;
        let router = start(cluster, &config(cluster, &[0, 1]))?;
        router.wait_up(1, true)?;
        let kept = || Ok::<_, anyhow::Error>(router.counters()?.table.connections as usize);
        let is_of = |name: &'static str| move |talk: &&Talk| talk.1 == name;

        let mut talks = begin(cluster, 20_000..20_040)?;
        ensure!(kept()? == 0, "all servers are there");
        let service = router.service()?;
        ensure!(service.stats.connections == 40 && service.stats.packets_in >= 160, "{service:?}");
        let listed = router.list()?;
        ensure!(listed.contains("maglev at-risk"), "{listed}");
        let told = explain(&router, 20_000, "A")?;
        let tracking = told["tracking"].as_str().unwrap_or_default();
        ensure!(tracking.contains("by hash, not at risk") && told["afterwards"].is_null(), "{told:#}");

        // The check fails, though the server goes on to serve who is there.
        drop(second);
        router.wait_up(1, false)?;
        talks.extend(begin(cluster, 20_040..20_080)?);
        let moved = talks.iter().skip(40).filter(is_of("two")).count();
        ensure!(moved == 0, "{moved} began with a server that is down");
        let before = kept()?;
        ensure!((8..35).contains(&before), "about half of the new ones: {before}");
        go_on(&mut talks, "with one down")?;
        let of_second = talks.iter().filter(is_of("two")).count();
        ensure!(kept()? == before + of_second, "{} and {before}, {of_second}", kept()?);
        let told = explain(&router, 20_200, "S")?;
        ensure!(told["tracking"].is_string() && told["decision"]["server"] == "192.0.2.11:80", "{told:#}");

        let _second = well(cluster, 1)?;
        router.wait_up(1, true)?;
        go_on(&mut talks, "with both back")?;

        let mut drained = config(cluster, &[0, 1]);
        drained.set_weight(0, 0);
        router.apply(&drained)?;
        go_on(&mut talks, "with the other drained")?;
        ensure!(begin(cluster, 20_080..20_090)?.iter().all(|talk| talk.1 == "two"));

        // One that nobody knew before; and one goes.
        router.apply(&config(cluster, &[0, 1, 2]))?;
        router.wait_up(2, true)?;
        talks.extend(begin(cluster, 20_090..20_150)?);
        ensure!(talks.iter().any(|talk| talk.1 == "six"));
        go_on(&mut talks, "with a third")?;
        router.apply(&config(cluster, &[1, 2]))?;
        go_on(&mut talks, "without the first")?;
        let leaving = router.service()?.servers.iter().filter(|server| server.state == "leaving").count();
        ensure!(leaving == 1 && begin(cluster, 20_150..20_170)?.iter().all(|talk| talk.1 != "one"));

        router.apply(&config(cluster, &[0, 1, 2]))?;
        go_on(&mut talks, "as it was")?;
        talks.into_iter().try_for_each(|talk| client::close(talk.0))?;
        router.finish()
    })
}

/// A router that has lost its table learns from its peer what it does not find by itself.
#[test]
fn a_peer_is_told_of_those_at_risk_alone() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _servers = echoes(cluster)?;
        let (_first, second) = (well(cluster, 0)?, well(cluster, 1)?);
        let beside = Namespace::create(cluster.state(), "peer")?;
        peers::wire([&cluster.router, &beside])?;
        let key = peers::key(cluster.state(), "sync.key", "0123456789abcdef")?;
        let config = config(cluster, &[0, 1]);
        let mut other = config.clone();
        other.socket += ".peer";
        other.ports.iter_mut().for_each(|port| port.device = "net_null0,no-rx=1".to_owned());
        let [own, its] = [0, 1].map(|end| peers::section(ADDRESSES[end], ADDRESSES[1 - end], &key));
        let start = || {
            let router = Router::start_in(&cluster.router, "rvs", &format!("{config}{own}"), &config)?;
            router.wait_for_macs(CLIENT.into(), vip(80).into(), "tcp")?;
            Ok::<_, anyhow::Error>(router)
        };
        let router = start()?;
        let peer = Router::start_in(&beside, "rvs-peer", &format!("{other}{its}"), &other)?;
        [&router, &peer].into_iter().try_for_each(peers::wait_together)?;
        let kept = |router: &Router| Ok::<_, anyhow::Error>(router.counters()?.table.connections);

        router.wait_up(1, true)?;
        drop(second);
        router.wait_up(1, false)?;
        let mut talks = begin(cluster, 20_000..20_040)?;
        ensure!(talks.iter().all(|talk| talk.1 == "one"));
        let at_risk = kept(&router)?;
        ensure!((8..35).contains(&at_risk), "about half: {at_risk}");
        wait::until("the peer knows those", PATIENCE, || {
            ensure!(kept(&peer)? == at_risk, "{} of {at_risk}", kept(&peer)?);
            Ok(())
        })?;

        // With both servers back, those would go to the other one.
        let _second = well(cluster, 1)?;
        router.wait_up(1, true)?;
        router.kill()?;
        let router = start()?;
        peers::wait_together(&router)?;
        router.wait_up(1, true)?;
        ensure!(kept(&router)? == at_risk, "{} of {at_risk}", kept(&router)?);
        go_on(&mut talks, "with what the peer knew")?;
        talks.into_iter().try_for_each(|talk| client::close(talk.0))?;
        peer.finish()?;
        router.finish()
    })
}

#[test]
fn a_router_that_knows_nothing_goes_on_with_them() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _servers = echoes(cluster)?;
        let _well = (0..3).map(|index| well(cluster, index)).collect::<Result<Vec<_>>>()?;
        let config = config(cluster, &[0, 1, 2]);
        let router = start(cluster, &config)?;
        let mut talks = begin(cluster, 20_000..20_030)?;
        router.kill()?;
        let router = start(cluster, &config)?;
        go_on(&mut talks, "with another router")?;
        talks.into_iter().try_for_each(|talk| client::close(talk.0))?;
        router.finish()
    })
}
