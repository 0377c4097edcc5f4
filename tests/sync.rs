//! Connections that outlive their router, because a peer knows them.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::{Config, Service},
    crowd,
    netns::Namespace,
    peers::{self, ADDRESSES, ADDRESSES_OF_IPV6, WIRE, sync, wait_together},
    process::Command,
    router::{self, Router},
    servers::Server,
    shm::Place,
    tunnel::{End, Kind, through},
    wait::{self, PATIENCE},
    with_cluster,
};
use serde_json::Value;

const PORT: u16 = 7;
/// How long the wire between the two is cut.
const CUT: Duration = Duration::from_secs(15);

/// The router of the cluster, and one beside it that has no wires but the one between the two.
struct Pair {
    beside: Namespace,
    configs: [Config; 2],
    /// Where they reach each other.
    ends: [IpAddr; 2],
    key: String,
}

impl Pair {
    fn new(cluster: &Cluster) -> Result<Pair> {
        Pair::of(cluster, cluster.config().service(cluster.web_on(PORT, PORT).scheduler("rr")))
    }

    fn of(cluster: &Cluster, config: Config) -> Result<Pair> {
        let beside = Namespace::create(cluster.state(), "peer")?;
        peers::wire([&cluster.router, &beside])?;
        let key = peers::key(cluster.state(), "sync.key", "0123456789abcdef")?;
        let mut other = config.clone();
        other.socket += ".peer";
        for (index, port) in other.ports.iter_mut().enumerate() {
            port.device = format!("net_null{index},no-rx=1");
        }
        Ok(Pair { beside, configs: [config, other], ends: ADDRESSES.map(IpAddr::from), key })
    }

    /// The configuration file of one of the two.
    fn text(&self, index: usize) -> String {
        format!(
            "{}{}",
            self.configs[index],
            peers::section(self.ends[index], self.ends[1 - index], &self.key)
        )
    }

    /// Starts the first of the two under a service manager.
    fn start_managed(&self, cluster: &Cluster) -> Result<(Router, UnixDatagram)> {
        let path = cluster.state().file("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_read_timeout(Some(PATIENCE))?;
        let path = path.to_string_lossy().into_owned();
        let more = |command: Command| command.env("NOTIFY_SOCKET", &path);
        let router = Router::start_with(&cluster.router, "rvs", &self.text(0), &self.configs[0], more)?;
        Ok((router, manager))
    }

    /// Starts one of the two.
    fn start(&self, cluster: &Cluster, index: usize) -> Result<Router> {
        let namespace = if index == 0 { &cluster.router } else { &self.beside };
        Router::start_in(namespace, ["rvs", "rvs-peer"][index], &self.text(index), &self.configs[index])
    }
}

fn echo(cluster: &Cluster) -> Result<Vec<Server>> {
    let servers = cluster.real_servers.iter().enumerate();
    servers.map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, PORT), "")).collect()
}

/// Clients and states, whatever the order and the time.
fn connections(router: &Router) -> Result<Vec<[String; 4]>> {
    let text = router.rvs("list -c --json").run()?;
    let mut found = Vec::new();
    for line in text.lines() {
        let connection: Value = serde_json::from_str(line).context(line.to_owned())?;
        found.push(["client", "virtual", "server", "state"].map(|name| connection[name].to_string()));
    }
    found.sort();
    Ok(found)
}

fn wait_same(a: &Router, b: &Router, count: usize) -> Result<()> {
    wait::until("both know the same connections", PATIENCE, || {
        let (ours, theirs) = (connections(a)?, connections(b)?);
        ensure!(ours.len() == count && ours == theirs, "{ours:?}\n{theirs:?}");
        Ok(())
    })
}

/// The first of the two once more, when it has learned these connections from its peer.
fn learned(cluster: &Cluster, pair: &Pair, known: &[[String; 4]]) -> Result<Router> {
    let router = pair.start(cluster, 0)?;
    wait_together(&router)?;
    wait_live(cluster)?;
    ensure!(connections(&router)? == known, "{:?}\n{known:?}", connections(&router)?);
    Ok(router)
}

