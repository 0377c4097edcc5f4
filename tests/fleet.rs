//! Three routers behind real BIRD: they announce what they can serve, one dies, leaves or comes, and no connection breaks.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, VIP, vip},
    fleet::{Asked, Fleet, SERVICE},
    peers::sync,
    process::Output,
    router::Router,
    servers::Server,
    tunnel::{End, Kind},
    wait::{self, PATIENCE},
    with_cluster,
};

/// An echo on this port of every real server, whatever address it is asked by.
fn echo(cluster: &Cluster, port: u16) -> Result<Vec<Server>> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    cluster.real_servers.iter().map(|server| Server::tcp_echo(server, any, "")).collect()
}

/// All connections say something and then hear it; how long until the last has.
fn all_go_on(streams: &mut [TcpStream], word: &[u8]) -> Result<Duration> {
    let began = Instant::now();
    streams.iter_mut().try_for_each(|stream| stream.write_all(word))?;
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = vec![0; word.len()];
        let context = || format!("connection {number}, {}", word.escape_ascii());
        stream.read_exact(&mut answer).with_context(context)?;
        ensure!(answer == word, "{}: {}", context(), answer.escape_ascii());
    }
    Ok(began.elapsed())
}

fn none_failed(asked: &Asked, what: &str) -> Result<()> {
    println!("{what}: {} short requests, the slowest took {:?}", asked.count, asked.longest);
    ensure!(asked.failed.is_empty(), "{what}: {:?}", asked.failed);
    ensure!(asked.count > 0, "nobody has asked");
    Ok(())
}

fn says(router: &Router, what: &str) -> Result<()> {
    wait::until(what, PATIENCE, || {
        let events = router.rvs("events").run()?;
        ensure!(events.contains(what), "{events}");
        Ok(())
    })
}

/// Waits until a router and both its peers know the same.
fn wait_together(router: &Router) -> Result<()> {
    wait::until("all peers are together", PATIENCE, || {
        let sync = sync(router)?;
        let peers = sync["peers"].as_array().context("a list")?;
        let together = peers.iter().filter(|peer| peer["standing"] == "together").count();
        ensure!(sync["ready"] == true && together == 2, "{sync:#}");
        Ok(())
    })
}

/// Nobody tells anybody of connections: Maglev alone has every router pick the same server. Real servers are at the end of a
/// tunnel, or on the same network.
fn maglev_alone(tunnel: Option<Kind>) -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let servers = echo(cluster, SERVICE.port())?;
        let fleet = Fleet::new(cluster)?;
        let mut ends = tunnel.map_or(Ok(vec![]), |kind| End::of_all(cluster, kind))?;
        let text = |index| -> Result<String> {
            let text = fleet.text(index)?;
            let (before, sync) = text.split_once("[sync]").context("a [sync]")?;
            let (_, after) = sync.split_once("\n\n").context("the end of [sync]")?;
            // Nobody announces before it has found all three, since with fewer it would pick others.
            let text = format!("{before}{after}").replacen("[[service]]\n", "[[service]]\nquorum = 3\n", 1);
            let Some(kind) = tunnel else { return Ok(text) };
            ensure!(text.contains("mode = \"dr\""), "another mode: {text}");
            Ok(text.replace("mode = \"dr\"", &format!("mode = \"tunnel\"\n{}", kind.setting())))
        };
        let start = |index| fleet.start(index, &text(index)?);
        let (first, second, third) = (start(0)?, start(1)?, start(2)?);
        fleet.wait_spread(&[0, 1, 2])?;
        says(&first, "203.0.113.10 is announced")?;
        let mode = if tunnel.is_some() { " Tunnel " } else { " Route " };
        ensure!(first.list()?.contains(mode), "{}", first.list()?);

        let mut held = fleet.connect(10_000..10_060, SERVICE)?;
        all_go_on(&mut held, b"spread")?;
        for router in [&first, &second, &third] {
            ensure!(router.service()?.stats.connections > 0, "{:?}", router.service()?);
        }

        let asking = fleet.ask_all_the_time(20_000, SERVICE);
        second.kill()?;
        let gap = all_go_on(&mut held, b"killed")?;
        fleet.wait_spread(&[0, 2])?;
        println!("a router was killed: all connections went on after {gap:?}");
        let second = start(1)?;
        fleet.wait_spread(&[0, 1, 2])?;
        all_go_on(&mut held, b"again three")?;
        none_failed(&asking.finish()?, "killed and back")?;

        let asking = fleet.ask_all_the_time(30_000, SERVICE);
        let withdrawn = third.rvs("withdraw").run()?;
        ensure!(withdrawn.contains("announced -> withdrawn (this router is out of service"), "{withdrawn}");
        ensure!(third.list()?.contains("withdrawn: this router is out of service"), "{}", third.list()?);
        fleet.wait_spread(&[0, 1])?;
        let gap = all_go_on(&mut held, b"withdrawn")?;
        println!("a router was withdrawn: all connections went on after {gap:?}");
        third.rvs("announce").run()?;
        fleet.wait_spread(&[0, 1, 2])?;
        all_go_on(&mut held, b"announced")?;
        let gone = first.rvs("stop --graceful --deadline 60s").limit(PATIENCE * 2).run()?;
        ensure!(gone.contains("stopping: the traffic has left"), "{gone}");
        fleet.wait_spread(&[1, 2])?;
        all_go_on(&mut held, b"without the first")?;
        none_failed(&asking.finish()?, "withdrawn, announced, stopped")?;

        // Who has nobody to serve does not pretend.
        drop(servers);
        fleet.wait_spread(&[])?;
        says(&second, "203.0.113.10 is withdrawn: too few live servers of tcp/203.0.113.10:80")?;
        ensure!(second.list()?.contains("withdrawn: too few live servers"), "{}", second.list()?);
        let _servers = echo(cluster, SERVICE.port())?;
        fleet.wait_spread(&[1, 2])?;
        all_go_on(&mut fleet.connect(11_000..11_010, SERVICE)?, b"served again")?;

        // SIGTERM, too, shows others first that this router goes.
        ends.iter_mut().try_for_each(End::check)?;
        second.stop()?;
        third.stop()
    })
}

