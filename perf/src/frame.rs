//! Frames of made-up flows: complete, with right checksums, and cheap to make.
//!
//! Flow number n belongs to a client (16 ports a client address), a service and one of its servers, all by
//! arithmetic: nothing has to be remembered of a flow, so the caches that are measured are the router's own.

use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane::service::{Mode, Protocol};
use dataplane::wire::checksum;

use crate::source::Way;

/// The router's MAC.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Headers of a TCP frame; of a UDP frame, and twelve bytes of payload.
pub const HEADERS: usize = 54;
/// The shortest frame in memory: 64 bytes on the wire, less the FCS.
pub const SHORTEST: u16 = 60;

const CLIENTS: u32 = 0x0B00_0000; // 11.0.0.0
const PORTS_A_CLIENT: u32 = 16;
const FIRST_PORT: u32 = 1024;
const VIRTUAL: u32 = 0xC612_0000; // 198.18.0.0, RFC 2544
const VIRTUAL_PORT: u16 = 80;
const SERVERS: u32 = 0x0A00_0000; // 10.0.0.0
const SERVER_PORT: u16 = 8080;

/// TCP flags of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// A connection begins.
    Syn = 0x02,
    /// It goes on.
    Ack = 0x10,
}

/// The addresses of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    client: u32,
    client_port: u16,
    service: u32,
    server: u32,
}

/// Makes frames for services at consecutive addresses.
#[derive(Clone)]
pub struct Frames {
    services: u32,
    servers: u32,
    server_port: u16,
    /// Bytes of a frame, without FCS.
    pub size: u16,
    /// By [`Way`].
    templates: [Template; 2],
}

/// The headers of a frame without the addresses, and what they sum to.
#[derive(Clone)]
struct Template {
    headers: [u8; HEADERS],
    checksum: usize,
    ip_sum: u32,
    transport_sum: u32,
}

impl Frames {
    /// Frames of `size` bytes (without FCS) for so many services with so many servers each. `flags` are those of
    /// clients' TCP packets.
    pub fn new(
        mode: Mode,
        protocol: Protocol,
        flags: Flags,
        services: u32,
        servers: u32,
        size: u16,
    ) -> Frames {
        let server_port = if mode == Mode::Nat { SERVER_PORT } else { VIRTUAL_PORT };
        let templates = [(0, VIRTUAL_PORT, flags), (server_port, 0, Flags::Ack)]
            .map(|(source, destination, flags)| Template::new(protocol, flags, source, destination, size));
        Frames { services, servers, server_port, size, templates }
    }

    /// The addresses of flow number `n`, if flows were opened in order and spread by `rr`: newest server first.
    #[inline]
    pub fn flow(&self, n: u32) -> Flow {
        let (service, turn) =
            if self.services == 1 { (0, n) } else { (n % self.services, n / self.services) };
        let server = if self.servers == 1 { 0 } else { self.servers - 1 - turn % self.servers };
        Flow {
            client: CLIENTS + n / PORTS_A_CLIENT,
            client_port: (FIRST_PORT + n % PORTS_A_CLIENT) as u16,
            service: VIRTUAL + service,
            server: SERVERS + 1 + service * self.servers + server,
        }
    }

    /// Writes the headers of a frame.
    #[inline]
    pub fn write(&self, way: Way, flow: Flow, headers: &mut [u8; HEADERS]) {
        let template = &self.templates[way as usize];
        let (source, destination, port_at) = match way {
            Way::In => (flow.client, flow.service, 34),
            Way::Out => (flow.server, flow.client, 36),
        };
        let addresses = sum(source) + sum(destination);
        let ip = !checksum::fold(template.ip_sum + addresses);
        let transport = !checksum::fold(template.transport_sum + addresses + u32::from(flow.client_port));
        *headers = template.headers;
        headers[24..26].copy_from_slice(&ip.to_be_bytes());
        headers[26..30].copy_from_slice(&source.to_be_bytes());
        headers[30..34].copy_from_slice(&destination.to_be_bytes());
        headers[port_at..port_at + 2].copy_from_slice(&flow.client_port.to_be_bytes());
        let at = template.checksum;
        headers[at..at + 2].copy_from_slice(&transport.to_be_bytes());
    }

    /// A whole frame.
    pub fn frame(&self, way: Way, flow: Flow) -> Vec<u8> {
        let mut frame = vec![0; usize::from(self.size)];
        let (headers, _) = frame.split_first_chunk_mut().expect("frames are longer than their headers");
        self.write(way, flow, headers);
        frame
    }

    /// The address of a service.
    pub fn service(&self, n: u32) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(VIRTUAL + n), VIRTUAL_PORT)
    }

    /// The address of a server of a service, in the order of the configuration.
    pub fn server(&self, service: u32, n: u32) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(SERVERS + 1 + service * self.servers + n), self.server_port)
    }
}

const TCP_CHECKSUM: usize = 50;
const UDP_CHECKSUM: usize = 40;

impl Template {
    fn new(protocol: Protocol, flags: Flags, source: u16, destination: u16, size: u16) -> Template {
        let length = size - 14;
        let mut headers = [0; HEADERS];
        headers[..6].copy_from_slice(&ROUTER_MAC);
        headers[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xFE]);
        headers[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        headers[16..18].copy_from_slice(&length.to_be_bytes());
        headers[20..24].copy_from_slice(&[0x40, 0, 64, protocol.number()]);
        headers[34..36].copy_from_slice(&source.to_be_bytes());
        headers[36..38].copy_from_slice(&destination.to_be_bytes());
        let checksum = match protocol {
            Protocol::Tcp => {
                headers[46] = 0x50;
                headers[47] = flags as u8;
                TCP_CHECKSUM
            }
            Protocol::Udp => {
                headers[38..40].copy_from_slice(&(length - 20).to_be_bytes());
                UDP_CHECKSUM
            }
            Protocol::Sctp => unreachable!("no such frames are made"),
        };
        let pseudo = u32::from(protocol.number()) + u32::from(length - 20);
        let ip_sum = u32::from(checksum::sum(&headers[14..34]));
        let transport_sum = u32::from(checksum::sum(&headers[34..])) + pseudo;
        Template { headers, checksum, ip_sum, transport_sum }
    }
}

const fn sum(address: u32) -> u32 {
    (address >> 16) + (address & 0xFFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        for (protocol, flags) in
            [(Protocol::Tcp, Flags::Syn), (Protocol::Tcp, Flags::Ack), (Protocol::Udp, Flags::Ack)]
        {
            let frames = Frames::new(Mode::Nat, protocol, flags, 3, 2, SHORTEST);
            for n in [0, 1, 17, 4711, 999_999] {
                for way in [Way::In, Way::Out] {
                    let frame = frames.frame(way, frames.flow(n));
                    assert_eq!(checksum::sum(&frame[14..34]), 0xFFFF, "header of flow {n}");
                    let mut pseudo = frame[26..34].to_vec();
                    pseudo.extend([0, protocol.number(), 0, (frame.len() - 34) as u8]);
                    pseudo.extend(&frame[34..]);
                    assert_eq!(checksum::sum(&pseudo), 0xFFFF, "{protocol} of flow {n}");
                }
            }
        }
    }

    #[test]
    fn flows_differ() {
        let frames = Frames::new(Mode::Nat, Protocol::Tcp, Flags::Ack, 7, 3, SHORTEST);
        let flows: std::collections::HashSet<_> =
            (0..100_000).map(|n| frames.flow(n)).map(|flow| (flow.client, flow.client_port)).collect();
        assert_eq!(flows.len(), 100_000);
    }
}
