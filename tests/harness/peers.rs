//! Routers that tell each other of connections.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    ipv6,
    netns::Namespace,
    router::Router,
    state::State,
    wait::{self, PATIENCE},
};

/// The addresses of two routers on the wire between them.
pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];
/// Those of IPv6.
pub const ADDRESSES_OF_IPV6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2)];
/// The interface of either router on it.
pub const WIRE: &str = "sync0";

/// Wires two routers together, for what they tell each other.
pub fn wire(routers: [&Namespace; 2]) -> Result<()> {
    let [a, b] = routers;
    a.ip(&format!("link add {WIRE} type veth peer name {WIRE} netns {}", b.name()))?;
    for (router, address) in routers.into_iter().zip(ADDRESSES) {
        router.ip(&format!("address add {address}/24 dev {WIRE}\nlink set {WIRE} up"))?;
    }
    Ok(())
}

/// Gives the wire between two routers IPv6, too.
pub fn add_ipv6(routers: [&Namespace; 2]) -> Result<()> {
    for (router, address) in routers.into_iter().zip(ADDRESSES_OF_IPV6) {
        ipv6::switch_on(router, WIRE)?;
        router.ip(&format!("address add {address}/64 dev {WIRE} nodad"))?;
    }
    Ok(())
}

/// Writes a key of these hexadecimal digits, over and over; where it is.
pub fn key(state: &State, name: &str, digits: &str) -> Result<String> {
    let path = state.file(name);
    fs::write(&path, digits.repeat(64 / digits.len()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

/// The `[sync]` of a router with one peer.
pub fn section(own: impl Into<IpAddr>, peer: impl Into<IpAddr>, key: &str) -> String {
    let [own, peer] = [own.into(), peer.into()].map(|address| SocketAddr::new(address, 8848));
    format!("\n[sync]\nlisten = \"{own}\"\npeers = [\"{peer}\"]\nkey_file = {key:?}\n")
}

/// `rvs sync`, for programs.
pub fn sync(router: &Router) -> Result<Value> {
    let text = router.rvs("sync --json").run()?;
    serde_json::from_str(&text).context(text)
}

/// Waits until a router and its peer know the same.
pub fn wait_together(router: &Router) -> Result<()> {
    wait::until("the peers are together", PATIENCE, || {
        let sync = sync(router)?;
        ensure!(sync["ready"] == true && sync["peers"][0]["standing"] == "together", "{sync:#}");
        Ok(())
    })
}

/// How many connections of its first service a router has that are established.
pub fn established(router: &Router) -> Result<u64> {
    Ok(router.service()?.servers.iter().map(|server| server.active).sum())
}

/// Waits until a router has so many of them.
pub fn wait_established(router: &Router, count: u64) -> Result<()> {
    wait::until("all connections are known", PATIENCE, || {
        let known = established(router)?;
        ensure!(known == count, "{known} of {count}");
        Ok(())
    })
}
