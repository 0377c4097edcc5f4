//! Random sequences: few clients and few services, so that packets meet, and every step small and readable, so that a sequence which shows a
//! difference shrinks to one that a person understands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane::service::{Mode, Protocol, Scheduler, SchedulerFlag};
use proptest::prelude::*;
use proptest::sample::select;

use crate::packet::{self, ACK, FIN, RST, SYN};
use crate::world::{self, LAN, MACS, SERVERS, Server, Service, WAN};

/// A sequence: services, and what happens.
#[derive(Clone, Debug)]
pub struct Sequence {
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
    /// So many ticks of a quarter of a second pass.
    Wait(u64),
    /// Workers have looked through the whole table.
    Sweep,
    /// A server's checks fail, or pass again.
    Toggle(Which),
    /// A server's MAC is forgotten, or found.
    Neighbour(Which),
    /// A server gets another weight.
    Weight(Which, u32),
    /// The virtual address goes to another router, or comes back.
    Move(usize),
}

/// The numbers of a service and of one of its servers, modulo how many there are.
pub type Which = (usize, usize);

/// A packet between a client and a service.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The number of the service, modulo how many there are.
    pub service: usize,
    /// That of the client, see [`world`].
    pub client: u8,
    /// Its port.
    pub client_port: u16,
    /// From the real server with this number, and not to the virtual address.
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
    /// To another port of the virtual address.
    OtherPort,
    /// A packet of this protocol.
    OtherProtocol(u8),
}

/// Any sequence.
pub fn sequences() -> impl Strategy<Value = Sequence> {
    let services = prop::collection::vec(service(), 1..=3);
    (services, prop::collection::vec(step(), 1..=24))
        .prop_map(|(services, steps)| Sequence { services, steps })
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
        prop::bool::weighted(0.7),
        prop_oneof![3 => Just(Mode::Nat), 2 => Just(Mode::Dr)],
        scheduler,
        any::<(bool, bool)>(),
    );
    let timeout = prop_oneof![4 => Just(900u32), 1 => Just(3), 1 => Just(17), 1 => Just(100_000)];
    let servers = prop::collection::vec(server(), 1..=SERVERS);
    (kind, timeout, prop::bool::weighted(0.15), servers).prop_map(|(kind, timeout, sloppy_tcp, servers)| {
        let (is_six, is_tcp, mode, scheduler, flags) = kind;
        let all = match scheduler {
            Scheduler::Sh => [SchedulerFlag::ShFallback, SchedulerFlag::ShPort],
            _ => [SchedulerFlag::MhFallback, SchedulerFlag::MhPort],
        };
        let flags = all.into_iter().zip([flags.0, flags.1]).filter(|&(_, is_set)| is_set);
        let has_flags = matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
        Service {
            is_six,
            protocol: if is_tcp { Protocol::Tcp } else { Protocol::Udp },
            mode,
            scheduler,
            flags: flags.map(|(flag, _)| flag).filter(|_| has_flags).collect(),
            timeout,
            sloppy_tcp,
            one_packet: false,
            live: true,
            servers,
        }
    })
}

fn server() -> impl Strategy<Value = Server> {
    let weight = prop_oneof![4 => 1u32..=4, 1 => Just(0)];
    let limits = prop::option::weighted(0.15, prop_oneof![Just((2u32, 2u32)), Just((3, 2)), Just((1, 1))]);
    (weight, prop::bool::weighted(0.9), prop::bool::weighted(0.9), limits)
        .prop_map(|(weight, up, is_known, limits)| Server { weight, up, is_known, limits })
}

