//! The data path, put into the same world as the model.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use dataplane::admission::{Kept, Limit, Rate, Sources};
use dataplane::clock::Tick;
use dataplane::counters::{Drop, Punt, Traffic, WorkerCounters};
use dataplane::engine::{BURST, Engine, Verdict, reset};
use dataplane::fib::{Address, Adjacency, Fib, Fibs, Route, Via};
use dataplane::fragments::Waiting;
use dataplane::quic::ServerId;
use dataplane::scheduler::{FLOW_KEY, NextRoster, RosterMember, RosterSpec, Rosters};
use dataplane::service::{Limits, Mode, Protocol, Scheduler, State, Timeouts};
use dataplane::snapshot::{DestSpec, Incoming, Part, Pool, PortSpec, ServiceSpec, Snapshot, TunnelSpec};
use dataplane::snat::{Share, Snat, SnatSpec, Snats};
use dataplane::table::{Client, DestId, HashKey, LocalAddress, Table};
use dataplane::vlan::{self, Tag, Vlans};

use crate::hashes;
use crate::model::{Class, Mapped};
use crate::quic;
use crate::roster::{self, Roster};
use crate::sequence::Sequence;
use crate::wires::Wires;
use crate::world::{
    self, Flow, GATEWAYS, LAN, Leaving, MACS, ROUTER, ROUTER_SIX, SERVERS, Service, WAN, Way,
};

/// An engine with its surroundings.
pub struct Subject {
    engine: Engine,
    table: Arc<Table>,
    counters: Arc<WorkerCounters>,
    services: Vec<Service>,
    waiting: Waiting<Vec<u8>>,
    specs: Vec<ServiceSpec>,
    ports: Ports,
    snapshot: Snapshot,
}

/// What has become of a frame.
pub struct Taken {
    /// The port that it has come in on.
    pub port: u16,
    pub verdict: Verdict,
    /// As it is left.
    pub left: Vec<u8>,
    /// The real server of the connection that has begun with it.
    pub begun: Option<usize>,
}

/// A connection as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub flow: Flow,
    pub service: usize,
    pub server: usize,
    pub state: &'static str,
    /// Ticks since it was last seen.
    pub idle: u64,
    /// As whom the server knows the client, by full NAT.
    pub local: Option<SocketAddr>,
}

/// What an operator sees of a sequence's end.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub connections: Vec<Listed>,
    /// Where clients come back to: service, client (or the first address of its network) and server.
    pub templates: BTreeSet<(usize, IpAddr, usize)>,
    /// For each server of each service, what has been counted, and how many connections are active and inactive.
    pub servers: Vec<(Traffic, [u32; 2])>,
    pub total: Traffic,
    /// Packets and bytes that were routed.
    pub routed: (u64, u64),
    /// Replies of FTP that name an address, and went as they came.
    pub unchanged_replies: u64,
    /// Of source NAT.
    pub mappings: Vec<Mapped>,
}

impl Subject {
    pub fn new(sequence: &Sequence) -> Subject {
        let services = &sequence.services[..];
        let table = Arc::new(Table::new(256, HashKey { blind: 5, factor: 0x9E37_79B9_7F4A_7C15 }));
        let counters: Arc<WorkerCounters> = Arc::default();
        let engine = Engine::new(0, table.clone(), counters.clone());
        let specs: Vec<ServiceSpec> =
            services.iter().enumerate().map(|(number, service)| spec(number, service)).collect();
        let specs = with_pools(services, specs);
        let snats = Snats::new(sequence.snat.iter().map(snat).collect());
        let ports = Ports::new(sequence.wires);
        let snapshot = compile(1, &ports, services, &specs).with_routing(sequence.routing).with_snats(snats);
        Subject {
            engine,
            table,
            counters,
            services: services.to_vec(),
            waiting: Waiting::default(),
            specs,
            ports,
            snapshot,
        }
    }