#[test]
fn connections_go_on_after_their_router_was_killed_and_has_learned_them_from_its_peer() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let pair = Pair::new(cluster)?;
        let router = pair.start(cluster, 0)?;
        ensure!(router.rvs("sync --ready").output()?.code() == Some(1), "nobody has answered yet");
        let peer = pair.start(cluster, 1)?;
        wait_together(&router)?;
        wait_together(&peer)?;
        ensure!(router.rvs("sync --ready").output()?.code() == Some(0), "ready");
        wait_live(cluster)?;

        let connect = |_| client::connect(&cluster.client, vip(PORT));
        let mut streams = (0..30).map(connect).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            client::echo(stream, b"before")?;
        }
        wait_same(&router, &peer, 30)?;
        // Five end before, and that is known as well.
        streams.drain(..5).try_for_each(client::close)?;
        wait_same(&router, &peer, 30)?;
        let known = connections(&peer)?;

        router.kill()?;
        let router = learned(cluster, &pair, &known)?;
        streams.iter_mut().try_for_each(|stream| client::echo(stream, b"after"))?;
        wait::until("it is said that the peer has come", PATIENCE, || {
            let heard = router.rvs("events").run()?;
            ensure!(heard.contains("peer 10.9.0.2:8848 knows our connections"), "{heard}");
            Ok(())
        })?;
        streams.into_iter().try_for_each(client::close)?;
        wait_same(&router, &peer, 30)?;
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn peers_reach_each_other_over_ipv6() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let pair = Pair { ends: ADDRESSES_OF_IPV6.map(IpAddr::from), ..Pair::new(cluster)? };
        peers::add_ipv6([&cluster.router, &pair.beside])?;
        let (router, peer, mut streams) = talking(cluster, &pair, 10)?;
        let known = connections(&peer)?;
        ensure!(peer.rvs("sync").run()?.contains("[fd09::1]:8848"), "{}", peer.rvs("sync").run()?);
        router.kill()?;
        let router = learned(cluster, &pair, &known)?;
        streams.iter_mut().try_for_each(|stream| client::echo(stream, b"after"))?;
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn what_is_of_a_mark_goes_on_after_its_router_has_learned_it_from_its_peer() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let other = SocketAddrV4::new([192, 0, 2, 20].into(), PORT);
        let rule = format!("mark = 10\naddress = [\"{VIP}\", \"{}\"]\nports = [{PORT}]", other.ip());
        let servers = (0..3).map(|index| cluster.endpoint(index, 0));
        let service = Service::marked("nat", 10).scheduler("rr").setting("persistence = {}");
        let service = servers.fold(service, |service, server| service.server(server, 1));
        let pair = Pair::of(cluster, cluster.config().mark(&rule).service(service))?;
        // At both addresses, and where their client comes back to.
        let (router, peer, mut streams) = talking(cluster, &pair, 0)?;
        for to in [vip(PORT), other] {
            let mut stream = client::connect(&cluster.client, to)?;
            client::echo(&mut stream, b"before")?;
            streams.push(stream);
        }
        wait_same(&router, &peer, 3)?;
        let known = connections(&peer)?;
        let server = |[_, _, server, _]: &[String; 4]| server.clone();
        ensure!(known.iter().all(|connection| server(connection) == server(&known[0])), "{known:?}");

        router.kill()?;
        let router = learned(cluster, &pair, &known)?;
        streams.iter_mut().try_for_each(|stream| client::echo(stream, b"after"))?;
        let mut further = client::connect(&cluster.client, other)?;
        client::echo(&mut further, b"and one more")?;
        wait_same(&router, &peer, 4)?;
        let now = connections(&router)?;
        ensure!(now.iter().all(|connection| server(connection) == server(&known[0])), "{now:?}");
        peer.stop()?;
        router.finish()
    })
}

