//! Connections that outlive their router: it is killed, and the next one finds them in a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::{Config, Service},
    ipv6,
    router::{self, Router},
    servers::Server,
    shm::Place,
    wait::{self, PATIENCE},
    with_cluster,
};

/// As tests with counted connections need it: of no other service.
const PORT: u16 = 7;

/// What nobody waits for, on a machine that is busy with other things; the promise is 1.5 s.
const GENEROUS: Duration = Duration::from_secs(15);

/// A held connection, and the name of its server.
struct Held(TcpStream, String);

impl Held {
    fn open(cluster: &Cluster) -> Result<Held> {
        Held::open_at(cluster, PORT)
    }

    fn open_at(cluster: &Cluster, port: u16) -> Result<Held> {
        let mut stream = client::connect(&cluster.client, vip(port))?;
        let mut name = [0; 3];
        stream.read_exact(&mut name)?;
        Ok(Held(stream, String::from_utf8_lossy(&name).into_owned()))
    }
}

/// Servers that say who they are and then echo.
fn echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers
        .map(|(index, server)| {
            Server::tcp_echo(server, cluster.endpoint(index, PORT), &format!("rs{}", index + 1))
        })
        .collect()
}

/// All say something and hear it.
fn all_go_on(held: &mut [Held], word: &str) -> Result<()> {
    for (number, Held(stream, server)) in held.iter_mut().enumerate() {
        client::echo(stream, word.as_bytes())
            .with_context(|| format!("connection {number} of {server}, {word}"))?;
    }
    Ok(())
}

/// A router whose connections outlive it.
struct Kept {
    place: Place,
    config: Config,
    router: Router,
    _echo: Vec<Server>,
}

impl Kept {
    /// Of three servers, in turn.
    fn start(cluster: &Cluster) -> Result<Kept> {
        let (place, _echo) = (Place::new(cluster)?, echo(cluster)?);
        let mut config = cluster.config().service(cluster.web_on(PORT, PORT).scheduler("rr"));
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        Ok(Kept { place, config, router, _echo })
    }
}

/// By the server's address: active and inactive connections, as it is listed.
fn counts(router: &Router) -> Result<BTreeMap<SocketAddr, (u64, u64)>> {
    let services = router.services()?;
    let servers = services.iter().filter(|service| service.protocol.eq_ignore_ascii_case("tcp"));
    let servers = servers.flat_map(|service| &service.servers);
    Ok(servers.map(|server| (server.address, (server.active, server.inactive))).collect())
}