    /// What becomes of a frame that comes in by a wire.
    pub fn take(&self, now: u64, wire: u16, frame: &[u8]) -> Taken {
        let begun = || -> Vec<u64> {
            let dests = self.specs.iter().flat_map(|spec| &spec.dests);
            dests.map(|dest| dest.traffic[0].connections.get()).collect()
        };
        let before = begun();
        let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];
        let mut burst = [frame.to_vec()];
        let vlans = &self.ports.vlans;
        // As a worker does: a wire without networks is asked nothing.
        let port = if vlans.are_on(wire) { vlans.receive(wire, &mut burst[0]) } else { wire };
        self.engine.process(&self.snapshot, Tick(now), port, &mut burst, &mut verdicts, &mut ());
        let [frame] = burst;
        if verdicts[0] == Verdict::Punt(Punt::Reset) {
            // Control tells both ends, and forgets the connection.
            reset::reset(&self.table, &self.snapshot, &frame[14..]);
        }
        let index = before.iter().zip(begun()).position(|(before, after)| *before != after);
        let mut servers = self.specs.iter().flat_map(|spec| 0..spec.dests.len());
        let begun = index.and_then(|index| servers.nth(index));
        Taken { port: self.ports.named(port), verdict: self.ports.named_in(verdicts[0]), left: frame, begun }
    }

    /// A frame as it leaves by a port, and the wire.
    pub fn leaves(&self, port: u16, frame: &[u8]) -> (u16, Vec<u8>) {
        let (port, mut frame) = (self.ports.of(port), frame.to_vec());
        match self.ports.vlans.tag(port) {
            Some(tag) if vlan::put(&mut frame, tag.id) => (tag.port, frame),
            _ => (port, frame),
        }
    }

    /// A fragment waits.
    pub fn hold(&mut self, now: u64, port: u16, frame: &[u8]) {
        let port = self.ports.of(port);
        let room = self.engine.hold(&mut self.waiting, Tick(now), port, frame.to_vec());
        assert!(room.is_none(), "there is room for more than a sequence has");
    }

    /// What becomes of fragments that wait no more.
    pub fn settle(&mut self, now: u64) -> Vec<(Verdict, Vec<u8>)> {
        let mut settled = Vec::new();
        let done = |_, frame, verdict| settled.push((self.ports.named_in(verdict), frame));
        self.engine.settle(&self.snapshot, Tick(now), &mut self.waiting, false, done);
        settled
    }

    pub fn sweep(&self, now: u64) {
        self.engine.sweep(&self.snapshot, Tick(now), 0..self.table.buckets());
    }

    /// A service is configured as this one from now on.
    pub fn change(&mut self, number: usize, service: &Service) {
        let old = &self.specs[number];
        let mut new = spec(number, service);
        (new.kept, new.pool, new.limiter) = (old.kept.clone(), old.pool.clone(), old.limiter.clone());
        for (new, old) in new.dests.iter_mut().zip(&old.dests) {
            (new.traffic, new.gauge) = (old.traffic.clone(), old.gauge.clone());
        }
        self.specs[number] = new;
        self.services[number] = service.clone();
        self.snapshot = compile(self.snapshot.generation + 1, &self.ports, &self.services, &self.specs)
            .with_routing(self.snapshot.routing)
            .with_snats(self.snapshot.snats.clone());
    }

    /// What an operator sees; of mappings, those of these ends.
    pub fn seen(&self, now: u64, inside_ends: &[(Class, SocketAddr)]) -> Seen {
        let is_template = |one: &Listed| one.state == State::Template.name();
        let (templates, mut connections): (Vec<_>, Vec<_>) = self.listed(now).partition(is_template);
        connections.sort();
        let dests = self.specs.iter().flat_map(|spec| &spec.dests);
        let servers = dests.map(|dest| {
            let (active, inactive) = dest.gauge.get();
            (dest.traffic[0].get(), [active, inactive])
        });
        let templates = templates.iter().map(|one| (one.service, one.flow.client.ip(), one.server)).collect();
        let routed = (self.counters.routed.get(), self.counters.routed_bytes.get());
        Seen {
            connections,
            templates,
            servers: servers.collect(),
            total: self.counters.traffic.get(),
            routed,
            unchanged_replies: self.counters.ftp_unchanged.get(),
            mappings: self.mappings(now, inside_ends),
        }
    }

    /// Where clients come back to: service, client and server.
    pub fn templates(&self, now: u64) -> Vec<(usize, IpAddr, usize)> {
        if self.services.iter().all(|service| service.persistence.is_none()) {
            return Vec::new();
        }
        let templates = self.listed(now).filter(|one| one.state == State::Template.name());
        templates.map(|one| (one.service, one.flow.client.ip(), one.server)).collect()
    }

    /// The local addresses and ports of connections by full NAT.
    pub fn locals(&self, now: u64) -> Vec<(Flow, usize, SocketAddr)> {
        if self.services.iter().all(|service| service.mode != Mode::Fullnat) {
            return Vec::new();
        }
        self.listed(now).filter_map(|one| Some((one.flow, one.server, one.local?))).collect()
    }

    /// What these inside addresses and ports are outside, as far as they are anything.
    pub fn mappings(&self, now: u64, inside_ends: &[(Class, SocketAddr)]) -> Vec<Mapped> {
        let mapped =
            |&(class, inside): &(Class, SocketAddr)| Some((class, inside, self.mapping(now, class, inside)?));
        let mappings: BTreeSet<Mapped> = inside_ends.iter().filter_map(mapped).collect();
        mappings.into_iter().collect()
    }

    /// What an inside address and port is outside.
    pub fn mapping(&self, now: u64, class: Class, inside: SocketAddr) -> Option<SocketAddr> {
        let SocketAddr::V4(inside) = inside else { return None };
        let class = match class {
            Class::Tcp => dataplane::snat::Class::Tcp,
            Class::Udp => dataplane::snat::Class::Udp,
            Class::Echo => dataplane::snat::Class::Icmp,
        };
        let inside = Client::new((*inside.ip()).into(), inside.port());
        let mapping = self.snapshot.snats.from_inside(Tick(now), class, inside)?;
        Some((Ipv4Addr::from(mapping.address), mapping.port).into())
    }

    fn listed(&self, now: u64) -> impl Iterator<Item = Listed> + '_ {
        self.table.entries(0..self.table.buckets()).filter_map(move |(slot, word)| {
            let dest = self.snapshot.dest_of(word)?;
            let age = word.age(Tick(now));
            (!self.snapshot.timeout(dest, word.state()).has_passed(age)).then(|| Listed {
                flow: Flow {
                    protocol: self.snapshot.services[dest.service as usize].protocol,
                    client: self.snapshot.client_of(&self.table, slot, word).expect("the dest is known"),
                    destination: self
                        .snapshot
                        .virtual_of(&self.table, slot, word)
                        .expect("the dest is known"),
                },
                service: (dest.id.index() - 1) / SERVERS % self.services.len(),
                server: (dest.id.index() - 1) % SERVERS,
                state: word.state().name(),
                idle: age.into(),
                local: self.snapshot.local_port_of(&self.table, slot, word),
            })
        })
    }
}

