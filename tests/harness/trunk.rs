//! A switch between a router on a stick and the networks that it has there, in the router's machine.

use anyhow::{Result, ensure};

use crate::{
    cluster::Cluster,
    process::Daemon,
    python::{PYTHON, with_devices},
    wait::{self, PATIENCE},
};

/// A running switch: the router's raw wires are tagged networks on one TAP device. It is gone when dropped.
#[derive(Debug)]
pub struct Trunk(Daemon);

impl Trunk {
    /// Starts a switch whose trunk is this interface, with the router's wires as networks of these numbers.
    pub fn start(cluster: &Cluster, interface: &str, ids: &[u16]) -> Result<Trunk> {
        let router = &cluster.router;
        let program = with_devices(cluster.state(), "switch.py", include_str!("python/switch.py"))?;
        let networks = cluster.wires().into_iter().zip(ids).map(|(wire, id)| format!("{wire}={id}"));
        let networks: Vec<String> = networks.collect();
        let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
        let mut daemon =
            router.command(PYTHON).arg(program).args([interface]).args(networks).spawn("switch")?;
        wait::until("the switch is ready", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("ready"));
            Ok(())
        })?;
        router.deafen(interface)?;
        Ok(Trunk(daemon))
    }

    /// Fails if the router has sent what is of none of the networks.
    pub fn check(&mut self) -> Result<()> {
        self.0.check_running()?;
        let log = self.0.log();
        ensure!(!log.contains("not understood"), "{log}");
        Ok(())
    }
}
