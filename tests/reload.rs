//! Reloading under load: nothing is lost, nothing breaks, and the new file is in force at once.

use std::{
    net::{SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Service,
    nginx::BIG,
    router::Router,
    servers::Server,
    tally::{self, Tally},
    wait::PATIENCE,
    with_cluster,
};

/// Sends datagrams and expects each back before it sends the next; how many went round.
fn datagrams(cluster: &Cluster, port: u16, stop: &AtomicBool) -> Result<u64> {
    let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, port))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(vip(7))?;
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        socket.send(&count.to_be_bytes())?;
        let mut buffer = [0; 16];
        let length = socket.recv(&mut buffer).with_context(|| format!("datagram {count} was lost"))?;
        ensure!(buffer[..length] == count.to_be_bytes());
        count += 1;
    }
    Ok(count)
}

/// Sends messages over one connection and expects each back.
fn conversation(cluster: &Cluster, stop: &AtomicBool) -> Result<u64> {
    let mut stream = client::connect(&cluster.client, vip(7777))?;
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        client::echo(&mut stream, &count.to_be_bytes()).with_context(|| format!("message {count}"))?;
        count += 1;
    }
    client::close(stream)?;
    Ok(count)
}

fn reload_fifty_times(cluster: &Cluster, router: &mut Router) -> Result<()> {
    let mut config = config(cluster);
    for reload in 0..50_u32 {
        // Weights, a scheduler, and a service that comes and goes; the servers of the load all stay.
        for service in &mut config.services {
            for (index, server) in service.servers.iter_mut().enumerate() {
                server.weight = 1 + (reload + index as u32) % 5;
            }
        }
        config.services[0].scheduler = if reload % 3 == 0 { "wlc" } else { "wrr" }.to_owned();
        if reload % 4 == 1 {
            config.services.push(cluster.web_on(8888, 8080));
        } else {
            config.services.retain(|service| service.address != vip(8888).into());
        }
        if reload % 2 == 0 {
            router.apply(&config)?;
        } else {
            router.apply_by_signal(&config)?;
        }
    }
    Ok(())
}

fn config(cluster: &Cluster) -> harness::config::Config {
    let udp = (0..3).fold(Service::udp("nat", vip(7)).scheduler("rr"), |service, index| {
        service.server(cluster.endpoint(index, 7), 1)
    });
    cluster.config().workers(2).service(cluster.web()).service(cluster.web_on(7777, 7777)).service(udp)
}

#[test]
fn fifty_reloads_under_load_with_no_lost_packet_and_no_broken_connection() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut servers = Vec::new();
        for (index, namespace) in cluster.real_servers.iter().enumerate() {
            servers.push(Server::tcp_echo(namespace, cluster.endpoint(index, 7777), "")?);
            servers.push(Server::udp_echo(namespace, cluster.endpoint(index, 7))?);
        }
        let near = Tally::of_client(&cluster.client, "192.0.2.10", "tcp", 7777)?;
        let far: Vec<_> = cluster
            .real_servers
            .iter()
            .map(|server| Tally::of_server(server, "tcp", 7777))
            .collect::<Result<_>>()?;
        let mut router = cluster.start_router(&config(cluster))?;
        let generation = router.counters()?.generation;

        let stop = AtomicBool::new(false);
        let requests = AtomicU64::new(0);
        let totals = thread::scope(|scope| -> Result<(u64, u64)> {
            let datagrams: Vec<_> = (0..2)
                .map(|flow| {
                    scope.spawn({
                        let stop = &stop;
                        move || datagrams(cluster, 5000 + flow, stop)
                    })
                })
                .collect();
            let conversations: Vec<_> =
                (0..6).map(|_| scope.spawn(|| conversation(cluster, &stop))).collect();
            let web = scope.spawn(|| -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let answers = client::get(&cluster.client, vip(80), 20)?;
                    ensure!(answers.failed.is_empty(), "{answers:?}");
                    requests.fetch_add(answers.total(), Ordering::Relaxed);
                }
                Ok(())
            });
            let result = reload_fifty_times(cluster, &mut router);
            stop.store(true, Ordering::Relaxed);
            let sum = |threads: Vec<thread::ScopedJoinHandle<'_, Result<u64>>>| {
                threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<Result<u64>>()
            };
            let totals = (sum(datagrams)?, sum(conversations)?);
            web.join().expect("no panic")?;
            result?;
            Ok(totals)
        })?;
        let (datagrams, messages) = totals;
        let requests = requests.load(Ordering::Relaxed);
        ensure!(
            datagrams > 100 && messages > 100 && requests >= 20,
            "{datagrams} {messages} {requests}: no load"
        );

        // Not one packet lost on the way, in either direction, and each counted once.
        let traffic = tally::wait_equal(&near, &far)?;
        let counters = router.quiet()?;
        ensure!(counters.generation >= generation + 50, "{}", counters.generation);
        let services = router.services()?;
        let stats = |address: SocketAddrV4, protocol: &str| {
            let mut found = services.iter().filter(|service| service.address == address.into());
            found.find(|service| service.protocol.eq_ignore_ascii_case(protocol)).map(|service| service.stats)
        };
        let echo = stats(vip(7777), "tcp").context("no echo service")?;
        ensure!(echo.connections == 6, "{echo:?}");
        ensure!(
            (echo.packets_in, echo.bytes_in) == (traffic.sent.packets, traffic.sent.bytes),
            "{echo:?} {traffic:?}"
        );
        let udp = stats(vip(7), "udp").context("no datagram service")?;
        ensure!(
            (udp.packets_in, udp.packets_out) == (datagrams, datagrams),
            "{udp:?}, {datagrams} went round"
        );
        let web = stats(vip(80), "tcp").context("no web service")?;
        ensure!(web.connections == requests, "{web:?}, {requests} requests");
        router.finish()
    })
}