#[test]
fn without_sync_maglev_brings_every_connection_to_its_server_whatever_router_it_comes_by() -> Result<()> {
    maglev_alone(None)
}

#[test]
fn so_it_does_through_tunnels() -> Result<()> {
    maglev_alone(Some(Kind::Ipip))
}

/// Every real server sends to whoever connects, on and on, and hears nothing.
fn downloads(cluster: &Cluster, port: u16) -> Result<Vec<Server>> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    let serve = |mut stream: TcpStream| {
        let mut count = 0u8;
        while stream.write_all(&[count]).is_ok() {
            count = count.wrapping_add(1);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    cluster.real_servers.iter().map(|server| Server::tcp(server, any, serve)).collect()
}

/// All downloads bring so much more, byte after byte; how long until the last has.
fn all_bring_more(streams: &mut [TcpStream], next: &mut [u8], bytes: usize) -> Result<Duration> {
    let began = Instant::now();
    for (number, (stream, next)) in streams.iter_mut().zip(next).enumerate() {
        let mut more = vec![0; bytes];
        stream.read_exact(&mut more).with_context(|| format!("download {number}"))?;
        for byte in more {
            ensure!(byte == *next, "download {number}: {byte} instead of {next}");
            *next = next.wrapping_add(1);
        }
    }
    Ok(began.elapsed())
}

/// Round robin under NAT: no router could guess what another one has chosen, and which address it has rewritten. Beside it
/// a service with Maglev, for requests whose handshake may be cut in two.
#[test]
fn with_sync_connections_go_on_under_nat_when_one_of_three_routers_is_killed_or_stops() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let short = SocketAddrV4::new(*SERVICE.ip(), 81);
        let big = SocketAddrV4::new(*SERVICE.ip(), 82);
        let _servers =
            [echo(cluster, SERVICE.port())?, echo(cluster, short.port())?, downloads(cluster, big.port())?];
        let fleet = Fleet::under_nat(cluster)?;
        let start = |index| {
            let text = fleet.text(index)?.replace("mode = \"dr\"", "mode = \"nat\"");
            let (_, maglev) = text.split_once("[[service]]").context("a service")?;
            let maglev = maglev.replace(&SERVICE.to_string(), &short.to_string());
            let held = text.replace("scheduler = \"mh\"\nflags = [\"mh-port\"]", "scheduler = \"rr\"");
            let held = held.replace("sloppy_tcp = true", "sloppy_tcp = false");
            let (_, another) = held.split_once("[[service]]").context("a service")?;
            let another = another.replace(&SERVICE.to_string(), &big.to_string());
            fleet.start(index, &format!("{held}\n[[service]]{maglev}\n[[service]]{another}"))
        };
        let (first, second, third) = (start(0)?, start(1)?, start(2)?);
        fleet.wait_spread(&[0, 1, 2])?;
        [&first, &second, &third].into_iter().try_for_each(wait_together)?;

        let mut held = fleet.connect(10_000..10_060, SERVICE)?;
        all_go_on(&mut held, b"spread")?;
        let mut silent = fleet.connect(11_000..11_020, big)?;
        let mut next = [0; 20];
        all_bring_more(&mut silent, &mut next, 1)?;
        let known = |router: &Router| {
            wait::until("every router knows all connections", PATIENCE, || {
                let list = router.rvs("list -c").run()?;
                let is_short = |line: &&str| line.contains(&short.to_string());
                let established = |line: &&str| line.contains("ESTABLISHED") && !is_short(line);
                let established = list.lines().filter(established).count();
                ensure!(established == 80, "{established} of 80\n{list}");
                Ok(())
            })
        };
        [&first, &second, &third].into_iter().try_for_each(known)?;

        let asking = fleet.ask_all_the_time(20_000, short);
        second.kill()?;
        let gap = all_go_on(&mut held, b"killed")?;
        fleet.wait_spread(&[0, 2])?;
        println!("a router was killed: all NAT connections went on after {gap:?}");
        let gap = all_bring_more(&mut silent, &mut next, 100)?;
        println!("all downloads have brought 2 s more after {gap:?}");
        // It is announced when it has learned, and not before.
        let second = start(1)?;
        fleet.wait_spread(&[0, 1, 2])?;
        known(&second)?;
        all_go_on(&mut held, b"again three")?;
        all_bring_more(&mut silent, &mut next, 50)?;
        // Replies leave with the requests.
        let gone = first.rvs("stop --graceful --deadline 60s").limit(PATIENCE * 2).run()?;
        ensure!(gone.contains("stopping: the traffic has left"), "{gone}");
        all_go_on(&mut held, b"without the first")?;
        all_bring_more(&mut silent, &mut next, 50)?;
        none_failed(&asking.finish()?, "killed, back, and one stopped")?;
        second.stop()?;
        third.stop()
    })
}