/// The numbers that ports have: two of wires, and behind them those of tagged networks.
struct Ports {
    vlans: Vlans,
    /// Of [`WAN`] and [`LAN`].
    numbers: [u16; 2],
}

impl Ports {
    fn new(wires: Wires) -> Self {
        let mut tags = Vec::new();
        let numbers = [WAN, LAN].map(|port| {
            let network = wires.network(port);
            match network.tag {
                None => network.wire,
                Some(id) => {
                    tags.push(Tag { port: network.wire, id });
                    1 + tags.len() as u16
                }
            }
        });
        Ports { vlans: Vlans::new(2, tags), numbers }
    }

    fn specs(&self) -> Vec<PortSpec> {
        let mac = |number| MACS[usize::from(self.named(number)) % 2];
        (0..2 + self.vlans.len() as u16).map(|number| PortSpec { mac: mac(number) }).collect()
    }

    /// That of one of the model's.
    fn of(&self, port: u16) -> u16 {
        self.numbers.get(usize::from(port)).copied().unwrap_or_else(|| port - 2)
    }

    /// The model's of one of these.
    fn named(&self, number: u16) -> u16 {
        self.numbers.iter().position(|&one| one == number).map_or(2 + number, |port| port as u16)
    }

    fn named_in(&self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Forward(number) => Verdict::Forward(self.named(number)),
            Verdict::Route(number) => Verdict::Route(self.named(number)),
            other => other,
        }
    }
}

