//! A small town of clients, services and servers, and the traffic of it, for tests that need every kind of packet to meet
//! every kind of connection.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dataplane::clock::Tick;
use dataplane::counters::{Drop, Traffic, WorkerCounters};
use dataplane::engine::{BURST, Engine, Verdict};
use dataplane::fib::{Adjacency, Fib, PortIndex, Route, Via};
use dataplane::service::{Mode, Persistence, Protocol, Scheduler, State, Timeouts};
use dataplane::snapshot::{DestSpec, MssClamp, PortSpec, ServiceSpec, Snapshot, TunnelSpec};
use dataplane::table::{DestId, HashKey, Table};
use dataplane::wire::checksum;
use dataplane::wire::tunnel::Encapsulation;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const GATEWAY: u32 = 0xC000_02FE;
pub const SERVICES: [(&str, Protocol, Mode, u32, Scheduler); 10] = [
    ("192.0.2.10:80", Protocol::Tcp, Mode::Nat, 900, Scheduler::Rr),
    ("192.0.2.10:53", Protocol::Udp, Mode::Nat, 300, Scheduler::Wlc),
    ("192.0.2.11:80", Protocol::Tcp, Mode::Dr, 900, Scheduler::Sh),
    ("192.0.2.11:53", Protocol::Udp, Mode::Dr, 3, Scheduler::Wrr),
    ("192.0.2.12:80", Protocol::Tcp, Mode::Nat, 100_000, Scheduler::Lc), // kept in the coarse unit
    ("192.0.2.12:53", Protocol::Udp, Mode::Nat, 17, Scheduler::Mh),
    ("192.0.2.13:80", Protocol::Tcp, Mode::Nat, 0, Scheduler::Nq),
    ("192.0.2.14:80", Protocol::Tcp, Mode::Tunnel, 900, Scheduler::Rendezvous), // by GRE
    ("192.0.2.14:53", Protocol::Udp, Mode::Tunnel, 300, Scheduler::Maglev),     // by GUE
    ("192.0.2.10:0", Protocol::Tcp, Mode::Nat, 900, Scheduler::Rr),             // of all ports
];
/// The one of all ports.
const ALL_PORTS: usize = 9;
pub const SERVERS: u32 = 3;

/// An engine with its surroundings.
pub struct Side {
    engine: Engine,
    pub table: Arc<Table>,
    counters: Arc<WorkerCounters>,
    specs: Vec<ServiceSpec>,
    pub snapshot: Snapshot,
}

impl Side {
    /// With a table for so many connections.
    pub fn new(express: bool, connections: usize) -> Side {
        let table = Arc::new(Table::new(connections, HashKey { blind: 5, factor: 0x9E37_79B9_7F4A_7C15 }));
        let counters: Arc<WorkerCounters> = Arc::default();
        let engine = Engine::new(0, table.clone(), counters.clone());
        let engine = if express { engine } else { engine.without_express() };
        let specs: Vec<ServiceSpec> = (0..SERVICES.len()).map(service).collect();
        let snapshot = compile(1, &specs);
        Side { engine, table, counters, specs, snapshot }
    }

    pub fn process(
        &self,
        now: Tick,
        port: PortIndex,
        burst: &mut [Vec<u8>],
    ) -> ([Verdict; BURST], Option<PortIndex>) {
        let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];
        let common = self.engine.process(&self.snapshot, now, port, burst, &mut verdicts, &mut ());
        (verdicts, common)
    }

    pub fn toggle(&mut self, service: usize, server: usize) {
        let dest = &mut self.specs[service].dests[server];
        dest.up = !dest.up;
        let new = compile(self.snapshot.generation + 1, &self.specs);
        self.snapshot = new.with_routing(self.snapshot.routing);
    }

    pub fn sweep(&self, now: Tick) {
        self.engine.sweep(&self.snapshot, now, 0..self.table.buckets());
    }

    pub fn state(&self) -> Seen {
        let dests = || self.specs.iter().flat_map(|spec| &spec.dests);
        let words = self.table.words(0..self.table.buckets());
        Seen {
            total: self.counters.traffic.get(),
            traffic: dests().map(|dest| dest.traffic[0].get()).collect(),
            gauges: dests().map(|dest| dest.gauge.get()).collect(),
            cursors: self.specs.iter().map(|spec| spec.kept.cursor.load(Ordering::Relaxed)).collect(),
            connections: words.map(|word| format!("{word:?} {}", word.age(Tick(0)))).collect(),
        }
    }
}