fn stopped(output: &Output, text: &str) -> Result<()> {
    ensure!(output.code() == Some(0) && output.stdout.contains(text), "{output:?}");
    Ok(())
}

#[test]
fn alone_a_router_withdraws_an_address_and_serves_who_comes_all_the_same() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let _echo = cluster
            .real_servers
            .iter()
            .map(|server| Server::tcp_echo(server, vip(7), ""))
            .collect::<Result<Vec<_>>>()?;
        let router = cluster.start_router(&cluster.config().service(cluster.web_on(7, 7)))?;
        let has = |there: bool| {
            let addresses = cluster.router.addresses("wan")?;
            ensure!(addresses.contains(&format!("{VIP}/32")) == there, "{addresses:?}");
            Ok(())
        };
        let mut held = [client::connect(&cluster.client, vip(7))?];
        has(true)?;
        router.rvs(&format!("withdraw {VIP}")).run()?;
        has(false)?;
        says(&router, "192.0.2.10 is withdrawn: out of service (rvs withdraw)")?;
        ensure!(router.rvs("sync --ready").output()?.code() == Some(0), "the router itself is in service");
        all_go_on(&mut held, b"all the same")?;
        let wrong = router.rvs("withdraw 192.0.2.99").output()?;
        let expected = "no virtual address 192.0.2.99; expected one of 192.0.2.10";
        ensure!(wrong.code() == Some(1) && wrong.stderr.contains(expected), "{wrong:?}");
        // A reload is no order.
        router.reload()?.success()?;
        has(false)?;
        router.rvs(&format!("announce {VIP}")).run()?;
        has(true)?;
        stopped(&router.rvs("stop --graceful").output()?, "stopping: nobody else could take the traffic")?;
        ensure!(!cluster.router.interfaces()?.contains(&"wan".to_owned()), "it has not ended");
        Ok(())
    })
}

#[test]
fn where_somebody_else_places_addresses_a_router_that_leaves_is_not_ready_and_waits_for_them_to_go()
-> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let config = cluster.config().service(cluster.web_on(7, 7));
        let text = format!("{config}\n[run]\nvirtual_addresses = \"follow\"\n");
        let router = Router::start_text(cluster, &text, &config)?;
        let ready = || Ok::<_, anyhow::Error>(router.rvs("sync --ready").output()?.code());
        cluster.router.ip(&format!("address add {VIP}/32 dev wan"))?;
        says(&router, "192.0.2.10 is here: its services are live")?;
        ensure!(ready()? == Some(0), "ready");
        let wrong = router.rvs(&format!("withdraw {VIP}")).output()?;
        ensure!(wrong.stderr.contains("expected no address, for the whole router"), "{wrong:?}");
        router.rvs("withdraw").run()?;
        ensure!(ready()? == Some(1), "out of service");
        router.rvs("announce").run()?;
        ensure!(ready()? == Some(0), "in service again");

        let mut stop = router.rvs("stop --graceful --deadline 60s").spawn("stop")?;
        wait::until("it waits for the address to go", PATIENCE, || {
            let said = stop.log();
            ensure!(said.contains("leaving: virtual addresses still on twins: 1"), "{said}");
            Ok(())
        })?;
        ensure!(ready()? == Some(1), "leaving");
        cluster.router.ip(&format!("address del {VIP}/32 dev wan"))?;
        let status = stop.wait(PATIENCE)?;
        ensure!(status.success() && stop.log().contains("the traffic has left"), "{}", stop.log());
        Ok(())
    })
}
