//! SCTP: associations of usrsctp, a stack in user space (this machine's kernel need not have one).

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    cluster::{self, Cluster, Layout},
    ipv6,
    process::{Command, Daemon},
    python::PYTHON,
    wait::{self, PATIENCE},
};

use crate::way::{Mode, Way, on_each, start, with_ways};

const MESSAGES: usize = 200;
const LENGTH: usize = 1000;

/// From an address of a loopback interface usrsctp answers nobody; here is another one that nobody asks about by ARP or ND. Of IPv6 it
/// leaves the source to Linux.
fn move_the_virtual_addresses(cluster: &Cluster) -> Result<()> {
    let (four, six) = (cluster::VIP, ipv6::VIP);
    cluster.real_servers.iter().try_for_each(|machine| {
        machine.ip("link add vip0 type veth peer name vip1\nlink set vip0 up")?;
        ipv6::switch_on(machine, "vip0")?;
        machine.ip(&format!(
            "address del {four}/32 dev lo\naddress add {four}/32 dev vip0\n\
             address del {six}/128 dev lo\naddress add {six}/128 dev vip0 nodad\n\
             route add {} dev eth0 src {six}",
            ipv6::CLIENT
        ))
    })
}

/// Client and server, a program for either.
struct Sctp(PathBuf);

impl Sctp {
    fn new(cluster: &Cluster) -> Result<Sctp> {
        let program = cluster.state().file("sctp.py");
        fs::write(&program, include_str!("../harness/python/sctp.py"))?;
        Ok(Sctp(program))
    }

    /// The server of a way. There can be one on a machine: another's stack would refuse what it does not know.
    fn server(&self, cluster: &Cluster, way: Way, port: u16) -> Result<Daemon> {
        let at = way.listens(cluster, port);
        let command = way.machine(cluster).command(PYTHON).arg(&self.0);
        let command = command.words(&format!("serve {} {}", at.ip(), at.port()));
        let mut daemon = command.spawn(&format!("sctp-{port}"))?;
        wait::until("the server listens", PATIENCE, || {
            daemon.check_running()?;
            ensure!(daemon.log().contains("ready"));
            Ok(())
        })?;
        Ok(daemon)
    }

    /// A client, which sends all messages and waits until the server has taken them.
    fn client(&self, cluster: &Cluster, way: Way, port: u16) -> Command {
        let (own, to) = (way.client(), way.vip(port).ip());
        let words = format!("send {own} {to} {port} {MESSAGES} {LENGTH}");
        cluster.client.command(PYTHON).arg(&self.0).words(&words).limit(Duration::from_secs(30))
    }
}

fn associations(layout: Layout) -> Result<()> {
    with_ways(layout, |cluster, ways| {
        // The router has the virtual addresses while RVS runs, and usrsctp those that were there when it began.
        let ways: Vec<_> = ways.iter().copied().filter(|(way, _)| way.mode != Mode::Local).collect();
        if layout == Layout::OneArmed {
            move_the_virtual_addresses(cluster)?;
        }
        let config = ways.iter().fold(ipv6::config(cluster), |config, (way, port)| {
            config.service(way.service(cluster, "sctp", *port))
        });
        let router = start(cluster, &ways, &config, "sctp")?;
        let sctp = Sctp::new(cluster)?;
        on_each(&ways, |way, port| {
            let server = sctp.server(cluster, way, port)?;
            sctp.client(cluster, way, port).run()?;
            wait::until("all has come", PATIENCE, || {
                ensure!(server.log().contains(&format!("{} bytes", MESSAGES * LENGTH)), "{}", server.log());
                Ok(())
            })?;
            let (list, vip) = (router.rvs("list -c").run()?, way.vip(port).to_string());
            let is_it = |line: &str| line.starts_with("SCTP") && line.contains(&vip);
            ensure!(list.lines().any(|line| is_it(line) && line.contains("CLOSED")), "{list}");
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn associations_two_armed() -> Result<()> {
    associations(Layout::TwoArmed)
}

#[test]
fn associations_one_armed() -> Result<()> {
    associations(Layout::OneArmed)
}