/// A datagram that goes round again and again, on one flow.
#[derive(Default)]
struct Probe {
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Probe {
    /// The longest time between two that came back.
    fn run(&self, cluster: &Cluster, port: u16) -> Result<Duration> {
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, port))?))?;
        socket.connect(vip(PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let mut last = None;
        let mut longest = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            // Nobody may be there.
            let _ = socket.send(b"?");
            if socket.recv(&mut [0; 8]).is_ok() {
                longest = longest.max(last.map_or(Duration::ZERO, |last: Instant| last.elapsed()));
                last = Some(Instant::now());
                self.rounds.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(longest)
    }

    /// Waits until it has gone round once more.
    fn wait(&self) -> Result<()> {
        let before = self.rounds.load(Ordering::Relaxed);
        wait::until_true("a datagram goes round", PATIENCE, || self.rounds.load(Ordering::Relaxed) > before)
    }
}

/// What the router said of its start.
fn said(router: &Router) -> Result<String> {
    wait::until("the router is ready", PATIENCE, || {
        let events = router.rvs("events").run()?;
        ensure!(events.contains("has started"), "{events}");
        Ok(events)
    })
}

/// Kills the router and starts another one at once, as systemd would, while a datagram goes round from this port; what
/// the other one said.
fn succeed(cluster: &Cluster, router: Router, config: &Config, port: u16) -> Result<(Router, String)> {
    let probe = Probe::default();
    let (result, silence) = thread::scope(|scope| {
        let silence = scope.spawn(|| probe.run(cluster, port));
        let replace = || -> Result<(Router, String)> {
            probe.wait()?;
            router.kill()?;
            let router = cluster.start_router(config)?;
            let said = said(&router)?;
            probe.wait()?;
            Ok((router, said))
        };
        let result = replace();
        probe.stop.store(true, Ordering::Relaxed);
        (result, silence.join().expect("no panic"))
    });
    let ((router, said), silence) = (result?, silence?);
    println!("nothing was forwarded for {silence:?}\n{said}");
    ensure!(silence < GENEROUS, "{silence:?}\n{said}");
    Ok((router, said))
}

#[test]
fn every_connection_goes_on_after_its_router_was_killed_and_another_one_began() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let place = Place::new(cluster)?;
        let _echo = echo(cluster)?;
        let _datagrams = Server::udp_echo(&cluster.real_servers[0], cluster.endpoint(0, PORT))?;
        let udp = Service::udp("nat", vip(PORT)).server(cluster.endpoint(0, PORT), 1);
        let mut of_two = cluster.web_on(PORT, PORT).scheduler("rr");
        // What has ended is to be there until the end.
        for state in ["fin_wait", "time_wait", "close", "close_wait", "last_ack"] {
            of_two = of_two.timeout(state, "1h");
        }
        let third = of_two.servers.pop().context("three servers")?;
        let mut config = cluster.config().workers(1).service(of_two).service(udp);
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        ensure!(!said(&router)?.contains("before"), "nobody was there before: {}", said(&router)?);

        let mut held = (0..40).map(|_| Held::open(cluster)).collect::<Result<Vec<_>>>()?;
        all_go_on(&mut held, "before")?;
        held.drain(..10).try_for_each(|Held(stream, _)| client::close(stream))?;
        wait::until("ten connections have ended", PATIENCE, || {
            let counts = counts(&router)?;
            ensure!(counts.values().all(|&count| count == (15, 5)), "{counts:?}");
            Ok(())
        })?;
        let known = counts(&router)?;

        let (router, said) = succeed(cluster, router, &config, 5000)?;
        ensure!(said.contains("connections go on that were there before: 41 (not: 0;"), "{said}");
        ensure!(counts(&router)? == known, "{:?}\n{known:?}", counts(&router)?);
        all_go_on(&mut held, "by the second")?;
        ensure!(counts(&router)? == known, "{:?}\n{known:?}", counts(&router)?);

        // Another number of workers, and a larger table.
        let mut config = config.workers(2);
        config.connections = 200_000;
        let (router, said) = succeed(cluster, router, &config, 5001)?;
        ensure!(said.contains("connections go on that were there before: 42 (not: 0;"), "{said}");
        ensure!(counts(&router)? == known && router.counters()?.table.slots == 400_000, "{known:?}");
        all_go_on(&mut held, "by two workers")?;

        // A smaller one, and one server more, who gets new connections.
        config.connections = 4096;
        config.services[0].servers.push(third);
        let (router, said) = succeed(cluster, router, &config, 5002)?;
        ensure!(said.contains("connections go on that were there before: 43 (not: 0;"), "{said}");
        all_go_on(&mut held, "by the fourth")?;
        let more = (0..3).map(|_| Held::open(cluster)).collect::<Result<Vec<_>>>()?;
        held.extend(more);
        ensure!(
            held.iter().filter(|Held(_, server)| server == "rs3").count() == 1,
            "one of three is the new one's"
        );

        // One server less: fifteen and one that are held, and five that have ended. It leaves as after a reload.
        let gone = config.services[0].servers.remove(1);
        ensure!(counts(&router)?[&gone.address] == (16, 5), "{:?}", counts(&router)?);
        let (router, said) = succeed(cluster, router, &config, 5003)?;
        ensure!(said.contains("connections go on that were there before: 47 (not: 0;"), "{said}");
        all_go_on(&mut held, "by the fifth")?;
        ensure!(counts(&router)?[&gone.address] == (16, 5), "{:?}", counts(&router)?);

        // And if its connections are not to go on, those of the next one to be left out.
        config.services[0].settings.push("on_remove = \"drop\"".to_owned());
        let (router, said) = succeed(cluster, router, &config, 5004)?;
        ensure!(said.contains("connections go on that were there before: 27 (not: 21;"), "{said}");
        held.retain(|Held(_, server)| server != "rs2");
        ensure!(held.len() == 17, "{}", held.len());
        all_go_on(&mut held, "by the sixth")?;

        // And after a restart in good order.
        router.stop()?;
        let router = cluster.start_router(&config)?;
        all_go_on(&mut held, "by the seventh")?;
        held.into_iter().try_for_each(|Held(stream, _)| client::close(stream))?;
        router.finish()
    })
}

