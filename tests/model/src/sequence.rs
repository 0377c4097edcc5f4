//! Random sequences: few clients and few services, so that packets meet, and every step small and readable, so that a sequence which shows a
//! difference shrinks to one that a person understands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane::service::{Mode, Persistence, Protocol, Scheduler, SchedulerFlag};
use dataplane::snapshot::MssClamp;
use dataplane::snat::SnatTimeouts;
use dataplane::wire::tunnel::Encapsulation;
use proptest::prelude::*;
use proptest::sample::select;

use crate::packet::{self, ACK, FIN, RST, SYN};
use crate::passing::{Passing, passing};
use crate::sctp;
use crate::world::{self, LAN, Leaving, Limit, MACS, SERVERS, Server, Service, Snat, Sources, Tunnel, WAN};

/// A sequence: services, and what happens.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Whether what concerns no service is routed by the workers.
    pub routing: bool,
    /// How hosts inside leave, if not by Linux.
    pub snat: Option<Snat>,
    /// The services at its beginning.
    pub services: Vec<Service>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A packet comes.
    Packet(Sent),
    /// An ICMP error comes.
    Error(Error),
    /// A packet of no service's comes.
    Passing(Passing),
    /// So many ticks of a quarter of a second pass.
    Wait(u64),
    /// Workers have looked through the whole table.
    Sweep,
    /// A server's checks fail, or pass again.
    Toggle(Which),
    /// A server is removed from the configuration, or comes back.
    Remove(Which, Option<Leaving>),
    /// A server's MAC is forgotten, or found.
    Neighbour(Which),
    /// A server gets another weight.
    Weight(Which, u32),
    /// The virtual address goes to another router, or comes back.
    Move(usize),
}

/// The numbers of a service and of one of its servers, modulo how many there are.
pub type Which = (usize, usize);

/// The number of whatever server a connection has.
pub const ITS: usize = 99;

/// A packet between a client and a service.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The number of the service, modulo how many there are.
    pub service: usize,
    /// That of the client, see [`world`].
    pub client: u8,
    /// Its port.
    pub client_port: u16,
    /// That of the service, if it is of all ports.
    pub virtual_port: u16,
    /// From the real server with this number, and not to the virtual address; with [`ITS`] from that which the client's connection has, if there is one and
    /// its answers come by here.
    pub from: Option<usize>,
    /// Of TCP.
    pub flags: u8,
    /// Bytes behind the header of TCP or UDP.
    pub payload: usize,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// What is unusual about it.
    pub odd: Option<Odd>,
}

/// What is unusual about a packet.
#[derive(Clone, Debug)]
pub enum Odd {
    /// IPv4: options; IPv6: an extension header.
    Options,
    /// IPv4 without "don't fragment".
    MayFragment,
    /// Of this class and ECN.
    Class(u8),
    /// TCP with this maximum segment size.
    Mss(u16),
    /// UDP without checksum.
    NoChecksum,
    /// Only so many bytes of the frame come.
    Truncated(usize),
    /// Of the byte at this place (modulo the frame's length) these bits are flipped, and the IPv4 header's checksum is that of what came out, or not.
    Flipped(usize, u8, bool),
    /// Bytes behind the packet.
    Longer(usize),
    /// It is for this MAC.
    To([u8; 6]),
    /// It is of this EtherType.
    EtherType(u16),
    /// It comes in on the other port.
    WrongPort,
    /// Its sender is this one.
    Martian(u8),
    /// To another port of the virtual address, or from another one of the server.
    OtherPort,
    /// From a real server to the router itself.
    ToRouter,
    /// To a real server's own address, at another port.
    ToServer,
    /// A packet of this protocol.
    OtherProtocol(u8),
    /// A fragment, of the datagram with this identification the part with this number: 0, 1 or 2.
    Part(u8, u8),
}

