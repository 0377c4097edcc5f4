//! What a service does when its servers come and go: connections that stay or move on, slow start, damping, quorum,
//! sorry server, hooks.
//!
//! A server's health is a lamp of its own here: a port that accepts, or does not, beside the one that serves.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    net::{SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Service,
    flags::Flags,
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};

const LAMP: u16 = 9000;

/// The lamps of the three real servers, lit unless they are `None`.
struct Lamps<'a> {
    cluster: &'a Cluster,
    lamps: [Option<Server>; 3],
}

impl<'a> Lamps<'a> {
    fn new(cluster: &'a Cluster) -> Result<Lamps<'a>> {
        let mut lamps = Lamps { cluster, lamps: [None, None, None] };
        (0..3).try_for_each(|index| lamps.light(index))?;
        Ok(lamps)
    }

    fn light(&mut self, index: usize) -> Result<()> {
        let address = self.cluster.endpoint(index, LAMP);
        self.lamps[index] = Some(Server::tcp(&self.cluster.real_servers[index], address, drop)?);
        Ok(())
    }

    fn put_out(&mut self, index: usize) {
        self.lamps[index] = None;
    }
}

/// With a check of the lamps.
fn lit(service: Service) -> Service {
    service.check(&format!("kind = \"tcp\", port = {LAMP}"))
}

/// A TCP service whose servers say who they are and echo.
fn echo(cluster: &Cluster, port: u16) -> Service {
    lit(cluster.web_on(port, port).scheduler("rr"))
}

/// A UDP service whose servers say who they are.
fn names(cluster: &Cluster, port: u16) -> Service {
    let service = lit(Service::udp("nat", vip(port)).scheduler("rr"));
    (0..3).fold(service, |service, index| service.server(cluster.endpoint(index, port), 1))
}

/// Servers for the ports of services as above.
fn serve(cluster: &Cluster, tcp: &[u16], udp: &[u16]) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for (index, namespace) in cluster.real_servers.iter().enumerate() {
        let name = format!("{index}");
        for port in tcp {
            servers.push(Server::tcp_echo(namespace, cluster.endpoint(index, *port), &name)?);
        }
        for port in udp {
            servers.push(Server::udp_name(namespace, cluster.endpoint(index, *port), &name)?);
        }
    }
    Ok(servers)
}

/// Whom a connection is with.
fn greeting(stream: &mut TcpStream) -> Result<usize> {
    let mut name = [0];
    stream.read_exact(&mut name)?;
    Ok(usize::from(name[0] - b'0'))
}

fn connect(cluster: &Cluster, port: u16) -> Result<(TcpStream, usize)> {
    let mut stream = client::connect(&cluster.client, vip(port))?;
    let server = greeting(&mut stream)?;
    Ok((stream, server))
}

/// Connections with each of the servers, in their order.
fn connect_to_all(cluster: &Cluster, port: u16) -> Result<Vec<TcpStream>> {
    let mut streams = (0..3).map(|_| connect(cluster, port)).collect::<Result<Vec<_>>>()?;
    streams.sort_by_key(|(_, server)| *server);
    ensure!(streams.iter().map(|(_, server)| *server).eq(0..3));
    Ok(streams.into_iter().map(|(stream, _)| stream).collect())
}

/// A client's socket for UDP; port 0 is any.
fn socket(cluster: &Cluster, port: u16) -> Result<UdpSocket> {
    let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, port))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Who answers a datagram from this socket.
fn ask(socket: &UdpSocket, port: u16) -> Result<usize> {
    socket.send_to(b"who?", vip(port))?;
    let mut name = [0; 16];
    let (length, _) = socket.recv_from(&mut name).context("no answer")?;
    ensure!(length == 1, "{name:?}");
    Ok(usize::from(name[0] - b'0'))
}

fn wait_lamp(router: &Router, cluster: &Cluster, port: u16, index: usize, up: bool) -> Result<()> {
    router.wait_up_on(port, cluster.endpoint(index, port), up)
}