/// Everything that can be seen of a side from outside.
#[derive(Debug, PartialEq)]
pub struct Seen {
    total: Traffic,
    traffic: Vec<Traffic>,
    gauges: Vec<(u32, u32)>,
    cursors: Vec<u64>,
    connections: Vec<String>,
}

fn service(index: usize) -> ServiceSpec {
    let (address, protocol, mode, seconds, scheduler) = SERVICES[index];
    let address: SocketAddrV4 = address.parse().unwrap();
    let mut timeouts = Timeouts::default();
    timeouts.0[State::Established as usize] = seconds;
    timeouts.0[State::Udp as usize] = seconds;
    let dest = |server| DestSpec {
        weight: 1 + server,
        last_weight: 1 + server,
        // Services share servers: two have those of the first.
        ..DestSpec::new(
            DestId::new(1 + index as u32 * SERVERS + server).unwrap(),
            server_address(index as u32, server, mode, address.port()),
        )
    };
    ServiceSpec {
        scheduler,
        timeouts,
        one_packet: index == 3,
        // Of three services clients, or networks of them, come back to their servers.
        persistence: matches!(index, 1 | 3 | 4).then_some(Persistence {
            seconds: 20,
            prefix: if index == 1 { 32 } else { 28 },
            expire_quiescent: index == 1,
        }),
        tunnel: tunnel(protocol),
        dests: (0..SERVERS).map(dest).collect(),
        ..ServiceSpec::new(address, protocol, mode)
    }
}

fn tunnel(protocol: Protocol) -> TunnelSpec {
    let encapsulation = match protocol {
        Protocol::Tcp => Encapsulation::Gre { checksum: true },
        Protocol::Udp | Protocol::Sctp => Encapsulation::Gue { port: 6080, checksum: true },
    };
    TunnelSpec { encapsulation, source: Some([10, 0, 0, 254].into()), mss_clamp: Some(MssClamp::Fit) }
}

fn server_address(service: u32, server: u32, mode: Mode, port: u16) -> SocketAddrV4 {
    let port = if mode == Mode::Nat && port != 0 { 8000 + port } else { port };
    let service = if service == 6 || service == ALL_PORTS as u32 { 0 } else { service };
    SocketAddrV4::new(Ipv4Addr::from(0x0A00_0000 + service * 16 + server + 1), port)
}

/// Clients of 198.51.100.0/24 are behind a gateway, those of 203.0.113.0/24 neighbours, of whom some are not known
/// and some take only short packets. One server of each service is not known either.
fn compile(generation: u64, specs: &[ServiceSpec]) -> Snapshot {
    let routes = [
        Route { prefix: 0, length: 0, via: Via::Gateway(0, GATEWAY) },
        Route { prefix: 0x0A00_0000, length: 8, via: Via::OnLink(1) },
        Route { prefix: 0xCB00_7100, length: 24, via: Via::OnLink(0) },
        Route { prefix: 0xCB00_71F0, length: 28, via: Via::Nowhere },
    ];
    let mut neighbours = vec![((0, GATEWAY), Adjacency::new(0, 1500, [2; 6], MACS[0]))];
    for host in (0..32).filter(|host| host % 4 != 3) {
        let mtu = if host % 4 == 2 { 60 } else { 1500 };
        neighbours
            .push(((0, 0xCB00_7100 + host), Adjacency::new(0, mtu, [2, 0, 0, 1, 0, host as u8], MACS[0])));
    }
    // Some take only short packets, with a tunnel's headers not all of these.
    for (index, (host, mtu)) in (0..SERVICES.len() as u32)
        .flat_map(|service| {
            [(1, 1500), (2, if service < 7 { 60 } else { 84 })]
                .map(|(server, mtu)| (service * 16 + server, mtu))
        })
        .enumerate()
    {
        neighbours
            .push(((1, 0x0A00_0000 + host), Adjacency::new(1, mtu, [2, 0, 0, 2, 0, index as u8], MACS[1])));
    }
    let ports = MACS.map(|mac| PortSpec { mac }).to_vec();
    Snapshot::new(generation, ports, specs, [], Fib::new(routes, neighbours))
}

