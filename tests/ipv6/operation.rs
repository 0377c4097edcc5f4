//! What operators do and see: listings, persistence, checks, reloads, removals, and a router that is killed.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout},
    ipv6::{self, CLIENT, endpoint, real_server, vip, with_cluster},
    router::Router,
    servers::Server,
    shm::Place,
    wait::{self, PATIENCE},
};

use crate::{nothing_dropped, start, stats, udp};

const PORT: u16 = 7;

/// Servers that say who they are and then echo, over TCP.
fn echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers
        .map(|(index, server)| {
            Server::tcp_echo(server, endpoint(cluster, index, PORT), &format!("rs{}", index + 1))
        })
        .collect()
}

/// A connection from there, and the number of its server.
fn open(cluster: &Cluster, from: SocketAddr) -> Result<(TcpStream, usize)> {
    let mut stream = cluster.client.enter(|| {
        let socket = client::bound(from)?;
        socket.connect(&vip(PORT).into())?;
        Ok(TcpStream::from(socket))
    })?;
    let mut name = [0; 3];
    stream.read_exact(&mut name)?;
    ensure!(name.starts_with(b"rs"), "{name:?}");
    Ok((stream, usize::from(name[2] - b'1')))
}

#[test]
fn networks_of_64_bits_come_back_and_listings_say_so() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let neighbour: Ipv6Addr = "2001:db8:2::101".parse()?;
        let other: Ipv6Addr = "2001:db8:3::100".parse()?;
        cluster.client.ip(&format!(
            "address add {neighbour}/64 dev eth0 nodad\naddress add {other}/64 dev eth0 nodad"
        ))?;
        let _echo = echo(cluster)?;
        let service = ipv6::balanced(cluster, "tcp", PORT, PORT);
        let service = service.setting("persistence = { timeout = \"10m\", prefix = 64 }");
        let router = start(cluster, &ipv6::config(cluster).service(service))?;
        let before = router.quiet()?.generation;
        cluster.router.ip(&format!("route add 2001:db8:3::/64 via {CLIENT}"))?;
        wait::until("the route is known", PATIENCE, || {
            ensure!(router.counters()?.generation > before);
            Ok(())
        })?;

        let (_held, server) = open(cluster, (CLIENT, 40_000).into())?;
        for number in 1..10 {
            ensure!(open(cluster, (CLIENT, 40_000 + number).into())?.1 == server);
        }
        ensure!(open(cluster, (neighbour, 40_000).into())?.1 == server);
        let elsewhere = open(cluster, (other, 40_000).into())?.1;
        ensure!(elsewhere != server, "in turn");
        ensure!(open(cluster, (other, 40_001).into())?.1 == elsewhere);

        let list = router.list()?;
        let has = |text: &str, line: &[&str]| {
            text.lines().any(|found| found.split_whitespace().eq(line.iter().copied()))
        };
        ensure!(
            has(&list, &["TCP", "[2001:db8:2::10]:7", "rr", "persistent", "600", "mask", "64"]),
            "{list}"
        );
        let address = endpoint(cluster, server, PORT).to_string();
        ensure!(
            list.lines()
                .any(|line| line.trim().starts_with(&format!("-> {address} ")) && line.contains("Masq")),
            "{list}"
        );
        let list = router.rvs("list --persistent-conn").run()?;
        // Weight, templates, active and inactive connections.
        ensure!(has(&list, &["->", &address, "1", "1", "1", "10"]), "{list}");
        let json = router.rvs("list --json").run()?;
        ensure!(
            json.contains("\"[2001:db8:2::10]:7\"") && json.contains(&format!("\"{address}\"")),
            "{json}"
        );
        nothing_dropped(&router)?;
        router.finish()
    })
}

#[test]
fn a_killed_server_is_found_dead_and_nothing_fails_after() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let mut nginx = cluster.start_web()?;
            let web = ipv6::web(cluster).checked();
            let router = cluster.start_router(&ipv6::config(cluster).service(web))?;
            let answers = |requests, expected: [u64; 3]| {
                let counts = client::get(&cluster.client, vip(80), requests)?.counts()?;
                ensure!(counts == expected, "{counts:?} instead of {expected:?}");
                Ok(())
            };
            answers(30, [10, 10, 10])?;
            nginx[1].kill()?;
            router.wait_up(1, false)?;
            let server = router.server(1)?;
            ensure!(server.address == endpoint(cluster, 1, layout.http_port()), "{server:?}");
            ensure!(server.reason.as_deref().is_some_and(|reason| reason.contains("refused")), "{server:?}");
            answers(100, [50, 0, 50])?;
            nginx[1].start_again()?;
            router.wait_up(1, true)?;
            answers(30, [10, 10, 10])?;

            // Without a word: no reset, no error, not even a neighbour advertisement.
            cluster.lan.ip("link set rs3 down")?;
            router.wait_up(2, false)?;
            answers(30, [15, 15, 0])?;
            cluster.lan.ip("link set rs3 up")?;
            router.wait_up(2, true)?;
            answers(30, [10, 10, 10])?;
            router.finish()
        })?;
    }
    Ok(())
}

