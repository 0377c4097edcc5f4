//! Packets between clients and services.

use std::net::SocketAddr;

use proptest::prelude::*;
use proptest::sample::select;

use super::odd::{Odd, martian, odd};
use super::wire::sum_header;
use super::{ITS, Known, far, its_or};
use crate::packet::{ACK, FIN, RST, SYN};
use crate::world::{self, Flow, LAN, MACS, SERVERS, Service, WAN};

/// A packet between a client and a service.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The number of the service, modulo how many there are.
    pub service: usize,
    /// That of the client, see [`world`].
    pub client: u8,
    /// Its port.
    pub client_port: u16,
    /// Which of the service's virtual addresses it is to, modulo how many there are.
    pub face: usize,
    /// The port of the service, if it is of all ports.
    pub virtual_port: u16,
    /// From the real server with this number, and not to the virtual address; with [`ITS`] from that which the client's connection has, if there is one and
    /// its answers come by here.
    pub from: Option<usize>,
    /// Of TCP.
    pub flags: u8,
    /// What it says of TCP's numbers: its own, and what it acknowledges.
    pub numbers: (u32, u32),
    /// Bytes behind the header of TCP or UDP.
    pub payload: usize,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// What is unusual about it.
    pub odd: Option<Odd>,
}

/// Any.
pub(super) fn sent() -> impl Strategy<Value = Sent> {
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
    // Mostly those of a handshake; else what is near it, and near the end of a header that stands before the stream.
    let numbers = (
        prop_oneof![6 => Just(1u32), 2 => select(vec![0, 2, 20, u32::MAX])],
        prop_oneof![6 => Just(1u32), 5 => select(vec![0, 2, 28, 29, 52, 53, 300, u32::MAX])],
    );
    let payload = prop_oneof![6 => 0..20usize, 1 => 0..300usize, 1 => 1200..1480usize];
    let hops = prop_oneof![8 => Just(64u8), 1 => Just(255), 1 => 0..3u8];
    let odd = prop::option::weighted(0.2, odd());
    (
        (0..3usize, prop_oneof![2 => Just(0), 1 => 1..3usize]),
        client,
        prop_oneof![8 => Just(40_000u16), 2 => Just(40_001), 1 => Just(20)],
        prop_oneof![6 => Just(443u16), 3 => Just(8080), 1 => select(vec![20u16, 53, 80, 81, 8053])],
        from,
        (flags, numbers),
        payload,
        hops,
        odd,
    )
        .prop_map(
            |(
                (service, face),
                client,
                client_port,
                virtual_port,
                from,
                (flags, numbers),
                payload,
                hops,
                odd,
            )| Sent {
                service,
                face,
                client,
                client_port,
                virtual_port,
                from,
                flags,
                numbers,
                payload,
                hops,
                odd,
            },
        )
}

impl Sent {
    /// The port that it comes in on, and the frame.
    pub(crate) fn frame(
        &self,
        services: &[Service],
        known: impl Fn(Flow) -> Option<Known>,
    ) -> (u16, Vec<u8>) {
        let service = &services[self.service % services.len()];
        let (port, source, destination) = self.ends(service, known);
        let odd = match &self.odd {
            Some(Odd::Quic(datagram)) => {
                datagram.payload(service).map(|payload| Odd::Payload(payload, datagram.behind))
            }
            odd => odd.clone(),
        };
        let its = Sent { odd, ..self.clone() };
        let ip = its.packet(source, destination, self.flow(service).protocol);
        its.framed(port, service.is_six, ip)
    }

    /// The port that it comes in on, its source and its destination.
    pub(super) fn ends(
        &self,
        service: &Service,
        known: impl Fn(Flow) -> Option<Known>,
    ) -> (u16, SocketAddr, SocketAddr) {
        let flow @ Flow { client, destination: virtual_address, .. } = self.flow(service);
        let known = known(flow);
        let number = |from| its_or(from, known) % service.servers.len();
        let from = self.from.filter(|&from| from != ITS || !service.is_one_way(number(from)));
        let from = from.map(number);
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
        (if from.is_some() { LAN } else { WAN }, source, destination)
    }

    /// A packet in a frame that comes in on a port, and what is unusual about that.
    pub(crate) fn framed(&self, port: u16, is_six: bool, mut ip: Vec<u8>) -> (u16, Vec<u8>) {
        let port = if matches!(self.odd, Some(Odd::WrongPort)) { 1 - port } else { port };
        let mut to = MACS[usize::from(port)];
        let mut ether_type = if is_six { 0x86DD } else { 0x0800u16 };
        match self.odd {
            Some(Odd::To(mac)) => to = mac,
            Some(Odd::EtherType(other)) => ether_type = other,
            Some(Odd::Longer(more) | Odd::Payload(_, more)) => ip.resize(ip.len() + more, 0xEE),
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

    /// Of the service's packets and of those of its client.
    pub(crate) fn flow(&self, service: &Service) -> Flow {
        let face = &service.faces[self.face % service.faces.len()];
        Flow {
            protocol: face.protocol,
            client: SocketAddr::new(world::client_address(service.is_six, self.client), self.client_port),
            destination: world::virtual_at(service, face, self.virtual_port),
        }
    }
}
