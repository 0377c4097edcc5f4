//! ICMP errors about packets between clients and services.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use proptest::sample::select;

use super::sent::{Sent, sent};
use super::{ITS, Known, far, its_or};
use crate::packet;
use crate::world::{self, Flow, LAN, MACS, SERVERS, Service, WAN};

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

/// Any.
pub(super) fn error() -> impl Strategy<Value = Error> {
    let kind = prop_oneof![
        6 => select(vec![(3u8, 3u8), (3, 4), (11, 0), (12, 0), (1, 4), (2, 0), (3, 0), (4, 0)]),
        2 => select(vec![(5, 1), (8, 0), (0, 0), (128, 0), (135, 0), (136, 0), (137, 0), (100, 0)]),
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

impl Error {
    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        services: &[Service],
        known: impl Fn(Flow) -> Option<Known>,
    ) -> (u16, Vec<u8>) {
        let service = &services[self.about.service % services.len()];
        let flow @ Flow { protocol, client, destination: virtual_address } = self.about.flow(service);
        let known = known(flow);
        let server = its_or(self.server, known) % service.servers.len();
        let is_reply = self.about.from.is_some_and(|from| from != ITS || !service.mode.is_one_way());
        let (source, destination) = match is_reply {
            true => (virtual_address, client),
            false => (far(service, client, known), world::host_at(service, server, self.about.virtual_port)),
        };
        let quote = self.about.packet(source, destination, protocol);
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