/// Weights, and a service of either family that comes and goes.
fn reload_ten_times(cluster: &Cluster, router: &Router) -> Result<()> {
    for round in 0..10 {
        let mut services = [ipv6::web(cluster), ipv6::balanced(cluster, "udp", PORT, PORT)];
        services[0].servers[0].weight = 1 + round % 3;
        if round % 2 == 1 {
            services.reverse();
        }
        let mut config =
            services.into_iter().fold(ipv6::config(cluster), |config, service| config.service(service));
        if round % 3 == 0 {
            config = config.service(ipv6::balanced(cluster, "tcp", 81, 8080)).service(cluster.web());
        }
        router.apply(&config)?;
    }
    Ok(())
}

#[test]
fn reloads_under_traffic_lose_nothing() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let servers = cluster.real_servers.iter().enumerate();
        let _echo = servers
            .map(|(index, server)| Server::udp_echo(server, endpoint(cluster, index, PORT)))
            .collect::<Result<Vec<_>>>()?;
        let config = ipv6::config(cluster).service(ipv6::web(cluster));
        let router = start(cluster, &config.service(ipv6::balanced(cluster, "udp", PORT, PORT)))?;
        let stop = AtomicBool::new(false);
        let (requests, datagrams) = thread::scope(|scope| -> Result<_> {
            let web = scope.spawn(|| -> Result<u64> {
                let mut requests = 0;
                while !stop.load(Ordering::Relaxed) {
                    requests += client::get(&cluster.client, vip(80), 20)?.counts()?.iter().sum::<u64>();
                }
                Ok(requests)
            });
            let datagrams = scope.spawn(|| -> Result<u64> {
                let socket = udp(cluster, 5000, PORT)?;
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    socket.send(&count.to_be_bytes())?;
                    let mut answer = [0; 8];
                    socket.recv(&mut answer).with_context(|| format!("datagram {count}"))?;
                    ensure!(answer == count.to_be_bytes());
                    count += 1;
                }
                Ok(count)
            });
            let result = reload_ten_times(cluster, &router);
            stop.store(true, Ordering::Relaxed);
            let totals = (web.join().expect("no panic")?, datagrams.join().expect("no panic")?);
            result?;
            Ok(totals)
        })?;
        ensure!(requests >= 20 && datagrams > 100, "{requests} {datagrams}: no load");
        nothing_dropped(&router)?;
        let (web, echo) = (stats(&router, "tcp", vip(80))?, stats(&router, "udp", vip(PORT))?);
        ensure!(web.connections == requests, "{web:?}, {requests} requests");
        ensure!((echo.packets_in, echo.packets_out) == (datagrams, datagrams), "{echo:?}, {datagrams}");
        router.finish()
    })
}

#[test]
fn a_removed_servers_connections_are_reset() -> Result<()> {
    for layout in [Layout::TwoArmed, Layout::OneArmed] {
        with_cluster(layout, |cluster| {
            let servers = cluster.real_servers.iter().enumerate();
            let _echo = servers
                .map(|(index, server)| {
                    Server::tcp_echo(
                        server,
                        crate::answering(cluster, index, PORT),
                        &format!("rs{}", index + 1),
                    )
                })
                .collect::<Result<Vec<_>>>()?;
            let service = ipv6::balanced(cluster, "tcp", PORT, PORT).setting("on_remove = \"reset\"");
            let mut config = ipv6::config(cluster).service(service);
            let router = cluster.start_router(&config)?;
            let mut held = (0..3)
                .map(|number| open(cluster, (CLIENT, 41_000 + number).into()))
                .collect::<Result<Vec<_>>>()?;
            held.sort_by_key(|(_, server)| *server);
            ensure!(held.iter().map(|(_, server)| *server).eq([0, 1, 2]), "in turn");
            config.services[0].servers.remove(1);
            router.apply(&config)?;
            // The first write may still find the connection open; what comes back is the reset.
            let stream = &mut held[1].0;
            match stream.write_all(b"still there?").and_then(|()| stream.read(&mut [0; 16])) {
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
                other => bail!("expected a reset, got {other:?}"),
            }
            if layout == Layout::TwoArmed {
                wait::until("the server has heard of it", PATIENCE, || {
                    let ss = cluster.real_servers[1].command("ss").words("-6Htn state established");
                    let text = ss.arg(format!("sport = :{PORT}")).run()?;
                    ensure!(text.trim().is_empty(), "{text}");
                    Ok(())
                })?;
            }
            for index in [0, 2] {
                client::echo(&mut held[index].0, b"still here")?;
            }
            router.finish()
        })?;
    }
    Ok(())
}