#[test]
fn a_long_download_is_unbroken_by_sighup_and_the_new_weights_are_in_force() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("wrr"));
        let mut router = cluster.start_router(&config)?;
        // 8 MiB at 4 MiB a second: the reload comes in the middle of it.
        let mut download = client::start_download(&cluster.client, vip(80), "4m", "download")?;
        harness::wait::until("the download runs", PATIENCE, || {
            ensure!(router.service()?.stats.bytes_out > 100_000);
            Ok(())
        })?;
        for (index, weight) in [4, 3, 2].into_iter().enumerate() {
            config.set_weight(index, weight);
        }
        router.apply_by_signal(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 90)?.counts()? == [40, 30, 20]);
        download.check_running().context("the reload came too late to prove anything")?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        let bytes = std::fs::read(cluster.state().file("download"))?;
        ensure!(bytes.len() == BIG && bytes == harness::nginx::big_file(), "{} bytes came", bytes.len());
        ensure!(
            nginx.iter().map(|server| server.clients().map_or(0, |clients| clients.len())).sum::<usize>()
                == 91
        );
        router.finish()
    })
}

#[test]
fn services_come_and_go_with_their_virtual_addresses() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web());
        let router = cluster.start_router(&config)?;
        let second: SocketAddrV4 = "192.0.2.20:80".parse()?;
        let has = |address: &str| -> Result<bool> {
            Ok(cluster.router.addresses("wan")?.iter().any(|found| found.starts_with(&format!("{address}/"))))
        };
        ensure!(has("192.0.2.10")? && !has("192.0.2.20")?, "{:?}", cluster.router.addresses("wan")?);

        let other = cluster.web().scheduler("rr").setting("on_remove = \"drop\"");
        let more = config.clone().service(Service { address: second.into(), ..other });
        router.apply(&more)?;
        ensure!(has("192.0.2.10")? && has("192.0.2.20")?, "{:?}", cluster.router.addresses("wan")?);
        ensure!(client::get(&cluster.client, second, 30)?.counts()? == [10, 10, 10]);
        ensure!(client::get(&cluster.client, vip(80), 3)?.failed.is_empty());

        router.apply(&config)?;
        ensure!(has("192.0.2.10")? && !has("192.0.2.20")?, "{:?}", cluster.router.addresses("wan")?);
        ensure!(router.services()?.len() == 1);
        ensure!(client::get(&cluster.client, vip(80), 3)?.failed.is_empty());
        router.finish()
    })
}

#[test]
fn an_address_that_somebody_has_taken_away_is_put_back_by_a_reload() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        cluster.router.command("ip").words("addr flush dev wan").run()?;
        ensure!(cluster.router.addresses("wan")?.iter().all(|found| !found.starts_with("192.0.2.")));
        router.apply(&config)?;
        for address in ["192.0.2.1/24", "192.0.2.10/32"] {
            let found = cluster.router.addresses("wan")?;
            ensure!(found.iter().any(|found| found == address), "{address} is not among {found:?}");
        }
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.finish()
    })
}

#[test]
fn counters_and_identities_outlive_a_reload() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.quiet()?;
        let before = router.service()?;
        // Another order of services and servers, and a service in front: identity is not position.
        config.services[0].servers.reverse();
        config.services.insert(0, cluster.web_on(81, 8080));
        router.apply(&config)?;
        let services = router.services()?;
        let after =
            services.iter().find(|service| service.address == vip(80).into()).context("service gone")?;
        ensure!(after.stats == before.stats, "{before:?} became {after:?}");
        for server in &before.servers {
            let same = after.servers.iter().find(|other| other.address == server.address);
            ensure!(same.is_some_and(|other| other == server), "{server:?} became {same:?}");
        }
        router.finish()
    })
}

#[test]
fn a_server_that_is_removed_gets_nothing_any_more() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        let removed = config.services[0].servers.remove(1);
        router.apply(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [15, 0, 15]);
        let servers = router.service()?.servers;
        let wanted = servers.iter().filter(|server| server.state == "enabled").count();
        ensure!(wanted == 2 && servers.iter().all(|s| s.state == "enabled" || s.effective_weight == 0));
        config.services[0].servers.push(removed);
        router.apply(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [10, 10, 10]);
        router.finish()
    })
}
