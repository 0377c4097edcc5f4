//! A machine beside the router that speaks the sync protocol of Linux IPVS.
//!
//! It is not Linux' own, which test machines' kernels may not have, but a program that was written from the documented
//! layout alone (`python/ipvs.py`).

use std::{fs, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    netns::Namespace,
    peers,
    process::Daemon,
    python::PYTHON,
    router::Router,
    wait::{self, PATIENCE},
};

/// The wire between the router and the director, at both ends.
pub const WIRE: &str = "sync0";
/// The router's address there.
pub const OURS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The director's.
pub const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// A director.
#[derive(Debug)]
pub struct Director {
    /// Its machine.
    pub namespace: Namespace,
    program: PathBuf,
}

impl Director {
    /// Puts one beside the router, on a wire of their own.
    pub fn beside(cluster: &Cluster) -> Result<Director> {
        let namespace = Namespace::create(cluster.state(), "director")?;
        let there = namespace.name();
        cluster.router.ip(&format!(
            "link add {WIRE} type veth peer name {WIRE} netns {there}\naddress add {OURS}/24 dev {WIRE}\nlink set {WIRE} up"
        ))?;
        namespace.ip(&format!("address add {THEIRS}/24 dev {WIRE}\nlink set {WIRE} up"))?;
        let program = cluster.state().file("ipvs.py");
        fs::write(&program, include_str!("python/ipvs.py"))?;
        Ok(Director { namespace, program })
    }

    /// Multicasts messages: objects as the program takes them.
    pub fn tell(&self, messages: &[Value]) -> Result<()> {
        let lines: String = messages.iter().map(|message| format!("{message}\n")).collect();
        let python = self.namespace.command(PYTHON).arg(&self.program);
        python.args(["tell", &THEIRS.to_string()]).input(lines).run().map(drop)
    }

    /// Begins to hear what is multicast.
    pub fn hear(&self) -> Result<Ears> {
        let python = self.namespace.command(PYTHON).arg(&self.program);
        let mut daemon = python.args(["hear", &THEIRS.to_string()]).spawn("director-hears")?;
        wait::until("the director listens", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("hears"), "{}", daemon.log());
            Ok(())
        })?;
        Ok(Ears(daemon))
    }
}

/// A director that listens.
#[derive(Debug)]
pub struct Ears(Daemon);

impl Ears {
    /// All messages so far.
    pub fn messages(&mut self) -> Result<Vec<Value>> {
        self.0.check_running()?;
        let log = self.0.log();
        // The last line may not be whole yet.
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n')).skip(1);
        lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}

/// The `[ipvs_sync]` of a router.
pub fn section(role: &str, syncid: u8) -> String {
    format!("\n[ipvs_sync]\nrole = {role:?}\ninterface = {WIRE:?}\nsyncid = {syncid}\n")
}

/// How a router stands with directors.
pub fn status(router: &Router) -> Result<Value> {
    Ok(peers::sync(router)?["ipvs"].clone())
}

/// Waits until one of the counts of [`status`] is this.
pub fn wait_count(router: &Router, name: &str, count: u64) -> Result<()> {
    wait::until(&format!("{name} is {count}"), PATIENCE, || {
        let status = status(router)?;
        ensure!(status[name] == count, "{status:#}");
        Ok(())
    })
}