fn snat(snat: &world::Snat) -> Arc<Snat> {
    let spec = SnatSpec {
        inside: vec![(world::INSIDE.0.into(), world::INSIDE.1)],
        outside: world::POOL.map(u32::from).to_vec(),
        ports: snat.ports.clone(),
        block: snat.block,
        limit: snat.limit,
        mappings: 1000,
        timeouts: snat.timeouts,
    };
    Arc::new(Snat::new(spec, HashKey { blind: 3, factor: 0x9E37_79B9_7F4A_7C15 }, Share::WHOLE))
}

fn limit_of(limit: world::Limit, is_six: bool) -> Limit {
    let source_prefix = if is_six { 128 } else { 32 };
    let none =
        Limit { rate: None, source_rate: None, source_connections: None, half_open: None, source_prefix };
    match limit {
        world::Limit::Rate { rate, burst, of_source: false } => {
            Limit { rate: Some(Rate::new(rate, burst)), ..none }
        }
        world::Limit::Rate { rate, burst, of_source: true } => {
            Limit { source_rate: Some(Rate::new(rate, burst)), ..none }
        }
        world::Limit::HalfOpen { rate, burst } => Limit { half_open: Some(Rate::new(rate, burst)), ..none },
        world::Limit::Open(most) => Limit { source_connections: Some(most), ..none },
    }
}

fn spec(number: usize, service: &Service) -> ServiceSpec {
    let mut timeouts = Timeouts::default();
    timeouts.0[State::Established as usize] = service.timeout;
    timeouts.0[State::Udp as usize] = service.timeout;
    let dest = |(index, server): (usize, &world::Server)| DestSpec {
        weight: server.weight,
        last_weight: server.weight,
        limits: server.limits.map(|(upper, lower)| Limits { upper, lower }),
        quic_id: server.quic_id.as_ref().and_then(|id| ServerId::new(id)),
        up: server.up,
        listed: server.leaving.is_none(),
        returning: server.leaving.is_none(),
        reset: server.leaving == Some(Leaving::Resetting),
        ..DestSpec::new(dest_id(number, index), world::server_address(service, index))
    };
    let face = &service.faces[0];
    let protocol = if service.has(Protocol::Tcp) { Protocol::Tcp } else { face.protocol };
    let address = match (service.is_marked, service.is_six) {
        (false, _) => world::virtual_address(service.is_six, face),
        // That of a mark itself is none.
        (true, false) => (Ipv4Addr::from(10 + number as u32), 0).into(),
        (true, true) => (Ipv6Addr::from(10 + number as u128), 0).into(),
    };
    ServiceSpec {
        ports: face.all_ports.clone().unwrap_or_default(),
        scheduler: service.scheduler,
        kept: if service.scheduler == Scheduler::Maglev { hashes::kept() } else { Default::default() },
        flags: service.flags.clone(),
        timeouts,
        live: face.live,
        sloppy: service.sloppy,
        one_packet: service.one_packet,
        persistence: service.persistence,
        helper: service.helper,
        sources: service
            .sources
            .as_ref()
            .map(|sources| Arc::new(Sources::new(sources.allow.as_deref(), &sources.deny))),
        quic: service.quic.iter().map(config).collect(),
        rosters: service.rosters.as_ref().map(|rosters| rosters_of(number, service, rosters)),
        limiter: Kept::default().limiter(service.limit.map(|limit| limit_of(limit, service.is_six)), [5, 7]),
        tunnel: TunnelSpec {
            encapsulation: service.tunnel.encapsulation,
            source: Some(ROUTER.into()),
            mss_clamp: service.tunnel.mss_clamp,
        },
        dests: service.servers.iter().enumerate().map(dest).collect(),
        part: service.is_marked.then_some(Part::Home),
        ..ServiceSpec::new(address, protocol, service.mode)
    }
}

