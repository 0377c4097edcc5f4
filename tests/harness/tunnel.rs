//! Real servers at the end of a tunnel.
//!
//! The kernel here may have neither `ipip` nor `sit`, `ip6_tunnel`, `gre` and `fou`, so a small program does what they do (`python/untunnel.py`): it shares
//! no code with what is tested.

use std::fmt::Display;

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::Cluster,
    config::Service,
    ipv6::switch_on,
    netns::Namespace,
    process::Daemon,
    python::{PYTHON, with_devices},
    wait::{self, PATIENCE},
};

/// How packets are put into others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IP in IP.
    Ipip,
    /// GRE with a checksum.
    Gre,
    /// GUE at this port, with a checksum.
    Gue(u16),
}

impl Kind {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ipip => "ipip",
            Kind::Gre => "gre",
            Kind::Gue(_) => "gue",
        }
    }

    /// As `rvs list --json` says it.
    pub fn listed(self) -> String {
        match self {
            Kind::Ipip => "ipip".to_owned(),
            Kind::Gre => "gre:+c".to_owned(),
            Kind::Gue(port) => format!("gue:{port}:+c"),
        }
    }

    /// Bytes of the headers around a packet, over IPv4.
    pub fn overhead(self) -> usize {
        match self {
            Kind::Ipip => 20,
            Kind::Gre => 28,
            Kind::Gue(_) => 32,
        }
    }

    /// The same over IPv6, whose header has 20 more.
    pub fn overhead_over_ipv6(self) -> usize {
        self.overhead() + 20
    }

    /// The line of a service's configuration.
    pub fn setting(self) -> String {
        match self {
            Kind::Ipip => "tunnel = { encapsulation = \"ipip\" }".to_owned(),
            Kind::Gre => "tunnel = { encapsulation = \"gre\", checksum = true }".to_owned(),
            Kind::Gue(port) => {
                format!("tunnel = {{ encapsulation = \"gue\", port = {port}, checksum = true }}")
            }
        }
    }
}

/// The end of a tunnel; it is gone when dropped.
#[derive(Debug)]
pub struct End(Daemon);

impl End {
    /// Makes a machine the end of a tunnel, through a device `untun0`.
    pub fn start(machine: &Namespace, kind: Kind) -> Result<End> {
        // A kernel that has these protocols, but no device up for them, would say so beside the program: by errors that
        // quote a header (8 bytes behind their own) with the number of IP in IP or of GRE.
        machine.nft(
            "table ip untunnel {\nchain out {\ntype filter hook output priority 0;\n\
             icmp type destination-unreachable icmp code { 2, 3 } @th,136,8 { 4, 41, 47 } drop\n}\n}\n\
             table ip6 untunnel {\nchain out {\ntype filter hook output priority 0;\n\
             icmpv6 type { destination-unreachable, parameter-problem } @th,112,8 { 4, 41, 47 } drop\n}\n}\n",
        )?;
        let program = with_devices(machine.state(), "untunnel.py", include_str!("python/untunnel.py"))?;
        let port = if let Kind::Gue(port) = kind { port } else { 0 };
        let mut daemon = machine
            .command(PYTHON)
            .arg(program)
            .args([kind.name(), &port.to_string(), "untun0"])
            .spawn(&format!("untunnel-{}-{}", kind.name(), machine.name()))?;
        wait::until("the tunnel's end is ready", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("ready"));
            Ok(())
        })?;
        Ok(End(daemon))
    }

    /// All real servers of a cluster.
    pub fn of_all(cluster: &Cluster, kind: Kind) -> Result<Vec<End>> {
        cluster.real_servers.iter().map(|server| End::start(server, kind)).collect()
    }

    /// The same, where packets inside may be of IPv6.
    pub fn of_all_for_both(cluster: &Cluster, kind: Kind) -> Result<Vec<End>> {
        let ends = End::of_all(cluster, kind)?;
        cluster.real_servers.iter().try_for_each(|server| switch_on(server, "untun0"))?;
        Ok(ends)
    }

    /// Fails if something has come that it could not take apart.
    pub fn check(&mut self) -> Result<()> {
        self.0.check_running()?;
        let log = self.0.log();
        ensure!(!log.contains("not understood"), "{log}");
        Ok(())
    }
}

/// A service of a cluster by this tunnel instead of its layout's mode.
pub fn through(service: Service, kind: Kind) -> Service {
    Service { mode: "tunnel", ..service }.setting(&kind.setting())
}

/// What a machine believes the path MTU to an address to be, if it has learnt one.
pub fn path_mtu(machine: &Namespace, address: impl Display) -> Result<Option<u64>> {
    let route = machine.ip_json(&format!("route get {address}"))?;
    let metrics = &route.get(0).context("no route")?["metrics"];
    Ok(metrics.get(0).and_then(|metrics| metrics["mtu"].as_u64()))
}

/// A machine forgets what it has learnt of paths.
pub fn forget_paths(machine: &Namespace) -> Result<()> {
    ["-4", "-6"]
        .into_iter()
        .try_for_each(|family| machine.command("ip").arg(family).words("route flush cache").run().map(drop))
}