/// Connections of a service by another mode, with servers that listen there.
fn learned_by(
    layout: Layout,
    ends: impl FnOnce(&Cluster) -> Result<Vec<End>>,
    service: impl FnOnce(Service) -> Service,
) -> Result<()> {
    with_cluster(layout, |cluster| {
        let _ends = ends(cluster)?;
        let _echo = match layout {
            Layout::TwoArmed => echo(cluster)?,
            Layout::OneArmed => {
                let servers = cluster.real_servers.iter();
                servers.map(|server| Server::tcp_echo(server, vip(PORT), "")).collect::<Result<_>>()?
            }
        };
        let service = service(cluster.web_on(PORT, PORT).scheduler("rr"));
        let pair = Pair::of(cluster, cluster.config().service(service))?;
        let (router, peer, mut streams) = talking(cluster, &pair, 12)?;
        let known = connections(&peer)?;
        router.kill()?;
        let router = learned(cluster, &pair, &known)?;
        streams.iter_mut().try_for_each(|stream| client::echo(stream, b"after"))?;
        // What is new is nobody's who is there already.
        let mut further = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut further, b"and one more")?;
        streams.iter_mut().try_for_each(|stream| client::echo(stream, b"still there"))?;
        wait_same(&router, &peer, 13)?;
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn connections_by_full_nat_are_learned_from_the_peer_with_their_local_ports() -> Result<()> {
    let by_full_nat = |service: Service| {
        let pool = "fullnat = { local = [\"10.0.0.100-10.0.0.101\"] }";
        Service { mode: "fullnat", ..service }.setting(pool)
    };
    learned_by(Layout::TwoArmed, |_| Ok(Vec::new()), by_full_nat)
}

#[test]
fn connections_by_tunnels_are_learned_from_the_peer() -> Result<()> {
    let kind = Kind::Gue(6080);
    learned_by(Layout::OneArmed, |cluster| End::of_all(cluster, kind), |service| through(service, kind))
}

fn wait_standing(router: &Router, standing: &str) -> Result<()> {
    wait::until(&format!("the peer is {standing}"), PATIENCE, || {
        let sync = sync(router)?;
        ensure!(sync["peers"][0]["standing"] == standing, "{sync:#}");
        Ok(())
    })
}

#[test]
fn a_wire_that_was_cut_heals_by_itself() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _servers = crowd::serve(cluster, PORT)?;
        let pair = Pair::new(cluster)?;
        let (router, peer) = (pair.start(cluster, 0)?, pair.start(cluster, 1)?);
        wait_together(&router)?;
        wait_together(&peer)?;
        let mut made = BTreeSet::new();
        let mut connect = || -> Result<TcpStream> {
            let mut stream = client::connect(&cluster.client, vip(PORT))?;
            client::echo(&mut stream, b"hello")?;
            made.insert(format!("\"{}\"", stream.local_addr()?));
            Ok(stream)
        };
        let mut streams = (0..30).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        wait_same(&router, &peer, 30)?;

        pair.beside.ip(&format!("link set {WIRE} down"))?;
        let cut = Instant::now();
        wait_standing(&router, "away")?;
        wait_standing(&peer, "away")?;
        // Some end that the peer has known, some are new, and some of these end as well.
        streams.drain(..10).try_for_each(client::close)?;
        for _ in 0..20 {
            streams.push(connect()?);
        }
        streams.drain(35..).try_for_each(client::close)?;
        wait::until_true("the wire has been cut for long", 2 * CUT, || cut.elapsed() >= CUT)?;
        ensure!(connections(&peer)?.len() == 30, "{:?}", connections(&peer)?);

        pair.beside.ip(&format!("link set {WIRE} up"))?;
        let healed = Instant::now();
        wait_same(&router, &peer, 50)?;
        println!("the wire was cut for {CUT:?}; both knew the same {:?} later", healed.elapsed());
        let known: BTreeSet<String> = connections(&peer)?.into_iter().map(|[client, ..]| client).collect();
        ensure!(known == made, "{known:?}\n{made:?}");
        for stream in &mut streams {
            client::echo(stream, b"still there")?;
        }
        for (who, router) in [("10.9.0.2", &router), ("10.9.0.1", &peer)] {
            let events = router.rvs("events").run()?;
            for said in ["is not heard any more", "knows our connections"] {
                ensure!(events.contains(&format!("peer {who}:8848 {said}")), "{said}: {events}");
            }
        }
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn a_peer_that_does_not_know_the_key_learns_nothing() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let mut pair = Pair::new(cluster)?;
        let router = pair.start(cluster, 0)?;
        pair.key = peers::key(cluster.state(), "other.key", "f")?;
        let peer = pair.start(cluster, 1)?;
        // Nobody whom it understands answers, so it goes on alone.
        wait_live(cluster)?;
        let mut stream = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut stream, b"secret")?;
        wait::until("the caller's call is found forged", PATIENCE, || {
            let sync = sync(&peer)?;
            ensure!(sync["peers"][0]["forged"].as_u64() > Some(0), "{sync:#}");
            Ok(())
        })?;
        ensure!(sync(&router)?["peers"][0]["standing"] == "away", "{:#}", sync(&router)?);
        ensure!(connections(&peer)?.is_empty(), "{:?}", connections(&peer)?);
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn a_port_that_another_program_has_is_an_error_of_its_line() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let pair = Pair::new(cluster)?;
        let _other = cluster.router.enter(|| Ok(UdpSocket::bind((ADDRESSES[0], 8848))?))?;
        let file = cluster.state().file("rvs.toml");
        fs::write(&file, pair.text(0))?;
        let refused = router::once(cluster, &format!("run -c {}", file.display()))?.output()?;
        let expected = "sync.listen: cannot listen at 10.9.0.1:8848: Address already in use";
        ensure!(refused.code() == Some(2) && refused.stderr.contains(expected), "{refused:?}");
        Ok(())
    })
}