#[test]
fn connections_of_a_service_that_came_by_a_reload_go_on_as_well() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Kept { place: _place, mut config, router, _echo } = Kept::start(cluster)?;
        let mut held = vec![Held::open(cluster)?];
        // The same servers, under numbers that the index did not know at the start.
        config.services.insert(0, cluster.web_on(PORT + 1, PORT).scheduler("rr"));
        router.apply(&config)?;
        for _ in 0..3 {
            held.push(Held::open_at(cluster, PORT + 1)?);
        }
        router.kill()?;
        let router = cluster.start_router(&config)?;
        all_go_on(&mut held, "by the second")?;
        let active: u64 =
            router.services()?.iter().flat_map(|service| &service.servers).map(|server| server.active).sum();
        ensure!(active == 4, "{active}");
        router.finish()
    })
}

#[test]
fn connections_of_servers_that_were_leaving_or_added_live_go_on_as_well() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Kept { place: _place, mut config, router, _echo } = Kept::start(cluster)?;
        let mut held = (0..3).map(|_| Held::open(cluster)).collect::<Result<Vec<_>>>()?;
        let by: BTreeSet<String> = held.iter().map(|Held(_, server)| server.clone()).collect();
        ensure!(by.len() == 3, "{by:?}");
        // The file has the first only; the second has come back without it, and the third is leaving.
        let [second, third] = [1, 2].map(|index| config.services[0].servers[index].address);
        config.services[0].servers.truncate(1);
        router.apply(&config)?;
        let service = format!("tcp/{}", vip(PORT));
        router.rvs(&format!("add server {service} {second}")).run()?;
        router.kill()?;
        let router = cluster.start_router(&config)?;
        let said = said(&router)?;
        ensure!(said.contains("connections go on that were there before: 3 (not: 0;"), "{said}");
        all_go_on(&mut held, "by the second")?;
        let of_file = router.service()?.servers.iter().filter(|server| server.state != "leaving").count();
        ensure!(of_file == 1, "{:?}", router.service()?);
        // They are on their way out, also after the next one has died.
        let more = (0..4).map(|_| Held::open(cluster)).collect::<Result<Vec<_>>>()?;
        ensure!(more.iter().all(|Held(_, server)| server == "rs1"));
        held.extend(more);
        router.kill()?;
        let router = cluster.start_router(&config)?;
        all_go_on(&mut held, "by the third")?;
        // Gone with their connections.
        held.into_iter().try_for_each(|Held(stream, _)| client::close(stream))?;
        router.rvs("flush --all").run()?;
        wait::until("they have left", PATIENCE, || {
            let counts = counts(&router)?;
            ensure!(!counts.contains_key(&second) && !counts.contains_key(&third), "{counts:?}");
            Ok(())
        })?;
        router.finish()
    })
}

#[test]
fn a_download_arrives_as_it_was_sent_though_its_router_was_killed() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let place = Place::new(cluster)?;
        let _nginx = cluster.start_web()?;
        let mut config = cluster.config().service(cluster.web().scheduler("rr").checked());
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        // 8 MiB at 2 MiB a second: it is killed at the beginning.
        let mut download = client::start_download(&cluster.client, vip(80), "2m", "download")?;
        wait::until("the download runs", PATIENCE, || {
            ensure!(router.service()?.stats.bytes_out > 100_000);
            Ok(())
        })?;
        router.kill()?;
        download.check_running().context("it was over too early to prove anything")?;
        let router = cluster.start_router(&config)?;
        ensure!(download.wait(PATIENCE)?.success(), "{}", download.log());
        let bytes = fs::read(cluster.state().file("download"))?;
        ensure!(bytes == harness::nginx::big_file(), "{} bytes came", bytes.len());
        ensure!(router.service()?.stats.bytes_out > 100_000, "by the second router");
        router.finish()
    })
}

