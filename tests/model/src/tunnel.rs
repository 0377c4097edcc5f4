//! Packets in packets: RFC 2003, RFC 2784, and GUE as Linux has it (draft-ietf-intarea-gue, variant 0).

use std::net::Ipv4Addr;

use dataplane::wire::tunnel::Encapsulation;

use crate::packet::{self, UDP};
use crate::world::ROUTER;

/// How many bytes of headers stand around a packet.
pub fn overhead(how: Encapsulation) -> usize {
    match how {
        Encapsulation::Ipip => 20,
        Encapsulation::Gre { checksum: false } => 24,
        Encapsulation::Gre { checksum: true } => 28,
        Encapsulation::Gue { .. } => 32,
    }
}

/// A packet around another one, but for what is the router's choice: identification and the source port of GUE, which are 0 here, as are the checksums
/// over them; that of GUE is 1 if it has one.
pub fn around(how: Encapsulation, inside: &[u8], server: Ipv4Addr) -> Vec<u8> {
    let (protocol, between) = match how {
        Encapsulation::Ipip => (4, Vec::new()),
        Encapsulation::Gre { checksum: false } => (47, vec![0, 0, 8, 0]),
        Encapsulation::Gre { checksum: true } => {
            let header = [0x80, 0, 8, 0];
            let sum = packet::add(packet::sum(&header), packet::sum(inside));
            (47, [&header[..], &(!sum).to_be_bytes(), &[0, 0]].concat())
        }
        Encapsulation::Gue { port, checksum } => {
            let length = (12 + inside.len()) as u16;
            (
                UDP,
                [
                    &[0, 0][..],
                    &port.to_be_bytes(),
                    &length.to_be_bytes(),
                    &[0, u8::from(checksum), 0, 4, 0, 0],
                ]
                .concat(),
            )
        }
    };
    let length = (20 + between.len() + inside.len()) as u16;
    // Class and ECN, and "don't fragment", are those inside (RFC 6040, RFC 2003).
    let mut outer = vec![0x45, inside[1]];
    outer.extend(length.to_be_bytes());
    outer.extend([0, 0, inside[6] & 0x40, 0, 64, protocol, 0, 0]);
    outer.extend(ROUTER.octets());
    outer.extend(server.octets());
    [outer, between, inside.to_vec()].concat()
}

/// A packet that leaves: if it is one of a tunnel, without what is the router's choice; what is wrong about that, if anything is.
pub fn without_choice(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < 20 || bytes[0] != 0x45 || bytes[12..16] != ROUTER.octets() {
        return Ok(bytes);
    }
    if packet::sum(&bytes[..20]) != 0xFFFF {
        return Err("the outer header's checksum is wrong");
    }
    bytes[4..6].fill(0);
    bytes[10..12].fill(0);
    if bytes[9] == UDP {
        if packet::word(&bytes, 20) < 49_152 {
            return Err("the source port of GUE is not an ephemeral one");
        }
        let outer = packet::parse_start(&bytes, false).ok_or("no outer header")?;
        let segment = &outer.segment()[..usize::from(packet::word(&bytes, 24))];
        let sum = packet::sum_with_pseudo_header(outer.source, outer.destination, UDP, segment);
        if packet::word(&bytes, 26) != 0 && sum != 0xFFFF {
            return Err("the outer checksum of UDP is wrong");
        }
        bytes[20..22].fill(0);
        // Whether there is one is the configuration's.
        let has_checksum = u8::from(packet::word(&bytes, 26) != 0);
        bytes[26..28].copy_from_slice(&[0, has_checksum]);
    }
    Ok(bytes)
}
