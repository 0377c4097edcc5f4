//! Packets made from scratch, to ask what would become of them.

use std::net::{IpAddr, SocketAddr};

use super::checksum;
use super::ethernet::{self, Mac};
use super::transport::{TCP_CHECKSUM, UDP_CHECKSUM, header_length};
use super::version::Version;
use super::{ipv4, ipv6, sctp};
use crate::service::Protocol;

/// The shortest frame of Ethernet, without its checksum; shorter packets are padded.
const SHORTEST: usize = 60;

/// A chunk of SCTP that begins an association: a tag, a window, streams of both ways, a first number (RFC 9260, section 3.3.2).
const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];

/// A packet without options or extensions, with a payload of zeros, which routers may not make fragments of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Transport protocol.
    pub protocol: Protocol,
    /// From whom.
    pub source: SocketAddr,
    /// To whom; of the same family.
    pub destination: SocketAddr,
    /// TCP flags; UDP has none, and a packet of SCTP is an INIT.
    pub flags: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Length of the IP packet in bytes; not less than its headers'.
    pub length: u16,
}

impl Made {
    /// Length of the IP header.
    pub fn ip_header(&self) -> u16 {
        (if self.destination.is_ipv4() { ipv4::HEADER } else { ipv6::HEADER }) as u16
    }

    /// The shortest packet of its protocol and family.
    pub fn least_length(&self) -> u16 {
        let chunk = if self.protocol == Protocol::Sctp { INIT.len() } else { 0 };
        self.ip_header() + (header_length(self.protocol) + chunk) as u16
    }

    /// The packet in a frame, all checksums right. An empty frame if its addresses are of two families.
    pub fn frame(&self, from: &Mac, to: &Mac) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.of::<u32>(from, to, source.into(), destination.into())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.of::<u128>(from, to, source.into(), destination.into())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
        }
    }

    fn of<A: Version>(&self, from: &Mac, to: &Mac, source: A, destination: A) -> Vec<u8> {
        let length = self.length.max(self.least_length());
        let rest = length - A::HEADER as u16;
        let mut segment = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let checksum_at = match self.protocol {
            Protocol::Tcp => {
                segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.flags, 0xFF, 0xFF]);
                TCP_CHECKSUM
            }
            Protocol::Udp => {
                segment.extend(rest.to_be_bytes());
                UDP_CHECKSUM
            }
            Protocol::Sctp => {
                segment.extend([0; 8]);
                segment.extend(INIT);
                sctp::CHECKSUM
            }
        };
        segment.resize(usize::from(rest), 0);
        let pseudo = A::pseudo_sum(source, destination, self.protocol.number(), rest);
        let sum = checksum::fold(u32::from(pseudo) + u32::from(checksum::sum(&segment)));
        // RFC 768: a UDP checksum that comes out as 0 is sent as 0xFFFF.
        let sum = if self.protocol == Protocol::Udp && sum == 0xFFFF { sum } else { !sum };
        if self.protocol == Protocol::Sctp {
            let sum = sctp::checksum(&segment);
            segment[checksum_at..checksum_at + sum.len()].copy_from_slice(&sum);
        } else {
            segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }

        let mut ip = A::header(length, self.protocol.number(), source, destination);
        A::set_ttl(&mut ip, self.ttl);
        let mut frame = [&to[..], from, &A::ETHERTYPE.to_be_bytes(), &ip, &segment].concat();
        frame.resize(frame.len().max(SHORTEST), 0);
        frame
    }
}

/// What has no ports that a packet may carry in the place of UDP, by the name and number that IANA has for it.
pub const SEALED: [(&str, u8); 2] = [("esp", 50), ("ah", 51)];

