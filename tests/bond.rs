//! Ports of several devices: members that come and go, under traffic.

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Config,
    lag::{Lag, MEMBERS},
    router::Router,
    trunk::Trunk,
    wait::{self, PATIENCE},
    with_cluster,
};
use serde_json::Value;

/// A router whose port wan is a bond, with these keys of it and these members.
fn start(cluster: &Cluster, config: &Config, keys: &str, members: &[String]) -> Result<Router> {
    let bond = format!("bond = {{ {keys}, members = {members:?} }}");
    let text = config.to_string().replacen(&format!("device = {:?}", config.ports[0].device), &bond, 1);
    Router::start_text(cluster, &text, config)
}

fn sockets() -> Vec<String> {
    MEMBERS.iter().map(|interface| format!("net_af_packet,iface={interface}")).collect()
}

/// The running port of this name.
fn port(router: &Router, name: &str) -> Result<Value> {
    let listing: Value = serde_json::from_str(&router.rvs("ports --json").run()?)?;
    let running = listing["running"].as_array().cloned().unwrap_or_default();
    running.into_iter().find(|port| port["name"] == name).with_context(|| format!("no {name}: {listing:#}"))
}

/// Waits until the members of a port are up or not, as these say, and it sends by these.
fn wait_for_members(router: &Router, name: &str, up: [bool; 2], sends: [bool; 2]) -> Result<()> {
    wait::until(&format!("members are up: {up:?}, send: {sends:?}"), PATIENCE, || {
        let port = port(router, name)?;
        let members = &port["device"]["members"];
        let is = |key: &str| [0, 1].map(|member| members[member][key] == true);
        ensure!((is("up"), is("sends")) == (up, sends), "{members:#}");
        Ok(())
    })
}

fn said(router: &Router, text: &str) -> Result<usize> {
    Ok(router.events()?.iter().filter(|event| event.contains(text)).count())
}

fn mac(cluster: &Cluster, interface: &str) -> Result<Value> {
    Ok(cluster.router.ip_json(&format!("link show dev {interface}"))?[0]["address"].clone())
}

/// How many packets the router has sent by each member.
fn sent(cluster: &Cluster) -> Result<[u64; 2]> {
    let of = |member: &str| -> Result<u64> {
        let link = &cluster.router.ip_json(&format!("-s link show dev {member}"))?[0];
        link["stats64"]["tx"]["packets"].as_u64().context("it counts")
    };
    Ok([of(MEMBERS[0])?, of(MEMBERS[1])?])
}

#[test]
fn members_agreed_upon_by_lacp() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let lag = Lag::lacp(cluster, "wan0")?;
        let config = cluster.config().workers(2).service(cluster.web().scheduler("rr"));
        let router = start(cluster, &config, "mode = \"802.3ad\"", &sockets())?;
        wait_for_members(&router, "wan", [true; 2], [true; 2])?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        ensure!(mac(cluster, "wan")? == mac(cluster, MEMBERS[0])?);
        // By addresses and ports: of ports in a row every other one is the other member's. Linux takes even ones, which say nothing.
        let before = sent(cluster)?;
        for port in 40_000..40_016 {
            cluster.client.enter(|| Ok(client::bound((CLIENT, port))?.connect(&vip(80).into())?))?;
        }
        let after = sent(cluster)?;
        ensure!(after[0] >= before[0] + 8 && after[1] >= before[1] + 8, "not by both: {before:?}, {after:?}");

        // One is taken out at the switch.
        lag.take_out(&[0])?;
        wait_for_members(&router, "wan", [false, true], [false, true])?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        // Both are: nothing could be sent, and Linux sees that.
        lag.take_out(&[0, 1])?;
        wait_for_members(&router, "wan", [false; 2], [false; 2])?;
        wait::until("the twin has lost its carrier", PATIENCE, || {
            let shown = cluster.router.ip_json("link show dev wan")?;
            ensure!(shown[0]["flags"].as_array().is_some_and(|flags| flags.contains(&"NO-CARRIER".into())));
            Ok(())
        })?;
        lag.take_out(&[])?;
        wait_for_members(&router, "wan", [true; 2], [true; 2])?;
        wait::until("the link is told of", PATIENCE, || {
            ensure!(said(&router, "port wan: link down")? == 1 && said(&router, "port wan: link up")? == 1);
            Ok(())
        })?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.total() == 30);
        for (member, change) in [(0, "down"), (0, "up"), (1, "down"), (1, "up")] {
            let event = format!("port wan: member net_af_packet0_{member} {change}");
            ensure!(said(&router, &event)? == 1, "{event}: {:?}", router.events()?);
        }
        router.finish()
    })
}

#[test]
fn tagged_networks_on_a_bond() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut trunk = Trunk::start(cluster, "trunk0", &[100, 200])?;
        let _lag = Lag::lacp(cluster, "trunk0")?;
        let mut config = cluster.config().service(cluster.web().scheduler("rr"));
        config.ports.truncate(1);
        config.ports[0].name = "trunk";
        config.ports[0].addresses.clear();
        let bond = format!("bond = {{ mode = \"802.3ad\", members = {:?} }}", sockets());
        let text = config.to_string().replacen(&format!("device = {:?}", config.ports[0].device), &bond, 1);
        let vlan = |name, id, address| {
            format!("\n[[vlan]]\nname = {name:?}\nport = \"trunk\"\nid = {id}\naddresses = [{address:?}]\n")
        };
        let text = text + &vlan("wan", 100, "192.0.2.1/24") + &vlan("lan", 200, "10.0.0.1/24");
        let router = Router::start_text(cluster, &text, &config)?;
        wait_for_members(&router, "trunk", [true; 2], [true; 2])?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        trunk.check()?;
        router.finish()
    })
}

#[test]
fn one_member_at_a_time_and_the_primary_first() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let _lag = Lag::learning(cluster, "wan0")?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let members = sockets();
        let keys = format!("mode = \"active-backup\", primary = {:?}", members[1]);
        let router = start(cluster, &config, &keys, &members)?;
        wait_for_members(&router, "wan", [true; 2], [false, true])?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        ensure!(mac(cluster, "wan")? == mac(cluster, MEMBERS[1])?);
        let shown = router.rvs("ports").run()?;
        for line in [
            "port wan runs: net_bonding, link up",
            "member net_af_packet0_0: link up 10 Gbit/s, stands by",
            "member net_af_packet0_1: link up 10 Gbit/s, sends",
        ] {
            ensure!(shown.contains(line), "{shown}");
        }
        router.finish()
    })
}