fn config(&quic::Config { number, server_id, nonce, key }: &quic::Config) -> dataplane::quic::Config {
    dataplane::quic::Config { number, server_id, nonce, key }
}

fn dest_id(number: usize, server: usize) -> DestId {
    DestId::new((1 + number * SERVERS + server) as u32).expect("a small number")
}

fn rosters_of(
    number: usize,
    service: &Service,
    roster::Rosters { current, next }: &roster::Rosters,
) -> Rosters {
    let member = |&(server, weight): &(usize, u32)| RosterMember {
        address: world::server_address(service, server),
        weight,
        dest: Some(dest_id(number, server)),
    };
    let spec = |roster: &Roster| RosterSpec {
        scheduler: service.scheduler,
        key: FLOW_KEY,
        members: roster.iter().map(member).collect(),
    };
    let next = match next {
        None => NextRoster::Same,
        Some((Some(next), _)) => NextRoster::Other(spec(next)),
        Some((None, _)) => NextRoster::Nothing,
    };
    Rosters { current: spec(current), next }
}

/// All services, and behind them what those of marks have.
fn with_faces(ports: &Ports, services: &[Service], specs: &[ServiceSpec]) -> Vec<ServiceSpec> {
    let marked = services.iter().zip(specs).enumerate().filter(|(_, (service, _))| service.is_marked);
    let faces = marked.flat_map(|(number, (service, home))| {
        (1..).zip(&service.faces).map(move |(place, face)| {
            let id = |id: DestId| DestId::new((place * services.len() * SERVERS + id.index()) as u32);
            let dest = |dest: &DestSpec| DestSpec {
                id: id(dest.id).expect("a small number"),
                home: Some(dest.id),
                ..dest.clone()
            };
            let all_ports = face.all_ports.clone().unwrap_or_default();
            let incoming = |port| {
                let ports = if all_ports.is_empty() { vec![0..=u16::MAX] } else { all_ports.clone() };
                Incoming { by: [(port, ports)].into(), others: Vec::new() }
            };
            ServiceSpec {
                address: world::virtual_address(service.is_six, face),
                incoming: face.incoming.map(|port| incoming(ports.of(port))),
                ports: all_ports,
                protocol: face.protocol,
                live: face.live,
                part: Some(Part::Face(number as u32)),
                dests: home.dests.iter().map(dest).collect(),
                ..home.clone()
            }
        })
    });
    specs.iter().cloned().chain(faces).collect()
}

/// Those by full NAT share the local addresses of their family.
fn with_pools(services: &[Service], mut specs: Vec<ServiceSpec>) -> Vec<ServiceSpec> {
    for is_six in [false, true] {
        let of_pool = |service: &Service| service.mode == Mode::Fullnat && service.is_six == is_six;
        if !services.iter().any(of_pool) {
            continue;
        }
        let numbers = if is_six { 2.. } else { 0u16.. };
        let addresses = numbers.zip(world::local_addresses(is_six));
        let locals: Vec<Arc<LocalAddress>> = addresses
            .map(|(number, address)| Arc::new(LocalAddress::new(number, address).expect("there is room")))
            .collect();
        for (service, spec) in services.iter().zip(&mut specs).filter(|(service, _)| of_pool(service)) {
            let (locals, ports) = (locals.clone(), service.local_ports.clone());
            spec.pool = Some(Pool { locals, ports, proxy: service.proxy, is_rehearsal: false });
        }
    }
    specs
}