/// Has a frame that was made of UDP be one of another protocol, to which the two ports are the number of its keys.
pub fn seal(frame: &mut [u8], protocol: u8) {
    if frame.get(12..14).is_some_and(|kind| kind == ethernet::IPV6.to_be_bytes()) {
        frame[ethernet::HEADER + 6] = protocol;
    } else if let Some(ip) = frame.get_mut(ethernet::HEADER..ethernet::HEADER + ipv4::HEADER) {
        ip[9] = protocol;
        ip[10..12].fill(0);
        let sum = !checksum::sum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A fragment that is made of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whether it is the first of its datagram. If not, it is one of those without ports.
    pub is_first: bool,
    /// What all of them have in common; of IPv4 16 bits.
    pub identification: u32,
}

impl Piece {
    /// Where the data of one that is not the first begins in the datagram's, in units of 8 bytes: behind a packet of 1500.
    const OFFSET: u16 = 185;
    /// More of them follow.
    const MORE: u16 = 0x2000;

    /// Has a frame that was made be that fragment.
    pub fn apply(self, frame: &mut Vec<u8>) {
        if frame.get(12..14).is_some_and(|kind| kind == ethernet::IPV6.to_be_bytes()) {
            return self.extend(frame);
        }
        let Some(ip) = frame.get_mut(ethernet::HEADER..ethernet::HEADER + ipv4::HEADER) else { return };
        let place = if self.is_first { Self::MORE } else { Self::OFFSET };
        ip[4..6].copy_from_slice(&(self.identification as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&place.to_be_bytes());
        ip[10..12].fill(0);
        let sum = !checksum::sum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    /// Puts a fragment header (RFC 8200, section 4.5) behind that of IPv6.
    fn extend(self, frame: &mut Vec<u8>) {
        const FRAGMENT: u8 = 44;
        let at = ethernet::HEADER + ipv6::HEADER;
        let Some(header) = frame.get_mut(ethernet::HEADER..at) else { return };
        let length = u16::from_be_bytes([header[4], header[5]]) + 8;
        let next = std::mem::replace(&mut header[6], FRAGMENT);
        header[4..6].copy_from_slice(&length.to_be_bytes());
        let [high, low] = if self.is_first { [0, 1] } else { (Self::OFFSET << 3).to_be_bytes() };
        let [a, b, c, d] = self.identification.to_be_bytes();
        frame.splice(at..at, [next, 0, high, low, a, b, c, d]);
    }
}

/// TCP flags and their letters, from the lowest bit.
const LETTERS: [char; 8] = ['F', 'S', 'R', 'P', 'A', 'U', 'E', 'C'];

/// TCP flags by their letters, `S`, `SA`, `FPA`; `.` is ACK, too, and `W` CWR, as tcpdump writes them. `None` if a letter is none.
pub fn flags(letters: &str) -> Option<u8> {
    let bit = |letter: char| match letter.to_ascii_uppercase() {
        '.' => Some(4),
        'W' => Some(7),
        letter => LETTERS.iter().position(|&known| known == letter),
    };
    letters.chars().try_fold(0, |flags, letter| Some(flags | 1 << bit(letter)?))
}

/// The letters of TCP flags; SYN before ACK, as everybody says it.
pub fn letters(flags: u8) -> String {
    LETTERS.iter().zip(0..).filter(|&(_, bit)| flags >> bit & 1 != 0).map(|(letter, _)| letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::transport::Transport;

    fn ends(is_wide: bool) -> (SocketAddr, SocketAddr) {
        if is_wide {
            ("[2001:db8:c::7]:40112".parse().unwrap(), "[2001:db8::10]:80".parse().unwrap())
        } else {
            ("198.51.100.7:40112".parse().unwrap(), "192.0.2.10:80".parse().unwrap())
        }
    }

    fn is_well_formed<A: Version>(protocol: Protocol, length: u16) {
        let (source, destination) = ends(A::HEADER == ipv6::HEADER);
        let made = Made { protocol, source, destination, flags: 0x12, ttl: 9, length };
        let frame = made.frame(&[1; 6], &[2; 6]);
        let [high, low] = A::ETHERTYPE.to_be_bytes();
        assert!(frame.len() >= SHORTEST);
        assert_eq!(frame[..14], [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, high, low]);
        let ip = A::parse(&frame[14..]).unwrap();
        let rest = usize::from(ip.total_length) - A::HEADER;
        assert_eq!((ip.total_length, ip.ttl), (length.max(made.least_length()), 9));
        let segment = &frame[14 + A::HEADER..][..rest];
        let transport = Transport::parse(protocol, segment, rest).unwrap();
        let flags = if protocol == Protocol::Tcp { 0x12 } else { 0 };
        assert_eq!(transport, Transport { source: 40112, destination: 80, flags });
        let pseudo = A::pseudo_sum(ip.source, ip.destination, protocol.number(), rest as u16);
        let sum = checksum::fold(u32::from(pseudo) + u32::from(checksum::sum(segment)));
        assert_eq!(sum, 0xFFFF);
    }

    #[test]
    fn what_is_made_is_well_formed() {
        for (protocol, length) in
            [(Protocol::Tcp, 0), (Protocol::Tcp, 1500), (Protocol::Udp, 0), (Protocol::Udp, 61)]
        {
            is_well_formed::<u32>(protocol, length);
            is_well_formed::<u128>(protocol, length);
        }
    }

    #[test]
    fn a_fragment_of_either_family() {
        for is_wide in [false, true] {
            let (source, destination) = ends(is_wide);
            let made = Made { protocol: Protocol::Udp, source, destination, flags: 0, ttl: 64, length: 0 };
            for (is_first, offset) in [(true, 0), (false, 1480)] {
                let mut frame = made.frame(&[1; 6], &[2; 6]);
                Piece { is_first, identification: 0x1234 }.apply(&mut frame);
                let fragment = match is_wide {
                    true => u128::parse(&frame[14..]).unwrap().fragment.unwrap(),
                    false => u32::parse(&frame[14..]).unwrap().fragment.unwrap(),
                };
                assert_eq!((fragment.offset, fragment.more), (offset, is_first));
                assert_eq!(fragment.identification, 0x1234);
            }
        }
    }

    #[test]
    fn letters_of_flags() {
        assert_eq!(flags("S"), Some(0x02));
        assert_eq!(flags("sa"), flags("S."));
        assert_eq!(flags("FSRPAUEC"), Some(0xFF));
        assert_eq!((flags(""), flags("X")), (Some(0), None));
        assert!((0..=u8::MAX).all(|all| flags(&letters(all)) == Some(all)));
        assert_eq!(letters(super::super::transport::SYN | super::super::transport::ACK), "SA");
    }
}