/// How long a router waits for peers to answer.
const ALONE_AFTER: Duration = Duration::from_secs(3);

fn hear(manager: &UnixDatagram) -> Result<String> {
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).context("the service manager waits for a message")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Whether the router has taken the virtual address.
fn holds(cluster: &Cluster) -> Result<bool> {
    Ok(cluster.router.addresses("wan")?.contains(&format!("{VIP}/32")))
}

fn wait_live(cluster: &Cluster) -> Result<()> {
    wait::until("the virtual address is there", PATIENCE, || {
        ensure!(holds(cluster)?);
        Ok(())
    })
}

/// Both routers of a pair, and so many connections that both know.
fn talking(cluster: &Cluster, pair: &Pair, connections: usize) -> Result<(Router, Router, Vec<TcpStream>)> {
    let (router, peer) = (pair.start(cluster, 0)?, pair.start(cluster, 1)?);
    wait_together(&router)?;
    wait_together(&peer)?;
    wait_live(cluster)?;
    let connect = |_| client::connect(&cluster.client, vip(PORT));
    let mut streams = (0..connections).map(connect).collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        client::echo(stream, b"before")?;
    }
    wait_same(&router, &peer, connections)?;
    Ok((router, peer, streams))
}

#[test]
fn a_router_that_returns_takes_no_virtual_address_before_it_knows_the_connections() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let pair = Pair::new(cluster)?;
        let (router, peer, mut streams) = talking(cluster, &pair, 100)?;
        let known = connections(&peer)?;
        router.kill()?;

        // That the peer is there is heard, and not what it tells of a hundred connections: that is longer, also in two halves.
        cluster.router.nft(&format!(
            "table netdev cut {{\nchain in {{ type filter hook ingress device \"{WIRE}\" priority 0; udp length > 200 drop; }}\n}}\n"
        ))?;
        let began = Instant::now();
        let (router, manager) = pair.start_managed(cluster)?;
        ensure!(hear(&manager)? == "STATUS=learning connections from peers\n");
        wait_standing(&router, "joining")?;
        wait::until_true("it would have gone on alone", PATIENCE, || began.elapsed() > 2 * ALONE_AFTER)?;
        ensure!(!holds(cluster)?, "{:?}", cluster.router.addresses("wan")?);
        let listed = router.rvs("list").run()?;
        ensure!(listed.contains("withdrawn: still learning what peers know"), "{listed}");
        ensure!(router.rvs("sync --ready").output()?.code() == Some(1), "{:#}", sync(&router)?);

        cluster.router.nft("delete table netdev cut\n")?;
        ensure!(hear(&manager)?.starts_with("READY=1\nSTATUS=services: 1;"));
        // Whoever is told so can be sure of it.
        ensure!(holds(cluster)?, "{:?}", cluster.router.addresses("wan")?);
        ensure!(connections(&router)? == known, "{:?}\n{known:?}", connections(&router)?);
        for stream in &mut streams {
            client::echo(stream, b"after")?;
        }
        peer.stop()?;
        router.finish()
    })
}

