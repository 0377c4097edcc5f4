//! Packets of hosts inside that concern no service: they leave, and others come back to the pool that they leave from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::select;

use super::{Odd, Sent, Step};
use crate::model::Class;
use crate::packet::{self, ACK, FIN, PSH, RST, SYN};

use super::wire::PARTED;
use crate::wires::Tagged;
use crate::world::{self, LAN, POOL, WAN};

/// A packet of a host inside.
#[derive(Clone, Debug)]
pub struct Passing {
    /// The third and the last number of the host's address, a real server's maybe.
    pub host: (u8, u8),
    /// Its port, or the identifier of a ping.
    pub port: u16,
    /// What it sends.
    pub(crate) class: Class,
    /// Where it goes.
    pub course: Course,
    /// The number of the peer, see [`crate::world`].
    pub peer: u8,
    /// Whether it is an ICMP error about such a packet instead, of this type and code, with so many bytes quoted.
    pub error: Option<(u8, u8, usize)>,
    /// Of TCP.
    pub flags: u8,
    /// Bytes behind its header.
    pub payload: usize,
    /// Its time to live.
    pub hops: u8,
    /// What is unusual about it.
    pub odd: Option<Odd>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// From inside to the peer.
    Out,
    /// From the peer to what the host is outside; to a port of the pool, if that is nothing.
    Back,
    /// From another host inside to what this one is outside.
    Hairpin,
}

/// Any.
pub(super) fn passing() -> impl Strategy<Value = Passing> {
    let host = (0..2u8, prop_oneof![3 => Just(1u8), 2 => 2..=4u8, 1 => select(vec![77u8, 254])]);
    let class = select(vec![Class::Tcp, Class::Tcp, Class::Udp, Class::Echo]);
    let course = prop_oneof![5 => Just(Course::Out), 3 => Just(Course::Back), 1 => Just(Course::Hairpin)];
    let kind = select(vec![(3u8, 3u8), (3, 4), (4, 0), (11, 0), (12, 0), (5, 1)]);
    let quoted = prop_oneof![Just(8usize), Just(1500), 0..40usize];
    let error =
        prop::option::weighted(0.2, (kind, quoted).prop_map(|((kind, code), quoted)| (kind, code, quoted)));
    let flags = prop_oneof![
        5 => Just(SYN), 4 => Just(ACK), 2 => Just(PSH | ACK), 1 => Just(FIN | ACK), 1 => Just(RST), 1 => any::<u8>(),
    ];
    let odd = prop_oneof![
        2 => Just(Odd::Options),
        4 => Just(Odd::MayFragment),
        2 => Just(Odd::NoChecksum),
        1 => any::<u8>().prop_map(Odd::Class),
        3 => Just(Odd::WrongPort),
        1 => Just(Odd::Tagged(Tagged::Priority(5))),
        1 => Just(Odd::Tagged(Tagged::Not)),
        1 => (0..10usize).prop_map(Odd::Longer),
        1 => (0..60usize).prop_map(Odd::Truncated),
        1 => select(vec![1, 47, 132]).prop_map(Odd::OtherProtocol),
        2 => (24..60usize, 1..=255u8, any::<bool>()).prop_map(|(at, bits, is_summed)| Odd::Flipped(at, bits, is_summed)),
    ];
    (
        host,
        select(vec![40_000u16, 40_001, 40_002, 40_004, 8080]),
        (class, course, error),
        prop_oneof![6 => Just(1u8), 2 => Just(9), 1 => 0..16u8],
        flags,
        prop_oneof![4 => 0..20usize, 1 => 0..300usize, 1 => 1400..1480usize],
        prop_oneof![8 => Just(64u8), 1 => 0..3u8],
        prop::option::weighted(0.15, odd),
    )
        .prop_map(|(host, port, (class, course, error), peer, flags, payload, hops, odd)| Passing {
            host,
            port,
            class,
            course,
            peer,
            error,
            flags,
            payload,
            hops,
            odd,
        })
}