#[test]
fn connections_outlive_a_router_that_is_killed() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let (place, _echo) = (Place::new(cluster)?, echo(cluster)?);
        let service = ipv6::balanced(cluster, "tcp", PORT, PORT);
        let mut config = ipv6::config(cluster).service(service);
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        let mut held = (0..30)
            .map(|number| open(cluster, (CLIENT, 42_000 + number).into()))
            .collect::<Result<Vec<_>>>()?;
        router.kill()?;
        let router = cluster.start_router(&config)?;
        for (number, (stream, server)) in held.iter_mut().enumerate() {
            client::echo(stream, b"after the kill").with_context(|| format!("{number} of {server}"))?;
        }
        for server in router.service()?.servers {
            ensure!(server.active == 10, "{server:?}");
        }
        // The file does not hold their addresses; of those that go on they are known again in a second.
        wait::until("all clients are known again", PATIENCE, || {
            held.iter_mut().try_for_each(|(stream, _)| client::echo(stream, b"and on"))?;
            let connections = router.rvs("list -c").run()?;
            let client = |number: u16| SocketAddr::from((CLIENT, 42_000 + number)).to_string();
            let is_known = |number| has_line(&connections, &["ESTABLISHED", &client(number)]);
            ensure!((0..30).all(is_known), "{connections}");
            Ok(())
        })?;
        ensure!(open(cluster, (CLIENT, 43_000).into()).is_ok());
        router.finish()
    })
}

/// Names of either family in one service are refused, and so is what no machine can have.
#[test]
fn what_cannot_be_is_refused_at_its_key() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let router = cluster.start_router(&ipv6::config(cluster).service(ipv6::web(cluster)))?;
        let four = SocketAddr::from((cluster.layout().real_server(0), 8080));
        let link_local: SocketAddr = "[fe80::11]:8080".parse()?;
        let mapped: SocketAddr = "[::ffff:10.0.0.11]:8080".parse()?;
        for (server, words) in [
            (four, "expected an IPv6 address, as the service's"),
            (link_local, "service[0].server[3].address"),
            (mapped, "IPv4"),
        ] {
            let before = router.list()?;
            router.write(&ipv6::config(cluster).service(ipv6::web(cluster).server(server, 1)))?;
            let refused = router.reload()?;
            ensure!(!refused.status.success(), "{server} is accepted");
            ensure!(refused.stderr.contains(words), "{}", refused.stderr);
            ensure!(router.list()? == before);
        }
        router.finish()
    })
}

#[test]
fn what_is_typed_live() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = cluster.start_router(&ipv6::config(cluster).service(ipv6::web(cluster)))?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        let drained = endpoint(cluster, 1, 8080);
        let said = router.rvs(&format!("drain {} {drained}", vip(80))).run()?;
        ensure!(said.contains("state enabled -> drained"), "{said}");
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [15, 0, 15]);
        router.rvs(&format!("undrain {} {drained}", vip(80))).run()?;
        router.rvs(&format!("weight {} {drained} 0", vip(80))).run()?;
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [15, 0, 15]);
        let said = router.rvs(&format!("withdraw {}", ipv6::VIP)).run()?;
        let has = || -> Result<bool> {
            Ok(cluster
                .router
                .command("ip")
                .words("-6 address show dev wan")
                .run()?
                .contains("2001:db8:2::10/128"))
        };
        ensure!(!has()?, "{said}");
        router.rvs(&format!("announce {}", ipv6::VIP)).run()?;
        ensure!(has()?);
        ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [15, 0, 15]);
        let metrics = router.rvs("list --stats").run()?;
        ensure!(metrics.contains(&real_server(cluster.layout(), 2).to_string()), "{metrics}");
        router.finish()
    })
}

/// Whether a line has these words among others.
fn has_line(text: &str, words: &[&str]) -> bool {
    let is_in = |line: &str, word: &str| line.split_whitespace().any(|found| found == word);
    text.lines().any(|line| words.iter().all(|word| is_in(line, word)))
}

