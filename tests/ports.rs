//! Devices: what is said of them, what is asked of the machine for them, and links that come and go.

use std::fs;

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    router::{self, Router},
    wait::{self, PATIENCE},
    with_cluster,
};
use serde_json::Value;

/// A router whose port wan is a TAP of DPDK's own: of the devices that need no hardware it is one that tells its link.
fn start(cluster: &Cluster) -> Result<Router> {
    let config = cluster.config().service(cluster.web());
    Router::start_text(cluster, &with_wan(&config.to_string(), "net_tap,iface=tapwan"), &config)
}

/// The configuration with another device for wan.
fn with_wan(config: &str, device: &str) -> String {
    let is_wan = |line: &&str| line.starts_with("device = ") && line.contains("wan0");
    let line = config.lines().find(is_wan).expect("the cluster has a port there");
    config.replace(line, &format!("device = {device:?}"))
}

/// What `rvs ports` says of the running router's port of this name.
fn port(router: &Router, name: &str) -> Result<Value> {
    let output = router.rvs("ports --json").output()?;
    let listing: Value = serde_json::from_str(&output.stdout)?;
    let running = listing["running"].as_array().cloned().unwrap_or_default();
    let found = running.into_iter().find(|port| port["name"] == name);
    found.ok_or_else(|| anyhow::anyhow!("no port {name}: {listing:#}"))
}

/// Whether Linux takes the twin for plugged in.
fn has_carrier(cluster: &Cluster, twin: &str) -> Result<bool> {
    let shown = cluster.router.ip_json(&format!("link show dev {twin}"))?;
    let flags = shown[0]["flags"].as_array().cloned().unwrap_or_default();
    Ok(!flags.iter().any(|flag| flag == "NO-CARRIER"))
}

#[test]
fn a_link_that_goes_takes_the_twins_carrier_along_and_brings_it_back() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let router = start(cluster)?;
        let wan = port(&router, "wan")?;
        ensure!(wan["device"]["link_up"] == true && wan["device"]["driver"] == "net_tap", "{wan:#}");
        ensure!(has_carrier(cluster, "wan")?);
        let said = |text: &str| -> Result<usize> {
            Ok(router.events()?.iter().filter(|event| event.contains(text)).count())
        };
        ensure!(said("port wan: link")? == 0);

        cluster.router.ip("link set tapwan down")?;
        wait::until("the twin has lost its carrier", PATIENCE, || {
            ensure!(!has_carrier(cluster, "wan")?);
            ensure!(said("port wan: link down")? == 1);
            Ok(())
        })?;
        ensure!(port(&router, "wan")?["device"]["link_up"] == false);
        ensure!(has_carrier(cluster, "lan")? && said("port lan")? == 0);

        cluster.router.ip("link set tapwan up")?;
        wait::until("the twin has its carrier again", PATIENCE, || {
            ensure!(has_carrier(cluster, "wan")?);
            ensure!(said("port wan: link up")? == 1);
            Ok(())
        })?;
        ensure!(port(&router, "wan")?["device"]["link_up"] == true);
        router.finish()
    })
}

#[test]
fn what_is_said_of_a_port_at_the_start() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let router = cluster.start_router(&cluster.config().service(cluster.web()))?;
        let log = router.log();
        let line = log.lines().find(|line| line.contains("port wan: net_af_packet")).unwrap_or(&log);
        for part in ["1 queue of", "MTU 1500, MAC 02:", "link up"] {
            ensure!(line.contains(part), "{line}\nexpected {part}");
        }
        let shown = router.rvs("ports").output()?.stdout;
        ensure!(shown.contains("port wan runs: net_af_packet, link up"), "{shown}");
        router.finish()
    })
}

#[test]
fn a_nic_that_is_not_there_is_refused_by_all_that_would_need_it() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let file = cluster.state().file("rvs.toml");
        let text = cluster.config().service(cluster.web()).to_string();
        let text = with_wan(&text, "ffff:ff:1f.7");
        fs::write(&file, &text)?;
        let problem = "there is no PCI device ffff:ff:1f.7";
        for (words, code) in [
            ("setup -c", 1),
            ("setup --dry-run -c", 1),
            ("setup --boot -c", 1),
            ("check -c", 2),
            ("run -c", 2),
        ] {
            let output = router::once(cluster, words)?.arg(&file).output()?;
            ensure!(output.code() == Some(code) && output.stderr.contains(problem), "{words}: {output:?}");
            ensure!(output.stdout.is_empty(), "{words} has done something: {output:?}");
        }
        let output = router::once(cluster, "doctor --json -c")?.arg(&file).output()?;
        let findings: Vec<Value> = serde_json::from_str(&output.stdout)?;
        ensure!(findings.iter().any(|finding| finding["key"] == "nic-absent"), "{findings:#?}");
        let listing = router::once(cluster, "ports --json -c")?.arg(&file).output()?;
        let listing: Value = serde_json::from_str(&listing.stdout)?;
        ensure!(listing["nics"].is_array() && listing["running"] == serde_json::json!([]), "{listing:#}");
        Ok(())
    })
}

#[test]
fn a_twin_whose_mac_somebody_changes_gets_its_ports_back() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _web = cluster.start_web()?;
        let config = cluster.config().service(cluster.web());
        let _router = Router::start(cluster, &config)?;
        let mac =
            || -> Result<Value> { Ok(cluster.router.ip_json("link show dev lan")?[0]["address"].clone()) };
        let own = mac()?;
        cluster.router.ip("link set lan address 02:52:56:53:0f:0f")?;
        wait::until("the twin has its port's MAC again", PATIENCE, || {
            ensure!(mac()? == own);
            Ok(())
        })?;
        client::get(&cluster.client, vip(80), 6)?.counts()?;
        Ok(())
    })
}
