//! SCTP: associations of usrsctp, a stack in user space (this machine's kernel need not have one), through each mode.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    process::Daemon,
    wait::{self, PATIENCE},
    with_cluster,
};

const TSCTP: &str = "/usr/lib/usrsctp/tsctp";
const MESSAGES: usize = 1000;
const LENGTH: usize = 1000;

/// A server on the `index`th real server, which takes messages and says how many when an association has ended. With no port for
/// UDP its packets are SCTP's own; with one address each end tells the other of no more.
fn server(cluster: &Cluster, index: usize, at: SocketAddrV4) -> Result<Daemon> {
    let machine = &cluster.real_servers[index];
    if cluster.layout() == Layout::OneArmed {
        // From an address of a loopback interface it answers nobody; this is another one that nobody's ARP is about.
        let moved = format!("address del {VIP}/32 dev lo\nlink add vip0 type veth peer name vip1");
        machine.ip(&format!("{moved}\nlink set vip0 up\nlink set vip1 up\naddress add {VIP}/32 dev vip0"))?;
    }
    let words = format!("-L {} -p {} -U 0", at.ip(), at.port());
    let mut daemon = machine.command(TSCTP).words(&words).spawn(&format!("tsctp-{index}"))?;
    wait::until("the server listens", PATIENCE, || {
        daemon.check_running()?;
        ensure!(daemon.log().contains(&format!("bound port:{}", at.port())), "{}", daemon.log());
        Ok(())
    })?;
    Ok(daemon)
}

/// How many associations a server has had, in each of which all has come.
fn served(daemon: &Daemon) -> usize {
    let whole = format!(", {MESSAGES}, {}, ", MESSAGES * LENGTH);
    daemon.log().lines().filter(|line| line.contains(&whole)).count()
}

fn associations(layout: Layout, service: Service, port: u16) -> Result<()> {
    with_cluster(layout, |cluster| {
        let at = |index| match service.mode {
            "dr" => vip(port),
            _ => cluster.endpoint(index, port),
        };
        let servers = [server(cluster, 0, at(0))?, server(cluster, 1, at(1))?];
        let service = [0, 1].into_iter().fold(service.clone().scheduler("rr"), |service, index| {
            service.server(cluster.endpoint(index, port), 1)
        });
        let router = cluster.start_router(&cluster.config().service(service))?;
        for _ in 0..4 {
            let words = format!("-L {CLIENT} -p 3868 -U 0 -n {MESSAGES} -l {LENGTH} {}", VIP);
            cluster.client.command(TSCTP).words(&words).limit(Duration::from_secs(60)).run()?;
        }
        wait::until("all has come", PATIENCE, || {
            let served = servers.each_ref().map(served);
            ensure!(served == [2, 2], "{served:?}");
            Ok(())
        })?;
        let list = router.rvs("list -c").run()?;
        let closed = |line: &&str| line.starts_with("SCTP") && line.contains("CLOSED");
        ensure!(list.lines().filter(closed).count() == 4, "{list}");
        router.finish()
    })
}

fn of(mode: &'static str) -> Service {
    Service { protocol: "sctp", ..Service::tcp(mode, vip(3868)) }
}

/// To another port, so that every checksum is another one.
#[test]
fn associations_by_nat() -> Result<()> {
    associations(Layout::TwoArmed, of("nat"), 13868)
}

#[test]
fn associations_by_direct_routing() -> Result<()> {
    associations(Layout::OneArmed, of("dr"), 3868)
}

#[test]
fn associations_by_full_nat() -> Result<()> {
    let service = of("fullnat").setting("fullnat = { local = [\"10.0.0.100-10.0.0.101\"] }");
    associations(Layout::TwoArmed, service, 13868)
}