/// A packet as it may come in on a port.
pub fn frame(random: &mut Random, port: PortIndex) -> Vec<u8> {
    // Few for that of all ports, or no room would be left for what fills a small table: established connections.
    let index = if random.one_in(20) { ALL_PORTS } else { random.below(ALL_PORTS) };
    let (address, protocol, mode, ..) = SERVICES[index];
    let mut virtual_address: SocketAddrV4 = address.parse().unwrap();
    if index == ALL_PORTS {
        // The last is the very one of a server of another service.
        virtual_address.set_port(random.pick(&[81, 8080]));
    }
    let network = random.pick(&[0xC633_6400, 0xCB00_7100]);
    let host = if random.one_in(10) { random.below(256) } else { random.below(4) } as u32;
    let client = SocketAddrV4::new(Ipv4Addr::from(network + host), 40_000 + random.below(2) as u16);
    let outward = (port == 1) ^ random.one_in(20);
    let (source, destination) = if outward {
        let mode = if index == ALL_PORTS { Mode::Dr } else { mode };
        let server = random.below(SERVERS as usize) as u32;
        (server_address(index as u32, server, mode, virtual_address.port()), client)
    } else {
        (client, virtual_address)
    };
    // SYN, FIN, RST and ACK in the shares that keep connections alive for a while, and anything.
    let rare = random.one_in(12);
    let flags = if rare { random.pick(&[0, 17, 4, 20, 18, 255]) } else { random.pick(&[2, 16, 16, 16, 24]) };
    let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    match protocol {
        Protocol::Tcp => segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 0, 0, 0, 0, 0]),
        Protocol::Udp => segment.extend([0, 0, 0, 0]),
        Protocol::Sctp => unreachable!("nobody here speaks it"),
    }
    segment.resize(segment.len() + random.below(40), 0xA5);
    if protocol == Protocol::Udp {
        let length = segment.len() as u16;
        segment[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let checksum_at = if protocol == Protocol::Tcp { 16 } else { 6 };
    let mut pseudo = [source.ip().octets(), destination.ip().octets()].concat();
    pseudo.extend([0, protocol.number(), 0, segment.len() as u8]);
    pseudo.extend(&segment);
    let sum = if protocol == Protocol::Udp && random.one_in(10) { 0 } else { !checksum::sum(&pseudo) };
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());

    let options = if random.one_in(40) { 4 } else { 0 };
    let total = (20 + options + segment.len()) as u16;
    let mut ip = vec![0x45 + options as u8 / 4, random.below(256) as u8];
    ip.extend(total.to_be_bytes());
    ip.extend([
        0,
        7,
        random.pick(&[0, 0x40]),
        0,
        random.pick(&[64, 64, 64, 64, 64, 64, 64, 255, 2, 1]),
        protocol.number(),
        0,
        0,
    ]);
    ip.extend(source.ip().octets());
    ip.extend(destination.ip().octets());
    ip.resize(20 + options, 1);
    let damage = random.one_in(8).then(|| random.below(10));
    match damage {
        Some(0) => ip[6] |= 0x20,                                       // more fragments
        Some(1) => ip[7] = 3,                                           // an offset
        Some(2) => ip[9] = random.pick(&[1, 47, 17, 6]),                // another protocol
        Some(3) => ip[3] = ip[3].wrapping_add(random.below(256) as u8), // a length
        Some(4) => {
            let at = random.below(20.min(segment.len()));
            segment[at] = random.below(256) as u8;
        }
        _ => {}
    }
    ip[10..12].fill(0);
    let sum = !checksum::sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut frame = [MACS[usize::from(port)], [2, 0, 0, 0, 9, 9]].concat();
    frame.extend([8, 0]);
    frame.extend(&ip);
    frame.extend(&segment);
    if frame.len() < 60 && !random.one_in(10) {
        frame.resize(60, 0);
    }
    match damage {
        Some(5) => frame.truncate(random.below(frame.len())),
        Some(6) => {
            let at = random.below(54.min(frame.len()));
            frame[at] ^= 1 << random.below(8);
        }
        Some(7) => frame[5] ^= 4, // to somebody else
        Some(8) => {
            frame[12..14].copy_from_slice(&random.pick(&[[0x81, 0], [0x86, 0xDD], [8, 6], [0x88, 0xA8]]))
        }
        Some(9) => frame.resize(frame.len() + random.below(9), 0xEE),
        _ => {}
    }
    frame
}

/// splitmix64: small, seeded, good enough to surprise.
pub struct Random(u64);

impl Random {
    /// By `RVS_SEED`, or always the same; with the seed.
    pub fn seeded() -> (u64, Random) {
        let seed =
            std::env::var("RVS_SEED").map_or(0x5EED, |seed| seed.parse().expect("RVS_SEED is a number"));
        (seed, Random(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