#[test]
fn quiesced_or_removed_when_down() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut lamps = Lamps::new(cluster)?;
        let _servers = serve(cluster, &[7001, 7002, 7003], &[7011, 7012])?;
        let quiesce = |service: Service| service.setting("on_down = \"quiesce\"");
        let remove = |service: Service| service.setting("on_down = \"remove\"");
        let config = cluster
            .config()
            .service(quiesce(echo(cluster, 7001)))
            .service(remove(echo(cluster, 7002)))
            .service(remove(echo(cluster, 7003)))
            .service(quiesce(names(cluster, 7011)))
            .service(remove(names(cluster, 7012)));
        let router = cluster.start_router(&config)?;

        let mut held = [connect_to_all(cluster, 7001)?, connect_to_all(cluster, 7002)?];
        let flows = |port| {
            let sockets = (0..3).map(|_| socket(cluster, 0)).collect::<Result<Vec<_>>>()?;
            let met = sockets.iter().map(|socket| ask(socket, port)).collect::<Result<Vec<_>>>()?;
            let of_dead = met.iter().position(|server| *server == 1).context("rr meets all three")?;
            sockets.into_iter().nth(of_dead).context("it is there")
        };
        let (quiesced, removed) = (flows(7011)?, flows(7012)?);
        // One of three handshakes meets a server that does not even answer.
        let deaf = "chain deaf {\ntype filter hook input priority 0;\ntcp dport 7003 drop\n}\n";
        cluster.real_servers[1].nft(&format!("table ip rvs {{\n{deaf}}}\n"))?;
        let begun: Vec<_> = (0..3)
            .map(|_| {
                cluster.client.spawn(|| {
                    let mut stream = TcpStream::connect_timeout(&vip(7003).into(), Duration::from_secs(20))?;
                    greeting(&mut stream)
                })
            })
            .collect();
        wait::until("all three are under way", PATIENCE, || {
            let connections = router.service_on(7003)?.stats.connections;
            ensure!(connections == 3, "{connections}");
            Ok(())
        })?;

        lamps.put_out(1);
        for port in [7001, 7002, 7003, 7011, 7012] {
            wait_lamp(&router, cluster, port, 1, false)?;
        }
        for port in [7001, 7002] {
            for _ in 0..6 {
                ensure!(connect(cluster, port)?.1 != 1, "a new connection to a server that is down");
            }
        }
        // What is established stays in either case.
        for streams in &mut held {
            streams.iter_mut().try_for_each(|stream| client::echo(stream, b"still here"))?;
        }
        // What could begin anew does so elsewhere only if the server counts as removed.
        for _ in 0..5 {
            ensure!(ask(&quiesced, 7011)? == 1, "a flow has left a server that is quiesced");
            ensure!(ask(&removed, 7012)? != 1, "a flow has stayed with a server that is removed");
        }
        for stream in begun {
            let server = stream.join().expect("no panic").context("a SYN again, to another server")?;
            ensure!(server != 1);
        }

        lamps.light(1)?;
        for port in [7001, 7002, 7003, 7011, 7012] {
            wait_lamp(&router, cluster, port, 1, true)?;
        }
        for port in [7001, 7002] {
            let again: BTreeSet<usize> =
                (0..3).map(|_| Ok(connect(cluster, port)?.1)).collect::<Result<_>>()?;
            ensure!(again.len() == 3, "{again:?}");
        }
        for streams in &mut held {
            streams.iter_mut().try_for_each(|stream| client::echo(stream, b"and still"))?;
        }
        ensure!(ask(&quiesced, 7011)? == 1);
        router.finish()
    })
}

/// Flows whose way is compared.
const FLOWS: u16 = 300;

/// Which server each of these flows meets, if it begins now.
fn begin_all(router: &Router, sockets: &[UdpSocket], port: u16) -> Result<Vec<usize>> {
    router.rvs(&format!("flush --service udp/{}", vip(port))).run()?;
    sockets.iter().map(|socket| ask(socket, port)).collect()
}

fn count(flows: &[usize], server: usize) -> usize {
    flows.iter().filter(|met| **met == server).count()
}

