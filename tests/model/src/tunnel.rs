//! Packets in packets: RFC 2003, RFC 2473, RFC 4213, RFC 2784, and GUE as Linux has it (draft-ietf-intarea-gue, variant 0).

use std::net::IpAddr;

use dataplane::wire::tunnel::Encapsulation;

use crate::packet::{self, UDP};
use crate::world::{ROUTER, ROUTER_SIX};

/// How many bytes of headers stand around a packet to a server.
pub fn overhead(how: Encapsulation, server: IpAddr) -> usize {
    let outer = if server.is_ipv6() { 40 } else { 20 };
    match how {
        Encapsulation::Ipip => outer,
        Encapsulation::Gre { checksum: false } => outer + 4,
        Encapsulation::Gre { checksum: true } => outer + 8,
        Encapsulation::Gue { .. } => outer + 12,
    }
}

/// Whether the packet around this one may be fragmented: as its sender allows, which IPv6 never does; but it cannot send less than 1280 bytes.
pub fn may_be_split(inside: &[u8]) -> bool {
    if is_six(inside) { inside.len() <= 1280 } else { inside[6] & 0x40 == 0 }
}

/// A packet around another one, but for what is the router's choice: identification or flow label, and the source port of GUE, which are 0 here,
/// as are the checksums over them; that of GUE is 1 if it has one.
pub fn around(how: Encapsulation, inside: &[u8], server: IpAddr) -> Vec<u8> {
    let (number, ether_type) = if is_six(inside) { (41, [0x86, 0xDD]) } else { (4, [8, 0]) };
    let (protocol, between) = match how {
        Encapsulation::Ipip => (number, Vec::new()),
        Encapsulation::Gre { checksum: false } => (47, [[0, 0], ether_type].concat()),
        Encapsulation::Gre { checksum: true } => {
            let header = [[0x80, 0], ether_type].concat();
            let sum = packet::add(packet::sum(&header), packet::sum(inside));
            (47, [&header[..], &(!sum).to_be_bytes(), &[0, 0]].concat())
        }
        Encapsulation::Gue { port, checksum } => {
            let [high, low] = ((12 + inside.len()) as u16).to_be_bytes();
            let [port_high, port_low] = port.to_be_bytes();
            let has_checksum = u8::from(checksum);
            (UDP, vec![0, 0, port_high, port_low, high, low, 0, has_checksum, 0, number, 0, 0])
        }
    };
    let length = between.len() + inside.len();
    // Class and ECN are those inside (RFC 6040).
    let class = if is_six(inside) { inside[0] << 4 | inside[1] >> 4 } else { inside[1] };
    let outer = match server {
        IpAddr::V4(server) => {
            let [high, low] = ((20 + length) as u16).to_be_bytes();
            let whole = if may_be_split(inside) { 0 } else { 0x40 };
            let fixed = [0x45, class, high, low, 0, 0, whole, 0, 64, protocol, 0, 0];
            [&fixed[..], &ROUTER.octets(), &server.octets()].concat()
        }
        IpAddr::V6(server) => {
            let [high, low] = (length as u16).to_be_bytes();
            let fixed = [0x60 | class >> 4, class << 4, 0, 0, high, low, protocol, 64];
            [&fixed[..], &ROUTER_SIX.octets(), &server.octets()].concat()
        }
    };
    [outer, between, inside.to_vec()].concat()
}

/// A packet that leaves: if it is one of a tunnel, without what is the router's choice; what is wrong about that, if anything is.
pub fn without_choice(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut bytes = bytes.to_vec();
    let Some(outer) = packet::parse_start(&bytes, is_six(&bytes)) else { return Ok(bytes) };
    match outer.source {
        IpAddr::V4(source) if source == ROUTER => {
            if packet::sum(&bytes[..20]) != 0xFFFF {
                return Err("the outer header's checksum is wrong");
            }
            bytes[4..6].fill(0);
            bytes[10..12].fill(0);
        }
        IpAddr::V6(source) if source == ROUTER_SIX => {
            bytes[1] &= 0xF0;
            bytes[2..4].fill(0);
        }
        _ => return Ok(bytes),
    }
    if outer.protocol == UDP {
        if outer.source_port() < 49_152 {
            return Err("the source port of GUE is not an ephemeral one");
        }
        let length = usize::from(packet::word(outer.segment(), 4));
        let sum =
            packet::sum_with_pseudo_header(outer.source, outer.destination, UDP, &outer.segment()[..length]);
        let has_checksum = packet::word(outer.segment(), 6) != 0;
        if has_checksum && sum != 0xFFFF {
            return Err("the outer checksum of UDP is wrong");
        }
        bytes[outer.at..outer.at + 2].fill(0);
        // Whether there is one is the configuration's.
        bytes[outer.at + 6..outer.at + 8].copy_from_slice(&[0, u8::from(has_checksum)]);
    }
    Ok(bytes)
}

fn is_six(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
}
