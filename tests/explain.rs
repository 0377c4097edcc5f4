//! `rvs explain` against what then happens: it foretells the server of each new connection, knows the connection
//! afterwards from both ends, and itself leaves no trace.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    router::Router,
    servers::Server,
    with_cluster,
};
use serde_json::Value;

fn explain(router: &Router, source: SocketAddrV4, destination: SocketAddrV4, flags: &str) -> Result<Value> {
    let words = format!("explain --src {source} --dst {destination} --flags {flags} --json");
    Ok(serde_json::from_str(&router.rvs(&words).run()?)?)
}

fn foretold(cluster: &Cluster, scheduler: &str) -> Result<()> {
    let layout = cluster.layout();
    // With direct routing the real servers have the virtual address themselves.
    let address = |index| match layout {
        Layout::TwoArmed => cluster.endpoint(index, layout.http_port()),
        Layout::OneArmed => vip(80),
    };
    let servers: Vec<Server> = (0..3)
        .map(|index| Server::tcp_echo(&cluster.real_servers[index], address(index), ""))
        .collect::<Result<_>>()?;
    let router = cluster.start_router(&cluster.config().service(cluster.web().scheduler(scheduler)))?;
    let mut held = Vec::new();
    for number in 0..9 {
        let source = SocketAddrV4::new(CLIENT, 30_000 + number);
        let before = router.quiet()?;
        let told = explain(&router, source, vip(80), "S")?;
        let text = router.rvs(&format!("explain --src {source} --dst {}", vip(80))).run()?;
        ensure!(told["verdict"] == "forward" && told["connection"].is_null(), "{told:#}");
        ensure!(text.contains("\nverdict      forward, out of "), "{text}");
        let after = router.quiet()?;
        ensure!((before.received(), before.table.connections) == (after.received(), after.table.connections));

        let server = told["decision"]["server"].as_str().context("a server")?;
        let stream = cluster.client.enter(|| {
            let socket = client::bound(source)?;
            socket.connect(&vip(80).into())?;
            Ok(std::net::TcpStream::from(socket))
        })?;
        let listing = router.rvs("list -c").run()?;
        let entry =
            listing.lines().find(|line| line.contains(&format!("{source} "))).context(listing.clone())?;
        ensure!(entry.ends_with(server), "{server} was foretold, but: {entry}");

        let told = explain(&router, source, vip(80), "A")?;
        ensure!(told["connection"]["state"] == "ESTABLISHED" && told["decision"].is_null(), "{told:#}");
        ensure!(told["connection"]["server"] == server, "{told:#}");
        if layout == Layout::TwoArmed {
            let told = explain(&router, server.parse()?, source, "A")?;
            ensure!(told["rewritten"]["source"] == vip(80).to_string(), "{told:#}");
            ensure!(told["direction"] == "out" && told["output"] == "wan", "{told:#}");
        }
        held.push(stream);
    }
    let refused = router.rvs(&format!("explain --src {} --dst {} --port x", vip(1), vip(80))).output()?;
    ensure!(
        refused.code() == Some(1) && refused.stderr.contains("port: there is no \"x\"; expected wan"),
        "{refused:?}"
    );
    drop(servers);
    router.finish()
}

#[test]
fn explain_foretells_wrr_nat() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| foretold(cluster, "wrr"))
}

#[test]
fn explain_foretells_wlc_dr() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| foretold(cluster, "wlc"))
}