fn step() -> impl Strategy<Value = Step> {
    let ticks = select(vec![1u64, 1, 3, 4, 5, 8, 12, 17, 41, 70, 240, 250, 500, 3605, 500_000]);
    let which = (0..3usize, 0..SERVERS);
    prop_oneof![
        24 => sent().prop_map(Step::Packet),
        3 => ticks.prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => which.clone().prop_map(Step::Toggle),
        1 => which.clone().prop_map(Step::Neighbour),
        1 => (which, 0..5u32).prop_map(|(which, weight)| Step::Weight(which, weight)),
        1 => (0..3usize).prop_map(Step::Move),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let client = prop_oneof![6 => Just(1u8), 2 => Just(2), 2 => Just(9), 1 => 0..16u8];
    let from = prop::option::weighted(0.4, 0..SERVERS);
    let flags = prop_oneof![
        4 => Just(SYN),
        4 => Just(ACK),
        2 => Just(SYN | ACK),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![6 => 0..20usize, 1 => 0..300usize, 1 => 1200..1480usize];
    let hops = prop_oneof![8 => Just(64u8), 1 => Just(255), 1 => 0..3u8];
    let odd = prop::option::weighted(0.15, odd());
    (
        0..3usize,
        client,
        prop_oneof![8 => Just(40_000u16), 2 => Just(40_001), 1 => Just(20)],
        from,
        flags,
        payload,
        hops,
        odd,
    )
        .prop_map(|(service, client, client_port, from, flags, payload, hops, odd)| Sent {
            service,
            client,
            client_port,
            from,
            flags,
            payload,
            hops,
            odd,
        })
}

fn odd() -> impl Strategy<Value = Odd> {
    let mac = select(vec![[2, 0, 0, 0, 0, 3], [0xFF; 6], [1, 0, 0x5E, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]);
    prop_oneof![
        3 => Just(Odd::Options),
        2 => Just(Odd::MayFragment),
        3 => Just(Odd::NoChecksum),
        3 => (0..80usize).prop_map(Odd::Truncated),
        6 => (0..90usize, 1..=255u8, any::<bool>()).prop_map(|(at, bits, is_summed)| Odd::Flipped(at, bits, is_summed)),
        1 => (0..20usize).prop_map(Odd::Longer),
        1 => mac.prop_map(Odd::To),
        1 => select(vec![0x8100, 0x88A8, 0x0806, 0x0800, 0x86DD, 0x88CC]).prop_map(Odd::EtherType),
        1 => Just(Odd::WrongPort),
        2 => (0..12u8).prop_map(Odd::Martian),
        1 => Just(Odd::OtherPort),
        1 => select(vec![1, 2, 6, 17, 47, 50, 58, 132]).prop_map(Odd::OtherProtocol),
    ]
}

impl Sent {
    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(&self, services: &[Service]) -> (u16, Vec<u8>) {
        let number = self.service % services.len();
        let service = &services[number];
        let client = SocketAddr::new(world::client_address(service.is_six, self.client), self.client_port);
        let mut virtual_address = world::virtual_address(number, service);
        if matches!(self.odd, Some(Odd::OtherPort)) {
            virtual_address.set_port(81);
        }
        let (mut source, destination) = match self.from {
            Some(server) => (world::server_address(number, service, server % service.servers.len()), client),
            None => (client, virtual_address),
        };
        if let Some(Odd::Martian(which)) = self.odd {
            source.set_ip(martian(which, service.is_six));
        }
        let protocol = match self.odd {
            Some(Odd::OtherProtocol(protocol)) => protocol,
            _ => service.protocol.number(),
        };
        let segment = self.segment(source, destination, service.protocol);
        let mut ip = match service.is_six {
            false => self.four(source.ip(), destination.ip(), protocol, &segment),
            true => self.six(source.ip(), destination.ip(), protocol, &segment),
        };
        let port = if self.from.is_some() { LAN } else { WAN };
        let port = if matches!(self.odd, Some(Odd::WrongPort)) { 1 - port } else { port };
        let mut to = MACS[usize::from(port)];
        let mut ether_type = if service.is_six { 0x86DD } else { 0x0800u16 };
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
                if is_summed && !service.is_six {
                    sum_header(&mut frame[14..]);
                }
            }
            _ => {}
        }
        (port, frame)
    }

    fn segment(&self, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Vec<u8> {
        let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        match protocol {
            Protocol::Tcp => {
                segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags, 0xFF, 0xFF, 0, 0, 0, 0])
            }
            Protocol::Udp => {
                segment.extend([((8 + self.payload) >> 8) as u8, (8 + self.payload) as u8, 0, 0])
            }
        }
        segment.extend((0..self.payload).map(|byte| byte as u8));
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

    fn four(&self, source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
        let options: &[u8] = if matches!(self.odd, Some(Odd::Options)) { &[1, 1, 1, 0] } else { &[] };
        let length = (20 + options.len() + segment.len()) as u16;
        let whole = if matches!(self.odd, Some(Odd::MayFragment)) { 0 } else { 0x40 };
        let mut ip = vec![0x45 + options.len() as u8 / 4, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([0x12, 0x34, whole, 0, self.hops, protocol, 0, 0]);
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
        let extension: &[u8] =
            if matches!(self.odd, Some(Odd::Options)) { &[protocol, 0, 1, 4, 0, 0, 0, 0] } else { &[] };
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(((extension.len() + segment.len()) as u16).to_be_bytes());
        ip.extend([if extension.is_empty() { protocol } else { 60 }, self.hops]);
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