/// An ICMP error about a packet between a client and a service.
#[derive(Clone, Debug)]
pub struct Error {
    /// The packet: one from a server is quoted with the virtual address, as the client's side sees it, and one to the service with the real
    /// server's, which `server` tells.
    pub about: Sent,
    /// The server that a request went to, or [`ITS`].
    pub server: usize,
    /// Type and code.
    pub kind: (u8, u8),
    /// Whether a router says it that is on the way, or the host at its end.
    pub by_router: bool,
    /// Bytes of the segment that are quoted.
    pub quoted: usize,
    /// Its own time to live.
    pub hops: u8,
    /// Bits of the message that are flipped: in the byte at this place, modulo its length, and whether the checksum is that of what came out.
    pub flipped: Option<(usize, u8, bool)>,
    /// It goes to somebody else.
    pub is_astray: bool,
}

/// Bytes of the payload of a datagram in fragments, and of each of these but the last.
const PARTED: usize = 45;
const PART: usize = 24;

/// Any sequence.
pub fn sequences() -> impl Strategy<Value = Sequence> {
    let services = prop::collection::vec((service(), any::<bool>()), 1..=3).prop_map(placed);
    let snat = prop::option::weighted(0.3, snat());
    (prop::bool::weighted(0.3), snat, services, prop::collection::vec(step(), 1..=24)).prop_map(
        |(routing, snat, services, mut steps)| {
            if snat.is_some() {
                steps.iter_mut().for_each(without_fragments);
            }
            Sequence { routing, snat, services, steps }
        },
    )
}

/// Fragments of what source NAT has to do with, the model does not know.
fn without_fragments(step: &mut Step) {
    let Step::Packet(sent) = step else { return };
    sent.odd = match sent.odd.take() {
        Some(Odd::Part(..)) => None,
        // None of those that would make a fragment of it.
        Some(Odd::Flipped(at, bits, is_summed)) => Some(Odd::Flipped(at % 20, bits, is_summed)),
        other => other,
    };
}

fn snat() -> impl Strategy<Value = Snat> {
    let timeouts = SnatTimeouts { udp: 17, established: 125, transitory: 10, icmp: 4 };
    select(vec![(2000..=2127u16, 16, 64), (2000..=2007, 4, 4), (2000..=2003, 2, 4)])
        .prop_map(move |(ports, block, limit)| Snat { ports, block, limit, timeouts })
}

/// Each service has addresses of its own, or if it wants to and they are free, those of the one before it.
fn placed(wishes: Vec<(Service, bool)>) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for (mut service, shares) in wishes {
        let is_taken = |service: &Service| {
            let key = |one: &Service| (world::virtual_address(one), one.protocol);
            services.iter().any(|other| key(other) == key(service))
        };
        service.place = services.last().map_or(0, |last| last.place);
        if !shares || is_taken(&service) {
            service.place = services.len();
        }
        services.push(service);
    }
    services
}