/// Packets whose datagrams come in parts, in whatever order: of hosts inside, and of whom they talk to.
pub(super) fn datagrams() -> impl Strategy<Value = Vec<Step>> {
    let courses = select(vec![Course::Out, Course::Out, Course::Back, Course::Hairpin]);
    let part = (
        courses,
        prop_oneof![4 => Just(1u8), 1 => Just(2)],
        0..3u8,
        prop_oneof![6 => Just(64u8), 1 => 0..3u8],
    );
    (passing(), prop::collection::vec(part, 2..=6)).prop_map(|(packet, parts)| {
        let packet = Passing { error: None, flags: SYN, ..packet };
        let parts = parts.into_iter().map(|(course, id, part, hops)| {
            // What comes back has a number of its own.
            let id = if course == Course::Out { id } else { 2 + id };
            Passing { course, hops, odd: Some(Odd::Part(id, part)), ..packet.clone() }
        });
        parts.map(Step::Passing).collect()
    })
}

impl Passing {
    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        outside_of: impl Fn(Class, SocketAddr) -> Option<SocketAddr>,
    ) -> (u16, Vec<u8>) {
        let at = |last| SocketAddr::from((Ipv4Addr::new(10, 0, self.host.0, last), self.port));
        let (inside, other) = (at(self.host.1), at(1 + self.host.1 % 4));
        let outside = |inside| outside_of(self.class, inside).unwrap_or((POOL[0], 2001).into());
        let peer = SocketAddr::new(world::client_address(false, self.peer), 53);
        let (source, destination) = match self.course {
            Course::Out => (inside, peer),
            Course::Back => (peer, outside(inside)),
            Course::Hairpin => (other, outside(inside)),
        };
        let Some((kind, code, quoted)) = self.error else {
            return self.framed(
                source.ip(),
                destination.ip(),
                self.number(),
                &self.segment(source, destination),
            );
        };
        // As whoever complains has got it.
        let (from, to) = match self.course {
            Course::Out => (outside(inside), peer),
            Course::Back => (peer, inside),
            Course::Hairpin => (outside(other), inside),
        };
        let carrier = Sent { odd: None, ..self.sent() };
        let quote = carrier.four(from.ip(), to.ip(), self.number(), &self.segment(from, to));
        let quote = &quote[..quote.len().min(20 + quoted)];
        let mut message = [&[kind, code, 0, 0, 0, 0, 5, 0], quote].concat();
        let sum = !packet::sum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.framed(to.ip(), from.ip(), packet::ICMP, &message)
    }

    fn framed(&self, source: IpAddr, destination: IpAddr, number: u8, segment: &[u8]) -> (u16, Vec<u8>) {
        let number = if let Some(Odd::OtherProtocol(other)) = self.odd { other } else { number };
        let ip = self.sent().four(source, destination, number, segment);
        self.sent().framed(if world::is_inside(source) { LAN } else { WAN }, false, ip)
    }

    fn sent(&self) -> Sent {
        let &Passing { peer: client, port: client_port, flags, payload, hops, ref odd, .. } = self;
        let odd = odd.clone();
        Sent {
            service: 0,
            face: 0,
            client,
            client_port,
            virtual_port: 0,
            from: None,
            flags,
            numbers: (1, 1),
            payload,
            hops,
            odd,
        }
    }

    fn number(&self) -> u8 {
        match self.class {
            Class::Tcp => packet::TCP,
            Class::Udp => packet::UDP,
            Class::Echo => packet::ICMP,
        }
    }

    fn segment(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let sent = self.sent();
        match self.class {
            Class::Tcp => sent.segment(source, destination, dataplane::service::Protocol::Tcp),
            Class::Udp => sent.segment(source, destination, dataplane::service::Protocol::Udp),
            Class::Echo => {
                let is_request = world::is_inside(source.ip()) || self.course == Course::Hairpin;
                let id = if is_request { source.port() } else { destination.port() };
                let [high, low] = id.to_be_bytes();
                let mut message = vec![if is_request { 8 } else { 0 }, 0, 0, 0, high, low, 0, 1];
                let payload = if let Some(Odd::Part(..)) = self.odd { PARTED } else { self.payload };
                message.extend((0..payload).map(|byte| byte as u8));
                let sum = !packet::sum(&message);
                message[2..4].copy_from_slice(&sum.to_be_bytes());
                message
            }
        }
    }
}