/// The server's side of a connection: its port, or nothing that arrives there is this connection's.
#[test]
fn connections_of_full_nat_go_on_with_their_ports() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let place = Place::new(cluster)?;
        let _echo = echo(cluster)?;
        let servers = cluster.real_servers.iter().enumerate();
        let _echo6 = servers
            .map(|(index, server)| {
                Server::tcp_echo(server, ipv6::endpoint(cluster, index, PORT), &format!("rs{}", index + 1))
            })
            .collect::<Result<Vec<_>>>()?;
        let config = |four: &str, six: &str| {
            let of = |service: Service, local: &str| {
                let pool = format!("fullnat = {{ local = [{local}] }}");
                Service { mode: "fullnat", ..service }.scheduler("rr").setting(&pool)
            };
            let mut config = ipv6::config(cluster)
                .service(of(cluster.web_on(PORT, PORT), four))
                .service(of(ipv6::balanced(cluster, "tcp", PORT, PORT), six));
            config.keep = place.keep();
            config
        };
        let router = cluster.start_router(&config("\"10.0.0.100\"", "\"2001:db8:a::100\""))?;
        let mut held = Vec::new();
        for (vip, count) in [(SocketAddr::from(vip(PORT)), 12), (ipv6::vip(PORT), 12)] {
            for _ in 0..count {
                let mut stream = client::connect(&cluster.client, vip)?;
                let mut name = [0; 3];
                stream.read_exact(&mut name)?;
                held.push(Held(stream, String::from_utf8_lossy(&name).into_owned()));
            }
        }
        all_go_on(&mut held, "before")?;
        let listed = |router: &Router| -> Result<BTreeSet<String>> {
            let listed = router.rvs("list --connections").run()?;
            let ends =
                |line: &str| line.split_whitespace().skip(3).map(str::to_owned).collect::<Vec<_>>().join(" ");
            Ok(listed.lines().filter(|line| line.contains("ESTABLISHED")).map(ends).collect())
        };
        let known = listed(&router)?;
        ensure!(known.len() == 24, "{known:?}");

        // In pools of other addresses: those of the connections are not even in it, or not where they were.
        router.kill()?;
        let router =
            cluster.start_router(&config("\"10.0.0.101\"", "\"2001:db8:a::99\", \"2001:db8:a::100\""))?;
        let said = said(&router)?;
        ensure!(said.contains("connections go on that were there before: 24 (not: 0;"), "{said}");
        ensure!(listed(&router)? == known, "{:?}\n{known:?}", listed(&router)?);
        all_go_on(&mut held, "by the second")?;
        ensure!(listed(&router)? == known, "{:?}\n{known:?}", listed(&router)?);
        let Held(mut new, _) = Held::open(cluster)?;
        client::echo(&mut new, b"new")?;
        let listed = router.rvs("list --connections").run()?;
        ensure!(listed.contains(" 10.0.0.101:"), "{listed}");
        router.finish()
    })
}

#[test]
fn what_nobody_can_read_is_forgotten_and_said() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Kept { place, config, router, _echo } = Kept::start(cluster)?;
        let mut held = Held::open(cluster)?;
        client::echo(&mut held.0, b"before")?;
        router.kill()?;
        // Zeros. On hugetlbfs nothing can be written by write(2), but lengths can be set.
        let index = fs::File::options().write(true).open(place.0.join("table/index"))?;
        let length = index.metadata()?.len();
        index.set_len(0)?;
        index.set_len(length)?;

        let router = cluster.start_router(&config)?;
        let reason = "the index is not one";
        let expected = "connections that were there before are forgotten";
        ensure!(said(&router)?.contains(&format!("{expected}: {reason}")), "{}", said(&router)?);
        ensure!(router.log().contains(&format!("WARN {expected} reason=\"{reason}\"")), "{}", router.log());
        ensure!(counts(&router)?.values().all(|&count| count == (0, 0)), "{:?}", counts(&router)?);
        let mut new = Held::open(cluster)?;
        client::echo(&mut new.0, b"anew")?;
        router.kill()?;
        // That one is kept again.
        let router = cluster.start_router(&config)?;
        client::echo(&mut new.0, b"and on")?;
        router.finish()
    })
}

#[test]
fn a_directory_is_for_one_router_at_a_time() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Kept { place, config, router, _echo } = Kept::start(cluster)?;
        let mut held = Held::open(cluster)?;
        let mut other = config.clone();
        other.socket += ".other";
        for (port, (name, device)) in
            other.ports.iter_mut().zip([("wan9", "net_null8"), ("lan9", "net_null9")])
        {
            (port.name, port.device) = (name, device.to_owned());
        }
        let file = cluster.state().file("other.toml");
        fs::write(&file, other.to_string())?;
        let second = router::once(cluster, &format!("run -c {}", file.display()))?.output()?;
        let expected = format!("table.keep: another rvs has {}", place.0.display());
        ensure!(second.code() == Some(2) && second.stderr.contains(&expected), "{second:?}");
        client::echo(&mut held.0, b"undisturbed")?;
        router.finish()
    })
}