fn service() -> impl Strategy<Value = Service> {
    let scheduler = select(vec![
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Lc,
        Scheduler::Wlc,
        Scheduler::Sed,
        Scheduler::Nq,
        Scheduler::Sh,
        Scheduler::Dh,
        Scheduler::Fo,
        Scheduler::Ovf,
        Scheduler::Twos,
        Scheduler::Mh,
        Scheduler::Rendezvous,
        Scheduler::P2c,
    ]);
    let kind = (
        prop::bool::weighted(0.3),
        prop_oneof![6 => Just(Protocol::Tcp), 3 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)],
        prop_oneof![6 => Just(Mode::Nat), 3 => Just(Mode::Dr), 2 => Just(Mode::Tunnel), 3 => Just(Mode::Fullnat)],
        scheduler,
        any::<(bool, bool)>(),
    );
    let timeout = prop_oneof![4 => Just(900u32), 1 => Just(3), 1 => Just(17), 1 => Just(100_000)];
    let servers = prop::collection::vec(server(), 1..=SERVERS);
    let prefixes = select(vec![[32, 128], [28, 112], [16, 48]]);
    let persistence = (select(vec![20u32, 300]), prefixes, any::<bool>());
    let persistence = prop::option::weighted(0.25, persistence);
    let special = (prop::bool::weighted(0.15), prop::bool::weighted(0.15), persistence);
    let local_ports = select(vec![1024..=1024u16, 1024..=1025, 1024..=65_535]);
    let all_ports = prop::option::weighted(0.25, select(vec![vec![], vec![80..=80, 443..=9000]]));
    let ways = (
        all_ports,
        tunnel(),
        local_ports,
        prop::option::weighted(0.15, sources()),
        prop::option::weighted(0.1, limit()),
    );
    (kind, timeout, special, ways, servers).prop_map(|(kind, timeout, special, ways, mut servers)| {
        let (all_ports, tunnel, local_ports, sources, limit) = ways;
        let (sloppy, one_packet, persistence) = special;
        let (is_six, protocol, mode, scheduler, flags) = kind;
        // Whom a client without a local port, or with enough connections, would have come back to, nobody can see, nor whether it would have been refused.
        let is_tight =
            mode == Mode::Fullnat && local_ports.len() <= 2 || matches!(limit, Some(Limit::Open(_)));
        let persistence = persistence.filter(|_| !is_tight);
        let scheduler =
            if is_tight && scheduler == Scheduler::Mh { Scheduler::Rendezvous } else { scheduler };
        let one_packet =
            one_packet && protocol == Protocol::Udp && persistence.is_none() && mode != Mode::Fullnat;
        let one_packet = one_packet && (mode != Mode::Nat || all_ports.is_none());
        servers.iter_mut().for_each(|server| server.is_across &= mode == Mode::Tunnel);
        let all = match scheduler {
            Scheduler::Sh => [SchedulerFlag::ShFallback, SchedulerFlag::ShPort],
            _ => [SchedulerFlag::MhFallback, SchedulerFlag::MhPort],
        };
        let flags = all.into_iter().zip([flags.0, flags.1]).filter(|&(_, is_set)| is_set);
        let has_flags = matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
        Service {
            is_six,
            place: 0,
            protocol,
            all_ports,
            mode,
            scheduler,
            flags: flags.map(|(flag, _)| flag).filter(|_| has_flags).collect(),
            timeout,
            sloppy,
            one_packet,
            persistence: persistence.map(|(seconds, [four, six], expire_quiescent)| Persistence {
                seconds,
                prefix: if is_six { six } else { four },
                expire_quiescent,
            }),
            tunnel,
            local_ports,
            sources,
            limit,
            live: true,
            servers,
        }
    })
}

/// Some of them have clients 1 and 2 of both families.
fn sources() -> impl Strategy<Value = Sources> {
    let prefix = select(vec![
        ("198.51.100.0", 24),
        ("198.51.100.1", 32),
        ("198.51.100.2", 31),
        ("0.0.0.0", 0),
        ("2001:db8:c::", 64),
        ("2001:db8:c::1", 128),
        ("::", 0),
    ]);
    let prefix = prefix.prop_map(|(address, length)| (address.parse().expect("an address"), length));
    let allow = prop::option::of(prop::collection::vec(prefix.clone(), 0..3));
    (allow, prop::collection::vec(prefix, 0..3)).prop_map(|(allow, deny)| Sources { allow, deny })
}

fn limit() -> impl Strategy<Value = Limit> {
    let rate = (select(vec![1u32, 3, 8]), select(vec![1u32, 2, 5]), any::<bool>());
    prop_oneof![
        2 => rate.prop_map(|(rate, burst, of_source)| Limit::Rate { rate, burst, of_source }),
        1 => (1..3u32).prop_map(Limit::Open),
    ]
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    let checksum = any::<bool>();
    let encapsulation = prop_oneof![
        Just(Encapsulation::Ipip),
        checksum.prop_map(|checksum| Encapsulation::Gre { checksum }),
        checksum.prop_map(|checksum| Encapsulation::Gue { port: 6080, checksum }),
    ];
    let clamp = select(vec![None, Some(MssClamp::Fit), Some(MssClamp::To(500))]);
    (encapsulation, clamp).prop_map(|(encapsulation, mss_clamp)| Tunnel { encapsulation, mss_clamp })
}

