//! Real servers that are the router itself: packets to them go to Linux as they came, and are followed as those to others.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Layout, vip},
    config::Service,
    ipv6,
    nginx::Nginx,
    router::Router,
    servers::Server,
    shm::Place,
    wait::{self, PATIENCE},
    with_cluster,
};

/// On the router.
const HERE: &str = "rs0";

fn punted(router: &Router) -> Result<u64> {
    Ok(router.counters()?.fates().get("punted local").copied().unwrap_or_default())
}

/// Among the three others, in turn, with checks, over both families.
#[test]
fn the_router_is_one_of_its_servers() -> Result<()> {
    ipv6::with_cluster(Layout::OneArmed, |cluster| {
        let (_others, here) = (cluster.start_web()?, Nginx::start_on_router(cluster)?);
        let four = cluster.web().scheduler("rr").server(vip(80), 1).checked();
        let six = ipv6::web(cluster).server(ipv6::vip(80), 1).checked();
        let router = cluster.start_router(&ipv6::config(cluster).service(four).service(six))?;
        wait::until("all servers are up", PATIENCE, || {
            let services = router.services()?;
            ensure!(services.iter().flat_map(|service| &service.servers).all(|server| server.up));
            Ok(())
        })?;
        for address in [SocketAddr::from(vip(80)), ipv6::vip(80)] {
            let before = punted(&router)?;
            let answers = client::get(&cluster.client, address, 40)?;
            ensure!(answers.counts()? == [10; 3] && answers.of(HERE) == 10, "{address}: {answers:?}");
            router.quiet()?;
            let services = router.services()?;
            let service = services.iter().find(|service| service.address == address).context("no service")?;
            let local = service.servers.iter().find(|s| s.address == address).context("no server")?;
            // All closed, as far as the client's packets tell.
            ensure!((local.stats.connections, local.active, local.inactive) == (10, 0, 10), "{local:?}");
            ensure!(local.stats.packets_in == punted(&router)? - before, "{local:?}");
            let listed = router.list()?;
            let line = |line: &&str| line.contains(&address.to_string()) && line.contains("->");
            let line = listed.lines().find(line).context(listed.clone())?;
            ensure!(line.contains("Local   1      0          10"), "{listed}");
        }
        ensure!(here.wait_logged(20)?.iter().any(|address| *address == CLIENT.to_string()));
        router.finish()
    })
}

/// Over UDP, and for clients whose packets end their way here.
#[test]
fn what_has_no_hop_left_has_arrived() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _here = Nginx::start_on_router(cluster)?;
        let web = Service::tcp("dr", vip(8080)).server(vip(8080), 1);
        let names = Service::udp("dr", vip(53)).server(vip(53), 1);
        let router = cluster.start_router(&cluster.config().service(web).service(names))?;
        let _dns = Server::dns(&cluster.router, vip(53), HERE)?;
        for port in 20_000..20_010 {
            ensure!(client::dig(&cluster.client, port, vip(53))? == HERE);
        }
        let socket = cluster.client.enter(|| client::bound((CLIENT, 0)))?;
        socket.set_ttl_v4(1)?;
        socket.connect(&vip(8080).into()).context("with a TTL of 1")?;
        drop(socket);
        router.quiet()?;
        let connections: u64 = router.services()?.iter().map(|service| service.stats.connections).sum();
        ensure!(connections == 11, "{connections}");
        router.finish()
    })
}

/// Linux has the connection. A router must not be in the way, and must know it as one that it balances.
#[test]
fn connections_to_the_router_go_on_after_a_reload_a_kill_and_an_upgrade() -> Result<()> {
    ipv6::with_cluster(Layout::OneArmed, |cluster| {
        let place = Place::new(cluster)?;
        let addresses = [SocketAddr::from(vip(7)), ipv6::vip(7)];
        let of_router = |address| Service::tcp("dr", address).server(address, 1);
        let [four, six] = addresses.map(of_router);
        let mut config = ipv6::config(cluster).service(four).service(six);
        config.keep = place.keep();
        let mut router = cluster.start_router(&config)?;
        let _echoes = addresses
            .map(|address| Server::tcp_echo(&cluster.router, address, ""))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let connect = |address| client::connect(&cluster.client, address);
        let mut streams = addresses.into_iter().map(connect).collect::<Result<Vec<_>>>()?;
        let mut all_go_on = |router: &Router, word: &str| -> Result<()> {
            streams
                .iter_mut()
                .try_for_each(|stream| client::echo(stream, word.as_bytes()))
                .with_context(|| word.to_owned())?;
            for service in router.services()? {
                let local = service.servers.iter().find(|server| server.address == service.address);
                ensure!(local.is_some_and(|local| local.active == 1), "{word}: {service:?}");
            }
            Ok(())
        };
        all_go_on(&router, "at first")?;

        // Others get what is new, and then the router itself is to have no more.
        config.services[0] = config.services[0].clone().server(cluster.endpoint(0, 7), 1);
        config.services[1] = config.services[1].clone().server(ipv6::endpoint(cluster, 0, 7), 1);
        for service in &mut config.services {
            service.servers[0].weight = 0;
        }
        router.apply(&config)?;
        all_go_on(&router, "after a reload")?;

        router.kill()?;
        router = cluster.start_router(&config)?;
        all_go_on(&router, "by the next router")?;
        router.rvs("upgrade").run()?;
        all_go_on(&router, "after an upgrade")?;
        router.finish()
    })
}

/// NAT to another port for the others; the router is sorry while they are down.
#[test]
fn the_router_is_sorry() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut others = cluster.start_web()?;
        let _here = Nginx::start_on_router(cluster)?;
        let service = cluster.web().checked().setting(&format!("sorry_server = \"{}\"", vip(80)));
        let router = cluster.start_router(&cluster.config().service(service))?;
        let answers = |by_router: u64| {
            wait::until("the right one answers", PATIENCE, || {
                let answers = client::get(&cluster.client, vip(80), 10)?;
                ensure!(answers.of(HERE) == by_router && answers.total() == 10, "{answers:?}");
                Ok(())
            })
        };
        (0..3).try_for_each(|index| router.wait_up(index, true))?;
        answers(0)?;
        others.iter_mut().try_for_each(Nginx::kill)?;
        (0..3).try_for_each(|index| router.wait_up(index, false))?;
        answers(10)?;
        others.iter_mut().try_for_each(Nginx::start_again)?;
        (0..3).try_for_each(|index| router.wait_up(index, true))?;
        answers(0)?;
        router.finish()
    })
}