#[test]
fn slow_start() -> Result<()> {
    const WRR: u16 = 7101;
    const MH: u16 = 7102;
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut lamps = Lamps::new(cluster)?;
        let _servers = serve(cluster, &[], &[WRR, MH])?;
        let slowly = |service: Service| {
            let mut service = service.setting("slow_start = \"4s\"");
            service.servers.iter_mut().for_each(|server| server.weight = 20);
            service
        };
        let wrr = slowly(names(cluster, WRR)).scheduler("wrr");
        let mh = slowly(names(cluster, MH)).scheduler("mh").flag("mh-port");
        let router = cluster.start_router(&cluster.config().service(wrr).service(mh))?;
        let sockets: Vec<_> = (0..FLOWS).map(|flow| socket(cluster, 20_000 + flow)).collect::<Result<_>>()?;

        // Who begins begins at once.
        let weights = router.service_on(WRR)?.servers;
        ensure!(weights.iter().all(|server| server.effective_weight == 20), "{weights:?}");
        let all = begin_all(&router, &sockets, MH)?;
        ensure!((60..140).contains(&count(&all, 2)), "{all:?}");
        lamps.put_out(2);
        wait_lamp(&router, cluster, WRR, 2, false)?;
        wait_lamp(&router, cluster, MH, 2, false)?;
        let without = begin_all(&router, &sockets, MH)?;
        let moved = |from: &[usize], to: &[usize]| -> Vec<(usize, usize)> {
            from.iter().zip(to).map(|(from, to)| (*from, *to)).filter(|(from, to)| from != to).collect()
        };
        let went = moved(&all, &without);
        ensure!(
            went.len() == count(&all, 2) && went.iter().all(|(from, _)| *from == 2),
            "only a dead server's flows move: {went:?}"
        );

        lamps.light(2)?;
        wait_lamp(&router, cluster, WRR, 2, true)?;
        let (mut weights, mut shares, mut before) = (vec![], vec![], without);
        let connections = || -> Result<Vec<u64>> {
            let servers = router.service_on(WRR)?.servers;
            Ok(servers.iter().map(|server| server.stats.connections).collect())
        };
        let at_first = connections()?;
        wait::until("it has all of its weight", PATIENCE, || {
            let server = router.server_on(WRR, cluster.endpoint(2, WRR))?;
            weights.push(server.effective_weight);
            begin_all(&router, &sockets, WRR)?;
            let now = begin_all(&router, &sockets, MH)?;
            for (flow, (from, to)) in before.iter().zip(&now).enumerate() {
                if from != to && (*to, all[flow]) != (2, 2) {
                    // Ends the wait at its limit, with this message.
                    shares.push(usize::MAX);
                }
            }
            shares.push(count(&now, 2));
            before = now;
            ensure!(server.effective_weight == 20 && before == all, "{weights:?} {shares:?}");
            Ok(())
        })?;
        let grew: Vec<u64> =
            connections()?.iter().zip(at_first).map(|(now, at_first)| now - at_first).collect();
        // All the way up it had half of what the others had, on the average.
        ensure!(grew[2] * 4 < grew[0] * 3 && grew[2] > 0, "{grew:?}");
        ensure!(!shares.contains(&usize::MAX), "other servers' flows have moved: {shares:?}");
        for (what, steps) in
            [("weight", weights.iter().map(|weight| *weight as usize).collect()), ("flows", shares)]
        {
            let steps: Vec<usize> = steps;
            let distinct: BTreeSet<usize> = steps.iter().copied().collect();
            ensure!(steps.is_sorted() && distinct.len() >= 4, "{what}: {steps:?}");
        }
        router.finish()
    })
}

#[test]
fn a_server_that_flaps_is_held_down() -> Result<()> {
    const PORT: u16 = 7201;
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut lamps = Lamps::new(cluster)?;
        let _servers = serve(cluster, &[PORT], &[])?;
        let service = cluster.web_on(PORT, PORT).scheduler("rr");
        let check = format!("kind = \"tcp\", port = {LAMP}, interval = \"50ms\", rise = 1, fall = 1");
        let damping = "damping = { downs = 3, within = \"1m\", hold = \"2s\" }";
        let router =
            cluster.start_router(&cluster.config().service(service.check(&check).setting(damping)))?;
        for _ in 0..2 {
            lamps.put_out(1);
            wait_lamp(&router, cluster, PORT, 1, false)?;
            lamps.light(1)?;
            wait_lamp(&router, cluster, PORT, 1, true)?;
        }
        lamps.put_out(1);
        wait_lamp(&router, cluster, PORT, 1, false)?;
        let start = Instant::now();
        lamps.light(1)?;
        let server = cluster.endpoint(1, PORT);
        router.wait_event(&format!(
            "tcp/{}: {server} has gone down too often and is held down for 2 s",
            vip(PORT)
        ))?;
        // Its checks pass, but it takes no part.
        let listed = router.server_on(PORT, server)?;
        ensure!(!listed.up && listed.effective_weight == 0, "{listed:?}");
        ensure!(listed.reason.as_deref() == Some("held down: it went down too often"), "{listed:?}");
        for _ in 0..4 {
            ensure!(connect(cluster, PORT)?.1 != 1);
        }
        wait_lamp(&router, cluster, PORT, 1, true)?;
        ensure!(start.elapsed() >= Duration::from_secs(2), "held for {:?}", start.elapsed());
        let met: BTreeSet<usize> = (0..3).map(|_| Ok(connect(cluster, PORT)?.1)).collect::<Result<_>>()?;
        ensure!(met.len() == 3, "{met:?}");
        router.finish()
    })
}