fn server() -> impl Strategy<Value = Server> {
    let weight = prop_oneof![4 => 1u32..=4, 1 => Just(0)];
    let limits = prop::option::weighted(0.15, prop_oneof![Just((2u32, 2u32)), Just((3, 2)), Just((1, 1))]);
    let (is_up, is_known, is_across) =
        (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.3));
    (weight, is_up, is_known, is_across, limits).prop_map(|(weight, up, is_known, is_across, limits)| {
        Server { weight, up, leaving: None, is_across, is_known, limits }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let ticks = select(vec![1u64, 1, 3, 4, 5, 8, 12, 17, 41, 70, 240, 250, 500, 3605, 500_000]);
    let which = (0..3usize, 0..SERVERS);
    prop_oneof![
        24 => sent().prop_map(Step::Packet),
        3 => error().prop_map(Step::Error),
        8 => passing().prop_map(Step::Passing),
        3 => ticks.prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => which.clone().prop_map(Step::Toggle),
        1 => which.clone().prop_map(Step::Neighbour),
        1 => (which.clone(), select(vec![None, Some(Leaving::Draining), Some(Leaving::Resetting)]))
            .prop_map(|(which, leaving)| Step::Remove(which, leaving)),
        1 => (which, 0..5u32).prop_map(|(which, weight)| Step::Weight(which, weight)),
        1 => (0..3usize).prop_map(Step::Move),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let client = prop_oneof![6 => Just(1u8), 2 => Just(2), 2 => Just(9), 1 => 0..16u8];
    let from = prop_oneof![6 => Just(None), 4 => Just(Some(ITS)), 1 => (0..SERVERS).prop_map(Some)];
    let flags = prop_oneof![
        6 => Just(SYN),
        4 => Just(ACK),
        2 => Just(SYN | ACK),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![6 => 0..20usize, 1 => 0..300usize, 1 => 1200..1480usize];
    let hops = prop_oneof![8 => Just(64u8), 1 => Just(255), 1 => 0..3u8];
    let odd = prop::option::weighted(0.2, odd());
    (
        0..3usize,
        client,
        prop_oneof![8 => Just(40_000u16), 2 => Just(40_001), 1 => Just(20)],
        prop_oneof![6 => Just(443u16), 3 => Just(8080), 1 => select(vec![20u16, 53, 80, 81, 8053])],
        from,
        flags,
        payload,
        hops,
        odd,
    )
        .prop_map(|(service, client, client_port, virtual_port, from, flags, payload, hops, odd)| Sent {
            service,
            client,
            client_port,
            virtual_port,
            from,
            flags,
            payload,
            hops,
            odd,
        })
}

fn error() -> impl Strategy<Value = Error> {
    let kind = prop_oneof![
        6 => select(vec![(3u8, 3u8), (3, 4), (11, 0), (12, 0), (1, 4), (2, 0), (3, 0), (4, 0)]),
        1 => select(vec![(5, 1), (8, 0), (0, 0), (128, 0), (135, 0), (136, 0), (137, 0), (100, 0)]),
    ];
    let quoted = prop_oneof![2 => Just(8usize), 2 => Just(1500), 1 => 0..30usize];
    let flipped = prop::option::weighted(0.15, (0..60usize, 1..=255u8, any::<bool>()));
    let hops = prop_oneof![8 => Just(64u8), 1 => Just(255), 1 => 0..3u8];
    (
        sent(),
        prop_oneof![4 => Just(ITS), 1 => 0..SERVERS],
        kind,
        any::<bool>(),
        quoted,
        hops,
        flipped,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(about, server, kind, by_router, quoted, hops, flipped, is_astray)| Error {
            about,
            server,
            kind,
            by_router,
            quoted,
            hops,
            flipped,
            is_astray,
        })
}

fn odd() -> impl Strategy<Value = Odd> {
    let mac = select(vec![[2, 0, 0, 0, 0, 3], [0xFF; 6], [1, 0, 0x5E, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]);
    prop_oneof![
        3 => Just(Odd::Options),
        2 => Just(Odd::MayFragment),
        3 => Just(Odd::NoChecksum),
        1 => any::<u8>().prop_map(Odd::Class),
        2 => select(vec![400, 500, 536, 1300, 1460]).prop_map(Odd::Mss),
        3 => (0..80usize).prop_map(Odd::Truncated),
        6 => (0..90usize, 1..=255u8, any::<bool>()).prop_map(|(at, bits, is_summed)| Odd::Flipped(at, bits, is_summed)),
        1 => (0..20usize).prop_map(Odd::Longer),
        1 => mac.prop_map(Odd::To),
        1 => select(vec![0x8100, 0x88A8, 0x0806, 0x0800, 0x86DD, 0x88CC]).prop_map(Odd::EtherType),
        1 => Just(Odd::WrongPort),
        2 => (0..12u8).prop_map(Odd::Martian),
        1 => Just(Odd::OtherPort),
        1 => Just(Odd::ToRouter),
        1 => Just(Odd::ToServer),
        1 => select(vec![1, 2, 6, 17, 47, 50, 58, 33]).prop_map(Odd::OtherProtocol),
        24 => (prop_oneof![6 => Just(1u8), 1 => Just(2)], 0..3u8).prop_map(|(id, part)| Odd::Part(id, part)),
    ]
}

impl Sent {
    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        services: &[Service],
        known: impl Fn(usize, (SocketAddr, u16)) -> Option<Known>,
    ) -> (u16, Vec<u8>) {
        let number = self.service % services.len();
        let service = &services[number];
        let client = self.client(service);
        let virtual_address = world::virtual_at(service, self.virtual_port);
        let known = known(number, (client, virtual_address.port()));
        let from = self.from.filter(|&from| from != ITS || !service.mode.is_one_way());
        let from = from.map(|from| its_or(from, known) % service.servers.len());
        let (mut source, mut destination) = match from {
            Some(server) => (world::host_at(service, server, self.virtual_port), far(service, client, known)),
            None => (client, virtual_address),
        };
        if matches!(self.odd, Some(Odd::OtherPort)) {
            let end = if from.is_some() { &mut source } else { &mut destination };
            end.set_port(81);
        }
        if matches!(self.odd, Some(Odd::ToRouter)) && from.is_some() {
            let router = if service.is_six { world::ROUTER_SIX.into() } else { world::ROUTER.into() };
            destination.set_ip(router);
        }
        if matches!(self.odd, Some(Odd::ToServer)) && from.is_none() {
            destination = (world::host_at(service, 0, 22).ip(), 22).into();
        }
        if let Some(Odd::Martian(which)) = self.odd {
            source.set_ip(martian(which, service.is_six));
        }
        let ip = self.packet(source, destination, service.protocol);
        self.framed(if from.is_some() { LAN } else { WAN }, service.is_six, ip)
    }

    /// A packet in a frame that comes in on a port, and what is unusual about that.
    pub(crate) fn framed(&self, port: u16, is_six: bool, mut ip: Vec<u8>) -> (u16, Vec<u8>) {
        let port = if matches!(self.odd, Some(Odd::WrongPort)) { 1 - port } else { port };
        let mut to = MACS[usize::from(port)];
        let mut ether_type = if is_six { 0x86DD } else { 0x0800u16 };
        match self.odd {
            Some(Odd::To(mac)) => to = mac,
            Some(Odd::EtherType(other)) => ether_type = other,
            Some(Odd::Longer(more)) => ip.resize(ip.len() + more, 0xEE),
            _ => {}
        }
        let mut frame = [&to[..], &[2, 0, 0, 0, 9, 9], &ether_type.to_be_bytes(), &ip].concat();
        match self.odd {
            Some(Odd::Truncated(length)) => frame.truncate(length),
            Some(Odd::Flipped(at, bits, is_summed)) => {
                let at = at % frame.len();
                frame[at] ^= bits;
                if is_summed && !is_six {
                    sum_header(&mut frame[14..]);
                }
            }
            _ => {}
        }
        (port, frame)
    }

    fn client(&self, service: &Service) -> SocketAddr {
        SocketAddr::new(world::client_address(service.is_six, self.client), self.client_port)
    }

    /// From the IP header on.
    fn packet(&self, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Vec<u8> {
        let number = match self.odd {
            Some(Odd::OtherProtocol(number)) => number,
            _ => protocol.number(),
        };
        let segment = self.segment(source, destination, protocol);
        match source.ip() {
            IpAddr::V4(_) => self.four(source.ip(), destination.ip(), number, &segment),
            IpAddr::V6(_) => self.six(source.ip(), destination.ip(), number, &segment),
        }
    }

    pub(crate) fn segment(&self, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Vec<u8> {
        let payload = if matches!(self.odd, Some(Odd::Part(..))) { PARTED } else { self.payload };
        let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        match protocol {
            Protocol::Tcp => {
                segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags, 0xFF, 0xFF, 0, 0, 0, 0])
            }
            // The chunk's type is by the flags, its length that of all that follows.
            Protocol::Sctp => {
                let types = [1, 10, 11, 7, 8, 14, 0, 3, 2, 6, 9];
                segment.extend([0, 0, 0, 1, 0, 0, 0, 0, types[usize::from(self.flags) % types.len()], 0]);
                segment.extend((4 + payload as u16).to_be_bytes());
            }
            Protocol::Udp => segment.extend([((8 + payload) >> 8) as u8, (8 + payload) as u8, 0, 0]),
        }
        segment.extend((0..payload).map(|byte| byte as u8));
        if protocol == Protocol::Sctp {
            let checksum = sctp::checksum(&segment);
            segment[8..12].copy_from_slice(&checksum);
            return segment;
        }
        let number = protocol.number();
        let at = packet::checksum_at(number);
        let sum = packet::sum_with_pseudo_header(source.ip(), destination.ip(), number, &segment);
        let checksum = match (&self.odd, protocol) {
            (Some(Odd::NoChecksum), Protocol::Udp) => 0,
            (_, Protocol::Udp) if sum == 0xFFFF => 0xFFFF,
            _ => !sum,
        };
        segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        segment
    }

    /// What a packet carries of a segment, and identification, offset in bytes and "more" if that is not all.
    fn part<'a>(&self, segment: &'a [u8]) -> (&'a [u8], Option<(u8, u16, bool)>) {
        let Some(Odd::Part(id, part)) = self.odd else { return (segment, None) };
        let begin = usize::from(part) * PART;
        let end = if part == 2 { segment.len() } else { begin + PART };
        (&segment[begin..end], Some((id, begin as u16, part < 2)))
    }

    pub(crate) fn four(&self, source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
        let (segment, place) = self.part(segment);
        let options: &[u8] = if matches!(self.odd, Some(Odd::Options)) { &[1, 1, 1, 0] } else { &[] };
        let length = (20 + options.len() + segment.len()) as u16;
        let may_fragment = matches!(self.odd, Some(Odd::MayFragment | Odd::Part(..)));
        let whole = if may_fragment { 0 } else { 0x4000 };
        let id = place.map_or(0x1234, |(id, ..)| u16::from(id));
        let place = place.map_or(0, |(_, offset, more)| (offset / 8) | (u16::from(more) << 13));
        let class = if let Some(Odd::Class(class)) = self.odd { class } else { 0 };
        let mut ip = vec![0x45 + options.len() as u8 / 4, class];
        ip.extend(length.to_be_bytes());
        ip.extend(id.to_be_bytes());
        ip.extend((whole | place).to_be_bytes());
        ip.extend([self.hops, protocol, 0, 0]);
        for address in [source, destination] {
            if let IpAddr::V4(address) = address {
                ip.extend(address.octets());
            }
        }
        ip.extend(options);
        ip.extend(segment);
        sum_header(&mut ip);
        ip
    }

    fn six(&self, source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
        let (segment, place) = self.part(segment);
        let (next, extension) = match (&self.odd, place) {
            (Some(Odd::Options), _) => (60, vec![protocol, 0, 1, 4, 0, 0, 0, 0]),
            (_, Some((id, offset, more))) => {
                let [high, low] = (offset | u16::from(more)).to_be_bytes();
                (44, vec![protocol, 0, high, low, 0, 0, 0, id])
            }
            _ => (protocol, Vec::new()),
        };
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(((extension.len() + segment.len()) as u16).to_be_bytes());
        ip.extend([next, self.hops]);
        for address in [source, destination] {
            if let IpAddr::V6(address) = address {
                ip.extend(address.octets());
            }
        }
        ip.extend(extension);
        ip.extend(segment);
        ip
    }
}

impl Error {
    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        services: &[Service],
        known: impl Fn(usize, (SocketAddr, u16)) -> Option<Known>,
    ) -> (u16, Vec<u8>) {
        let number = self.about.service % services.len();
        let service = &services[number];
        let (client, port) = (self.about.client(service), self.about.virtual_port);
        let virtual_address = world::virtual_at(service, port);
        let known = known(number, (client, virtual_address.port()));
        let server = its_or(self.server, known) % service.servers.len();
        let is_reply = self.about.from.is_some_and(|from| from != ITS || !service.mode.is_one_way());
        let (source, destination) = match is_reply {
            true => (virtual_address, client),
            false => (far(service, client, known), world::host_at(service, server, port)),
        };
        let quote = self.about.packet(source, destination, service.protocol);
        let quoted =
            packet::parse_start(&quote, service.is_six).map_or(quote.len(), |packet| packet.at) + self.quoted;
        let quote = &quote[..quoted.min(quote.len())];
        let router = match (service.is_six, is_reply) {
            (false, true) => Ipv4Addr::new(198, 51, 100, 200).into(),
            (false, false) => Ipv4Addr::new(10, 9, 9, 9).into(),
            (true, true) => "2001:db8:c::200".parse().expect("an address"),
            (true, false) => "2001:db8:a:9::9".parse().expect("an address"),
        };
        let from = if self.by_router { router } else { destination.ip() };
        let to = if self.is_astray { world::client_address(service.is_six, 5) } else { source.ip() };
        let mut message = vec![self.kind.0, self.kind.1, 0, 0, 0, 0, 5, 0];
        message.extend(quote);
        let sum = |message: &mut [u8]| {
            message[2..4].fill(0);
            let sum = match service.is_six {
                false => packet::sum(message),
                true => packet::sum_with_pseudo_header(from, to, packet::ICMPV6, message),
            };
            message[2..4].copy_from_slice(&(!sum).to_be_bytes());
        };
        sum(&mut message);
        if let Some((at, bits, is_summed)) = self.flipped {
            let at = at % message.len();
            message[at] ^= bits;
            if is_summed {
                sum(&mut message);
            }
        }
        let carrier = Sent { odd: None, hops: self.hops, ..self.about.clone() };
        let ip = match service.is_six {
            false => carrier.four(from, to, packet::ICMP, &message),
            true => carrier.six(from, to, packet::ICMPV6, &message),
        };
        let port = if is_reply { WAN } else { LAN };
        let ether_type = if service.is_six { 0x86DD } else { 0x0800u16 };
        let frame =
            [&MACS[usize::from(port)][..], &[2, 0, 0, 0, 9, 9], &ether_type.to_be_bytes(), &ip].concat();
        (port, frame)
    }
}

/// What is known of a client's connection with a service, for packets that belong to it.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub server: usize,
    /// As whom the server knows the client, by full NAT.
    pub local: Option<SocketAddr>,
}