#[test]
fn clients_are_listed_and_forgotten_by_their_addresses() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let service = ipv6::balanced(cluster, "tcp", PORT, PORT).setting("persistence = { prefix = 64 }");
        let router = cluster.start_router(&ipv6::config(cluster).service(service))?;
        let neighbour: Ipv6Addr = "2001:db8:2::101".parse()?;
        cluster.client.ip(&format!("address add {neighbour}/64 dev eth0 nodad"))?;
        let (_held, server) = open(cluster, (CLIENT, 40_000).into())?;
        let _stays = open(cluster, (neighbour, 40_001).into())?;
        let (client, address) =
            (SocketAddr::from((CLIENT, 40_000)).to_string(), endpoint(cluster, server, PORT).to_string());
        let connections = router.rvs("list -c").run()?;
        for words in [["ESTABLISHED", &client], ["TEMPLATE", "[2001:db8:2::]:0"]] {
            let words = [&words[..], &["TCP", "[2001:db8:2::10]:7", &address]].concat();
            ensure!(has_line(&connections, &words), "{words:?}: {connections}");
        }
        let json = router.rvs("list -c --json").run()?;
        ensure!(json.contains(&format!("\"{client}\"")), "{json}");
        router.rvs(&format!("flush --client {CLIENT}")).run()?;
        let connections = router.rvs("list -c").run()?;
        ensure!(!has_line(&connections, &[&client]), "{connections}");
        let other = SocketAddr::from((neighbour, 40_001)).to_string();
        ensure!(has_line(&connections, &["ESTABLISHED", &other, &address]), "{connections}");
        router.finish()
    })
}

#[test]
fn explain_and_capture_take_addresses() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let router = cluster
            .start_router(&ipv6::config(cluster).service(ipv6::balanced(cluster, "tcp", PORT, PORT)))?;
        let source = SocketAddr::from((CLIENT, 40_000));
        let explain = |flags| -> Result<serde_json::Value> {
            let words = format!("explain --src {source} --dst {} --flags {flags} --json", vip(PORT));
            Ok(serde_json::from_str(&router.rvs(&words).run()?)?)
        };
        let told = explain("S")?;
        ensure!(told["verdict"] == "forward" && told["connection"].is_null(), "{told:#}");
        let (_held, server) = open(cluster, source)?;
        let address = endpoint(cluster, server, PORT).to_string();
        ensure!(told["decision"]["server"] == address, "{told:#}, but it is {address}");
        let told = explain("A")?;
        ensure!(told["connection"]["server"] == address, "{told:#}");
        for filter in [format!("host {CLIENT}"), format!("service {}", vip(PORT)), "tcp".to_owned()] {
            let text = captured(cluster, &router, &filter)?;
            ensure!(text.lines().count() == 12, "{filter}: six packets, each before and after:\n{text}");
        }
        router.finish()
    })
}

/// The first six packets that are captured while a client talks to the service, as tcpdump shows them.
fn captured(cluster: &Cluster, router: &Router, filter: &str) -> Result<String> {
    let file = cluster.state().fresh_file("x", "pcapng");
    let begun = router.log().matches("capture begins").count();
    let words = format!("capture {filter} --rate 1/1 --count 6 --seconds 20 -w {}", file.display());
    let mut capturing = router.rvs(&words).spawn("capture")?;
    wait::until("the capture has begun", PATIENCE, || {
        capturing.check_running()?;
        ensure!(router.log().matches("capture begins").count() > begun);
        Ok(())
    })?;
    let (mut stream, _) = open(cluster, (CLIENT, 0).into())?;
    client::echo(&mut stream, b"hello")?;
    client::close(stream)?;
    ensure!(capturing.wait(PATIENCE)?.success(), "{}", capturing.log());
    cluster.router.command("tcpdump").args(["-n", "-r"]).arg(&file).run()
}

#[test]
fn capture_shows_packets_before_and_after() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let router = cluster
            .start_router(&ipv6::config(cluster).service(ipv6::balanced(cluster, "tcp", PORT, PORT)))?;
        // Of others than this connection there is little now, and nothing that could not be told apart.
        open(cluster, (CLIENT, 0).into()).map(drop)?;
        let text = captured(cluster, &router, "")?;
        let shown = |from: &str, to: &str| text.lines().any(|line| line.contains(from) && line.contains(to));
        ensure!(shown(" IP6 2001:db8:2::100.", "> 2001:db8:2::10.7: Flags [S]"), "{text}");
        ensure!(shown(" IP6 2001:db8:2::100.", "> 2001:db8:a::1"), "{text}");
        router.finish()
    })
}
