//! A switch with a link aggregation group, between a router's bond and its wire, in the router's machine.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};

use crate::{
    cluster::Cluster,
    process::Daemon,
    python::PYTHON,
    wait::{self, PATIENCE},
};

/// The interfaces of the router that its bond is to be made of.
pub const MEMBERS: [&str; 2] = ["wan1", "wan2"];

/// The other ends.
const SWITCHES: [&str; 2] = ["switch1", "switch2"];

/// A running switch: a wire of the router's ends there, and [`MEMBERS`] lead to it instead. It is gone when dropped.
#[derive(Debug)]
pub struct Lag {
    daemon: Daemon,
    out: PathBuf,
}

impl Lag {
    /// Starts one that agrees by LACP upon which members there are.
    pub fn lacp(cluster: &Cluster, wire: &str) -> Result<Lag> {
        Lag::start(cluster, "lacp", wire)
    }

    /// Starts one that learns where the router is by what it hears.
    pub fn learning(cluster: &Cluster, wire: &str) -> Result<Lag> {
        Lag::start(cluster, "learn", wire)
    }

    fn start(cluster: &Cluster, how: &str, wire: &str) -> Result<Lag> {
        let (router, state) = (&cluster.router, cluster.state());
        for (member, switch) in MEMBERS.into_iter().zip(SWITCHES) {
            router.ip(&format!("link add {member} type veth peer name {switch}"))?;
            for end in [member, switch] {
                router.ip(&format!("link set {end} up"))?;
                router.plain_wire(end)?;
                router.deafen(end)?;
            }
        }
        let (program, out) = (state.file("lag.py"), state.file("out-of-lag"));
        fs::write(&program, include_str!("python/lag.py"))?;
        let command = router.command(PYTHON).arg(program).arg(&out).args([how, wire]).args(SWITCHES);
        let mut daemon = command.spawn("lag")?;
        wait::until("the switch is ready", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("ready"));
            Ok(())
        })?;
        Ok(Lag { daemon, out })
    }

    /// Takes these members, by number, out of the group, and no others.
    pub fn take_out(&self, members: &[usize]) -> Result<()> {
        let names: Vec<&str> = members.iter().map(|&member| SWITCHES[member]).collect();
        let new = self.out.with_extension("new");
        fs::write(&new, names.join("\n"))?;
        Ok(fs::rename(new, &self.out)?)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}