/// What hooks write down: lines of `EVENT SERVICE SERVER WEIGHT ARGUMENT`.
fn told(files: &Flags) -> Vec<String> {
    let text = fs::read_to_string(files.file("told")).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn quorum_with_hysteresis_sorry_server_and_hooks() -> Result<()> {
    const PORT: u16 = 7301;
    const OTHER: u16 = 7302;
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut lamps = Lamps::new(cluster)?;
        let mut servers = serve(cluster, &[PORT, OTHER], &[])?;
        let sorry = cluster.endpoint(0, 7399);
        servers.push(Server::tcp_echo(&cluster.real_servers[0], sorry, "9")?);

        let files = Flags::new(cluster.state().file("hooks"))?;
        let shown = |name| files.file(name).display().to_string();
        // They wait while they are told to, and say what they were told and how many of their sets of capabilities are empty.
        files.write(
            "hook",
            &format!(
                "while [ -e {} ]; do sleep 0.05; done\n\
                 empty=$(grep -cE '^Cap(Inh|Prm|Eff|Amb):[[:space:]]*0*$' /proc/self/status)\n\
                 echo $RVS_EVENT $RVS_SERVICE $RVS_SERVER $RVS_WEIGHT $1 $empty >>{}\n",
                shown("wait"),
                shown("told")
            ),
        )?;
        let hook = |event: &str| format!("{event} = [\"/bin/sh\", {:?}, \"it-is-{event}\"]", shown("hook"));
        let hooks = ["up", "down", "quorum_up", "quorum_down"].map(hook).join(", ");
        let service = echo(cluster, PORT)
            .setting("quorum = 2\nhysteresis = 1")
            .setting(&format!("sorry_server = \"{sorry}\""))
            .setting(&format!("hooks = {{ {hooks} }}"));
        // Another service of the same servers has hooks of its own, which do not wait.
        let other = format!("echo $RVS_EVENT >>{}", shown("other"));
        let other =
            echo(cluster, OTHER).setting(&format!("hooks = {{ down = [\"/bin/sh\", \"-c\", {other:?}] }}"));
        let router = cluster.start_router(&cluster.config().service(service).service(other))?;

        let expect = |wanted: &[String]| {
            wait::until("the hooks have run", PATIENCE, || {
                let told = told(&files);
                ensure!(told == wanted, "{told:#?}, expected {wanted:#?}");
                Ok(())
            })
        };
        let server = |index: usize| cluster.endpoint(index, PORT);
        let line = |event: &str, about: &str| format!("{event} tcp/{} {about} it-is-{event} 4", vip(PORT));
        let mut wanted = vec![];

        // Hooks that take their time keep nobody waiting.
        files.raise("wait")?;
        lamps.put_out(0);
        wait_lamp(&router, cluster, PORT, 0, false)?;
        lamps.put_out(1);
        wait_lamp(&router, cluster, PORT, 1, false)?;
        for _ in 0..4 {
            ensure!(connect(cluster, PORT)?.1 == 2, "one is enough to keep the quorum: 2 - 1");
        }
        wait::until("the other service's hooks have run", PATIENCE, || {
            ensure!(fs::read_to_string(files.file("other"))? == "down\ndown\n");
            Ok(())
        })?;
        ensure!(told(&files).is_empty(), "{:?}", told(&files));
        files.lower("wait")?;
        wanted.extend([0, 1].map(|index| line("down", &server(index).to_string())));
        expect(&wanted)?;

        lamps.put_out(2);
        wait_lamp(&router, cluster, PORT, 2, false)?;
        for _ in 0..4 {
            ensure!(connect(cluster, PORT)?.1 == 9, "the sorry server serves");
        }
        wanted.extend([line("down", &server(2).to_string()), line("quorum_down", "0")]);
        expect(&wanted)?;

        for index in [0, 1] {
            lamps.light(index)?;
            wait_lamp(&router, cluster, PORT, index, true)?;
            wanted.push(line("up", &server(index).to_string()));
            ensure!(connect(cluster, PORT)?.1 == 9, "three are needed to gain the quorum: 2 + 1");
        }
        expect(&wanted)?;
        let (mut kept, nine) = connect(cluster, PORT)?;
        ensure!(nine == 9);
        lamps.light(2)?;
        wait_lamp(&router, cluster, PORT, 2, true)?;
        wanted.extend([line("up", &server(2).to_string()), line("quorum_up", "3")]);
        expect(&wanted)?;
        let met: BTreeSet<usize> = (0..6).map(|_| Ok(connect(cluster, PORT)?.1)).collect::<Result<_>>()?;
        ensure!(met == BTreeSet::from([0, 1, 2]), "the sorry server gives back: {met:?}");
        client::echo(&mut kept, b"and keeps what it has")?;

        let events = router.events()?;
        let quorum: Vec<_> = events.iter().filter(|event| event.contains("quorum")).collect();
        let expected = [(PORT, "lost"), (OTHER, "lost"), (OTHER, "gained"), (PORT, "gained")];
        let mut expected = expected.map(|(port, what)| format!("tcp/{}: quorum {what} ", vip(port))).to_vec();
        expected.retain(|words| {
            let found = quorum.iter().filter(|event| event.starts_with(words.as_str())).count();
            found != 1
        });
        ensure!(expected.is_empty() && quorum.len() == 4, "each is told once: {quorum:#?}");
        router.finish()
    })
}