fn compile(generation: u64, ports: &Ports, services: &[Service], specs: &[ServiceSpec]) -> Snapshot {
    Snapshot::new(
        generation,
        ports.specs(),
        &with_faces(ports, services, specs),
        [],
        Fibs { four: four(ports, services), six: six(ports, services) },
    )
}

fn four(ports: &Ports, services: &[Service]) -> Fib<u32> {
    let (wan, lan) = (ports.of(WAN), ports.of(LAN));
    let route = |prefix: [u8; 4], length, via| Route { prefix: u32::from_be_bytes(prefix), length, via };
    let routes = [
        route([0, 0, 0, 0], 0, Via::Gateway(wan, GATEWAYS.0.into())),
        route([10, 0, 0, 0], 8, Via::OnLink(lan)),
        route(ROUTER.octets(), 32, Via::Own),
        route([10, 0, 0, 0xFC], 31, Via::Own),
        route(world::POOL[0].octets(), 31, Via::Own),
        route([203, 0, 113, 0], 24, Via::OnLink(wan)),
        route([203, 0, 113, 240], 28, Via::Nowhere),
    ];
    let near = (0..=255).map(|host| Ipv4Addr::new(203, 0, 113, host));
    let servers = (0..8).flat_map(|number| (0..=8).map(move |host| Ipv4Addr::new(10, 0, number, host)));
    Fib::new(routes, neighbours(ports, services, near, servers, GATEWAYS.0))
}

fn six(ports: &Ports, services: &[Service]) -> Fib<u128> {
    let (wan, lan) = (ports.of(WAN), ports.of(LAN));
    let route =
        |prefix: [u16; 8], length, via| Route { prefix: Ipv6Addr::from(prefix).to_bits(), length, via };
    let routes = [
        route([0; 8], 0, Via::Gateway(wan, GATEWAYS.1.into())),
        route([0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0], 48, Via::OnLink(lan)),
        route(ROUTER_SIX.segments(), 128, Via::Own),
        route([0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0xFC], 127, Via::Own),
        route([0x2001, 0xdb8, 0xd, 0, 0, 0, 0, 0], 64, Via::OnLink(wan)),
        route([0x2001, 0xdb8, 0xd, 0, 0, 0, 0, 0xF0], 124, Via::Nowhere),
    ];
    let near = (0..=255).map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, host));
    let servers = (0..8)
        .flat_map(|number| (0..=8).map(move |host| Ipv6Addr::new(0x2001, 0xdb8, 0xa, number, 0, 0, 0, host)));
    // Of tunnels over IPv6 no source is configured: it is this one.
    Fib::new(routes, neighbours(ports, services, near, servers, GATEWAYS.1)).with_own([(
        lan,
        ROUTER_SIX.to_bits(),
        48,
    )])
}

/// Those of [`world::way`] that are known, and the gateway.
fn neighbours<S: Into<IpAddr> + Copy, A: Address>(
    ports: &Ports,
    services: &[Service],
    near: impl Iterator<Item = S>,
    servers: impl Iterator<Item = S>,
    gateway: S,
) -> Vec<((u16, A), Adjacency)> {
    let all = near.map(|host| (WAN, host)).chain(servers.map(|host| (LAN, host))).chain([(WAN, gateway)]);
    all.filter_map(|(on, host)| {
        let Way::Out { port, mac, mtu } = world::way(services, host.into()) else { return None };
        assert_eq!(on, port);
        let adjacency = Adjacency::new(ports.of(port), mtu as u16, mac, MACS[usize::from(port)]);
        Some(((ports.of(port), A::of(host.into())?), adjacency))
    })
    .collect()
}
