//! A thousand reloads with random diffs under load: no packet is lost to them, and a connection breaks only if the diff
//! says so.
//!
//! Three services under load: one whose servers stay while everything else of it changes, whose packets are counted on
//! both sides; one for datagrams; and a wild one, whose servers come and go, and with them, as `on_remove` has it, their
//! connections. What was put in force is written down, and every broken connection is held against it.

use std::{
    collections::BTreeSet,
    io::Read,
    io::Write,
    net::{SocketAddrV4, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::{Config, Service},
    router::Router,
    servers::Server,
    tally::{self, Tally},
    with_cluster,
};

const RELOADS: usize = 1000;
const CALM: u16 = 7777;
const WILD: u16 = 7778;
const HOWS: [&str; 3] = ["drain", "reset", "drop"];

/// Reproducible: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What reloads have done to connections: how many there were, and at which of them a server's connections ended.
#[derive(Default)]
struct History {
    reloads: AtomicU64,
    cut: [Mutex<Vec<u64>>; 3],
}

impl History {
    /// Whether a connection with this server, begun and ended when there were so many reloads, had to break. A reload
    /// is counted before it is asked for, and the one before has been answered: all workers go by it.
    fn explains(&self, server: usize, begun: u64, ended: u64) -> bool {
        let cut = self.cut[server].lock().expect("nobody panics");
        cut.iter().any(|reload| (begun..=ended).contains(reload))
    }
}

struct World<'c> {
    cluster: &'c Cluster,
    random: Random,
    config: Config,
    /// The wild service's servers now, and what its file says of removal.
    wild: BTreeSet<usize>,
    how: &'static str,
}

impl World<'_> {
    /// Another configuration; the servers whose connections that ends.
    fn change(&mut self) -> Vec<usize> {
        let random = &mut self.random;
        let schedulers = ["rr", "wrr", "lc", "wlc", "sed", "nq"];
        for service in &mut self.config.services[..2] {
            service.scheduler = schedulers[random.below(6) as usize].to_owned();
            service.servers.iter_mut().for_each(|server| server.weight = 1 + random.below(5) as u32);
        }
        let (before, how) = (self.wild.clone(), self.how);
        for server in 0..3 {
            if random.one_in(3) && !(self.wild.len() == 1 && self.wild.contains(&server)) {
                let was_there = self.wild.remove(&server);
                if !was_there {
                    self.wild.insert(server);
                }
            }
        }
        self.how = HOWS[random.below(3) as usize];
        let weight = 1 + random.below(5) as u32;
        let wild = Service::tcp("nat", vip(WILD)).scheduler(schedulers[random.below(6) as usize]);
        let wild = wild.setting(&format!("on_remove = {:?}", self.how));
        let endpoint = |server: &usize| self.cluster.endpoint(*server, WILD);
        self.config.services[2] =
            self.wild.iter().fold(wild, |service, server| service.server(endpoint(server), weight));
        self.config.services.truncate(3);
        if self.random.one_in(2) {
            self.config.services.push(self.cluster.web_on(8888, 8080));
        }
        // What was in force says what becomes of those that go.
        if how == "drain" { Vec::new() } else { before.difference(&self.wild).copied().collect() }
    }
}

/// Asks for a reload as any HTTP client does; a thousand processes would take longer than the reloads.
fn reload(socket: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"POST /v1/reload HTTP/1.1\r\nhost: rvs\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

fn reload_all(world: &mut World<'_>, router: &Router, history: &History) -> Result<()> {
    for number in 1..=RELOADS as u64 {
        let cut = world.change();
        router.write(&world.config)?;
        for server in cut {
            history.cut[server].lock().expect("nobody panics").push(number);
        }
        history.reloads.store(number, Ordering::SeqCst);
        reload(&world.config.socket).with_context(|| format!("reload {number}"))?;
    }
    Ok(())
}

/// Talks to whichever server there is, again and again; how many connections there were, and how many broke.
fn talk(cluster: &Cluster, history: &History, stop: &AtomicBool) -> Result<(u64, u64)> {
    let (mut connections, mut broken) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        let begun = history.reloads.load(Ordering::SeqCst);
        let mut server = None;
        let mut converse = || -> Result<()> {
            let mut stream: TcpStream = client::connect(&cluster.client, vip(WILD))?;
            let mut name = [0];
            stream.read_exact(&mut name)?;
            server = Some(usize::from(name[0] - b'0'));
            let mut count = 0_u64;
            while !stop.load(Ordering::SeqCst) && count < 2000 {
                client::echo(&mut stream, &count.to_be_bytes())?;
                count += 1;
            }
            client::close(stream)
        };
        connections += 1;
        if let Err(error) = converse() {
            let ended = history.reloads.load(Ordering::SeqCst);
            let explained = match server {
                Some(server) => history.explains(server, begun, ended),
                None => (0..3).any(|server| history.explains(server, begun, ended)),
            };
            ensure!(explained, "a connection with {server:?}, reloads {begun} to {ended}, broke: {error:#}");
            broken += 1;
        }
    }
    Ok((connections, broken))
}

