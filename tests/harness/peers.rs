//! Routers that tell each other of connections.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    router::Router,
    state::State,
    wait::{self, PATIENCE},
};

/// Writes a key of these hexadecimal digits, over and over; where it is.
pub fn key(state: &State, name: &str, digits: &str) -> Result<String> {
    let path = state.file(name);
    fs::write(&path, digits.repeat(64 / digits.len()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

/// The `[sync]` of a router with one peer.
pub fn section(own: Ipv4Addr, peer: Ipv4Addr, key: &str) -> String {
    format!("\n[sync]\nlisten = \"{own}:8848\"\npeers = [\"{peer}:8848\"]\nkey_file = {key:?}\n")
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