/// A flow whose timeout has passed three times is known by what has been told again.
#[test]
fn a_flow_that_goes_on_is_kept_by_the_peer_under_a_short_timeout() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = Server::udp_echo(&cluster.real_servers[0], cluster.endpoint(0, PORT))?;
        let mut pair = Pair::new(cluster)?;
        let service = Service::udp("nat", vip(PORT)).server(cluster.endpoint(0, PORT), 1);
        let service = service.timeout("udp", &format!("{TIMEOUT:?}"));
        pair.configs = pair.configs.map(|config| config.service(service.clone()));
        let (router, peer) = (pair.start(cluster, 0)?, pair.start(cluster, 1)?);
        wait_together(&router)?;
        wait_together(&peer)?;
        wait_live(cluster)?;
        let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 5000))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(vip(PORT))?;
        let say = || -> Result<()> {
            socket.send(b"still there")?;
            socket.recv(&mut [0; 64]).context("no echo")?;
            Ok(())
        };
        say()?;
        wait_same(&router, &peer, 1)?;
        let began = Instant::now();
        while began.elapsed() < 3 * TIMEOUT {
            say()?;
            let known = connections(&peer)?;
            ensure!(known.len() == 1, "{known:?} after {:?}", began.elapsed());
        }
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn what_is_flushed_on_one_router_is_forgotten_by_the_other() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _echo = echo(cluster)?;
        let pair = Pair::new(cluster)?;
        let (router, peer, _streams) = talking(cluster, &pair, 30)?;
        let flushed = router.rvs(&format!("flush --service tcp/{}", vip(PORT))).run()?;
        ensure!(flushed == "forgot 30 connections\n", "{flushed}");
        wait_same(&router, &peer, 0)?;
        wait::until("the peer shows what it has forgotten", PATIENCE, || {
            let shown = sync(&peer)?;
            ensure!(shown["flushed"] == 30, "{shown:#}");
            Ok(())
        })?;

        // A client that comes back is another one.
        let mut stream = client::connect(&cluster.client, vip(PORT))?;
        client::echo(&mut stream, b"after")?;
        wait_same(&router, &peer, 1)?;
        peer.stop()?;
        router.finish()
    })
}

#[test]
fn a_router_without_peers_waits_for_them_and_then_goes_on() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let pair = Pair::new(cluster)?;
        let began = Instant::now();
        let (router, manager) = pair.start_managed(cluster)?;
        ensure!(hear(&manager)? == "STATUS=learning connections from peers\n");
        let early = holds(cluster)?;
        // It may have taken us as long to look.
        ensure!(!early || began.elapsed() > ALONE_AFTER, "it has the address before it can know");
        ensure!(hear(&manager)?.starts_with("READY=1\n") && began.elapsed() > ALONE_AFTER);
        ensure!(holds(cluster)?, "{:?}", cluster.router.addresses("wan")?);
        router.finish()
    })
}

#[test]
fn a_router_that_is_upgraded_stays_ready() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut pair = Pair::new(cluster)?;
        let place = Place::new(cluster)?;
        pair.configs[0].keep = place.keep();
        let peer = pair.start(cluster, 1)?;
        let (router, manager) = pair.start_managed(cluster)?;
        ensure!(hear(&manager)? == "STATUS=learning connections from peers\n");
        ensure!(hear(&manager)?.starts_with("READY=1\n"));
        router.rvs("upgrade").run()?;
        // keepalived asks every second.
        ensure!(router.rvs("sync --ready").output()?.code() == Some(0), "{:#}", sync(&router)?);
        ensure!(hear(&manager)?.starts_with("RELOADING=1\n"));
        ensure!(hear(&manager)?.starts_with("READY=1\n"), "it does not learn again");
        wait_together(&router)?;
        peer.stop()?;
        router.finish()
    })
}