/// One connection for the whole time.
fn stay(cluster: &Cluster, stop: &AtomicBool) -> Result<u64> {
    let mut stream = client::connect(&cluster.client, vip(CALM))?;
    let mut count = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        client::echo(&mut stream, &count.to_be_bytes()).with_context(|| format!("message {count}"))?;
        count += 1;
    }
    client::close(stream)?;
    Ok(count)
}

/// Datagrams, one at a time; each must come back.
fn datagrams(cluster: &Cluster, stop: &AtomicBool) -> Result<u64> {
    let socket = cluster.client.enter(|| Ok(UdpSocket::bind(SocketAddrV4::new(CLIENT, 5000))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(vip(7))?;
    let mut count = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        socket.send(&count.to_be_bytes())?;
        let length = socket.recv(&mut [0; 16]).with_context(|| format!("datagram {count} was lost"))?;
        ensure!(length == 8);
        count += 1;
    }
    Ok(count)
}

#[test]
fn a_thousand_reloads_lose_no_packet_and_break_only_what_the_diff_says() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut servers = Vec::new();
        for (index, namespace) in cluster.real_servers.iter().enumerate() {
            servers.push(Server::tcp_echo(namespace, cluster.endpoint(index, CALM), "")?);
            servers.push(Server::tcp_echo(namespace, cluster.endpoint(index, WILD), &index.to_string())?);
            servers.push(Server::udp_echo(namespace, cluster.endpoint(index, 7))?);
        }
        let near = Tally::of_client(&cluster.client, "192.0.2.10", "tcp", CALM)?;
        let of_server = |server| Tally::of_server(server, "tcp", CALM);
        let far: Vec<_> = cluster.real_servers.iter().map(of_server).collect::<Result<_>>()?;
        let with_all = |service: Service, port| {
            (0..3).fold(service, |service, index| service.server(cluster.endpoint(index, port), 1))
        };
        let config = cluster
            .config()
            .workers(2)
            .service(with_all(Service::tcp("nat", vip(CALM)), CALM))
            .service(with_all(Service::udp("nat", vip(7)), 7))
            .service(with_all(Service::tcp("nat", vip(WILD)), WILD));
        let router = cluster.start_router(&config)?;
        let generation = router.counters()?.generation;
        let (wild, random) = ((0..3).collect(), Random(0x9E37_79B9_7F4A_7C15));
        let mut world = World { cluster, random, config, wild, how: "drain" };

        let (history, stop) = (History::default(), AtomicBool::new(false));
        let (messages, datagrams, connections, broken) = thread::scope(|scope| -> Result<_> {
            let calm: Vec<_> = (0..3).map(|_| scope.spawn(|| stay(cluster, &stop))).collect();
            let udp = scope.spawn(|| datagrams(cluster, &stop));
            let wild: Vec<_> = (0..4).map(|_| scope.spawn(|| talk(cluster, &history, &stop))).collect();
            let result = reload_all(&mut world, &router, &history);
            stop.store(true, Ordering::SeqCst);
            let join = |thread: thread::ScopedJoinHandle<'_, Result<u64>>| thread.join().expect("no panic");
            let messages: u64 = calm.into_iter().map(join).sum::<Result<u64>>()?;
            let datagrams = join(udp)?;
            let (mut connections, mut broken) = (0, 0);
            for thread in wild {
                let (some, of_them) = thread.join().expect("no panic")?;
                (connections, broken) = (connections + some, broken + of_them);
            }
            result?;
            Ok((messages, datagrams, connections, broken))
        })?;
        println!(
            "{messages} messages, {datagrams} datagrams, {connections} connections, {broken} broken as told"
        );
        ensure!(messages > 1000 && datagrams > 300 && broken > 20, "no load");

        let traffic = tally::wait_equal(&near, &far)?;
        let counters = router.quiet()?;
        ensure!(counters.generation >= generation + RELOADS as u64, "{}", counters.generation);
        let services = router.services()?;
        let calm =
            services.iter().find(|service| service.address == vip(CALM).into()).context("no calm service")?;
        ensure!((calm.stats.packets_in, calm.stats.bytes_in) == (traffic.sent.packets, traffic.sent.bytes));
        ensure!(calm.stats.connections == 3, "{calm:?}");
        let udp = services
            .iter()
            .find(|service| service.address == vip(7).into())
            .context("no datagram service")?;
        ensure!((udp.stats.packets_in, udp.stats.packets_out) == (datagrams, datagrams), "{udp:?}");
        router.finish()
    })
}
