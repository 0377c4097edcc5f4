//! A router on a stick: clients and real servers in two tagged networks on its only wire.

use std::fs;

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{Layout, vip},
    config::{Config, Service},
    ipv6,
    router::Router,
    servers::Server,
    shm::Place,
    trunk::Trunk,
    with_cluster,
};

/// A virtual address in the real servers' network, of a service by direct routing: what comes in with a tag leaves with the same one.
const INSIDE: &str = "10.0.0.10:8080";

const NETWORKS: &str = r#"
[[vlan]]
name = "wan"
port = "trunk"
id = 100
addresses = ["192.0.2.1/24"]

[[vlan]]
name = "lan"
port = "trunk"
id = 4094
addresses = ["10.0.0.1/24"]
"#;

/// A configuration whose only wire is the trunk.
fn on_a_stick(mut config: Config) -> Config {
    config.ports.truncate(1);
    config.ports[0].name = "trunk";
    config.ports[0].device = "net_af_packet,iface=trunk0".to_owned();
    config.ports[0].addresses.clear();
    config
}

#[test]
fn a_router_on_a_stick() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let [server, _, inside] = &cluster.real_servers[..] else { unreachable!() };
        server.sysctl("net/ipv4/conf/all/arp_ignore", 1)?;
        server.sysctl("net/ipv4/conf/all/arp_announce", 2)?;
        server.ip("address add 10.0.0.10/32 dev lo")?;
        cluster.client.ip("route add default via 192.0.2.1")?;
        // What passes from network to network, the data path has routed.
        cluster.router.sysctl("net/ipv4/ip_forward", 0)?;

        let mut trunk = Trunk::start(cluster, "trunk0", &[100, 4094])?;
        let direct = Service::tcp("dr", INSIDE.parse::<std::net::SocketAddr>()?);
        let direct = direct.server(cluster.endpoint(0, 8080), 1).setting("port = \"lan\"");
        let config = on_a_stick(cluster.config().service(cluster.web().scheduler("rr")).service(direct));
        let router =
            Router::start_text(cluster, &format!("[routing]\nforward = true\n{config}{NETWORKS}"), &config)?;

        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        ensure!(client::get(inside, INSIDE.parse::<std::net::SocketAddr>()?, 5)?.counts()? == [5, 0, 0]);
        // The router's own addresses, by the twins; and through it. 1500 bytes and no fragments.
        for (machine, address) in [
            (&cluster.client, "192.0.2.1"),
            (&cluster.client, "10.0.0.1"),
            (inside, "10.0.0.1"),
            (&cluster.client, "10.0.0.12"),
            (inside, "192.0.2.100"),
        ] {
            machine.command("ping").words(&format!("-c 3 -i 0.2 -W 3 -M do -s 1472 {address}")).run()?;
        }

        let ports = router.rvs("ports").run()?;
        for line in ["port wan runs: VLAN 100 of trunk", "port lan runs: VLAN 4094 of trunk"] {
            ensure!(ports.contains(line), "{ports}");
        }
        trunk.check()?;
        router.finish()?;
        let left = cluster.router.interfaces()?;
        ensure!(!left.iter().any(|name| ["wan", "lan"].contains(&name.as_str())), "{left:?}");
        Ok(())
    })
}

/// What has come in with a tag is known by the port of that tag, also to the next process.
#[test]
fn connections_of_tagged_networks_go_on_after_a_kill_and_an_upgrade() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let place = Place::new(cluster)?;
        let _echo = Server::tcp_echo(&cluster.real_servers[0], cluster.endpoint(0, 7), "")?;
        let _trunk = Trunk::start(cluster, "trunk0", &[100, 4094])?;
        let service = Service::tcp("nat", vip(7)).server(cluster.endpoint(0, 7), 1);
        let mut config = on_a_stick(cluster.config().service(service));
        config.keep = place.keep();
        let text = format!("{config}{NETWORKS}");
        let router = Router::start_text(cluster, &text, &config)?;
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"at first")?;
        router.kill()?;
        let router = Router::start_text(cluster, &text, &config)?;
        client::echo(&mut stream, b"by the next router")?;
        router.rvs("upgrade").run()?;
        client::echo(&mut stream, b"after an upgrade")?;
        ensure!(router.service()?.stats.connections == 0, "it is the same connection");
        let ports = router.rvs("ports").run()?;
        ensure!(ports.contains("port lan runs: VLAN 4094 of trunk"), "{ports}");
        router.finish()
    })
}

/// Both families, two workers on the one wire; then a reload, one that is refused, and another process.
#[test]
fn both_families_by_two_workers_through_a_reload_and_an_upgrade() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        // What Linux says of its own accord by IPv6 on the trunk's twin has no tag: nothing is said against it.
        let _trunk = Trunk::start(cluster, "trunk0", &[100, 4094])?;
        let networks = NETWORKS
            .replace("\"192.0.2.1/24\"", &format!("\"192.0.2.1/24\", \"{}/64\"", ipv6::ROUTER))
            .replace(
                "\"10.0.0.1/24\"",
                &format!("\"10.0.0.1/24\", \"{}/64\"", ipv6::gateway(Layout::TwoArmed)),
            );
        let config = cluster.config().workers(2).service(cluster.web().scheduler("rr"));
        let mut config = on_a_stick(config.service(ipv6::web(cluster)));
        let router = Router::start_text(cluster, &format!("{config}{networks}"), &config)?;
        let ask = |expected: [u64; 3]| -> Result<()> {
            let four = client::get(&cluster.client, vip(80), 30)?.counts()?;
            let six = client::get(&cluster.client, ipv6::vip(80), 30)?.counts()?;
            ensure!((four, six) == (expected, [10; 3]), "{four:?} {six:?}");
            Ok(())
        };
        ask([10; 3])?;
        let workers = router.counters()?.workers;
        ensure!(workers.len() == 2 && workers.iter().all(|worker| worker.forwarded > 50), "{workers:?}");

        config.set_weight(2, 0);
        fs::write(&router.file, format!("{config}{networks}"))?;
        router.reload()?.success()?;
        ask([15, 15, 0])?;
        fs::write(&router.file, format!("{config}{networks}").replace("4094", "4093"))?;
        let refused = router.reload()?;
        ensure!(refused.code() != Some(0) && refused.stderr.contains("vlan[1].id"), "{refused:?}");
        ask([15, 15, 0])?;

        fs::write(&router.file, format!("{config}{networks}"))?;
        router.rvs("upgrade --lose-connections").run()?;
        ask([15, 15, 0])?;
        let ports = router.rvs("ports").run()?;
        ensure!(ports.contains("port lan runs: VLAN 4094 of trunk"), "{ports}");
        router.finish()
    })
}