/// The number of a server, for [`ITS`] that of the connection.
fn its_or(server: usize, known: Option<Known>) -> usize {
    if server == ITS { known.map_or(0, |known| known.server) } else { server }
}

/// Whom a server answers to. Without a connection by full NAT that is somebody else, or nobody.
fn far(service: &Service, client: SocketAddr, known: Option<Known>) -> SocketAddr {
    if service.mode != Mode::Fullnat {
        return client;
    }
    let [local, _] = world::local_addresses(service.is_six);
    known.and_then(|known| known.local).unwrap_or((local, *service.local_ports.start()).into())
}

/// An address that no client has, or hardly one.
fn martian(which: u8, is_six: bool) -> IpAddr {
    if is_six {
        let addresses: [u128; 6] =
            [0, 1, 0xFE80 << 112 | 1, 0xFF02 << 112 | 1, 0x2001_0db8 << 96 | 0x10, 0x2001_0db8 << 96 | 0x11];
        Ipv6Addr::from(addresses[usize::from(which) % addresses.len()]).into()
    } else {
        let addresses = [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [239, 1, 1, 1],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
            [192, 0, 2, 10],
            [192, 0, 2, 11],
            [10, 0, 0, 1],
        ];
        Ipv4Addr::from(addresses[usize::from(which) % addresses.len()]).into()
    }
}

/// Writes the checksum of an IPv4 header, as far as there is one.
fn sum_header(ip: &mut [u8]) {
    let header = usize::from(ip.first().map_or(0, |first| first & 15)) * 4;
    if header >= 20 && ip.len() >= header {
        ip[10..12].fill(0);
        let sum = !packet::sum(&ip[..header]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
