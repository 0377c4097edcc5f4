//! Packets made from scratch, to ask what would become of them.

use std::net::SocketAddrV4;

use super::checksum;
use super::ethernet::{self, Mac};
use super::ipv4;
use super::transport::{TCP_CHECKSUM, UDP_CHECKSUM, header_length};
use crate::service::Protocol;

/// The shortest frame of Ethernet, without its checksum; shorter packets are padded.
const SHORTEST: usize = 60;

/// A packet without options, with a payload of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Transport protocol.
    pub protocol: Protocol,
    /// From whom.
    pub source: SocketAddrV4,
    /// To whom.
    pub destination: SocketAddrV4,
    /// TCP flags; UDP has none.
    pub flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Length of the IP packet in bytes; not less than its headers'.
    pub length: u16,
}

impl Made {
    /// The shortest packet of a protocol.
    pub const fn least_length(protocol: Protocol) -> u16 {
        (ipv4::HEADER + header_length(protocol)) as u16
    }

    /// The packet in a frame, all checksums right.
    pub fn frame(&self, from: &Mac, to: &Mac) -> Vec<u8> {
        let length = self.length.max(Self::least_length(self.protocol));
        let (source, destination) = (self.source.ip().octets(), self.destination.ip().octets());

        let mut ip = vec![0x45, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([0, 0, 0x40, 0, self.ttl, self.protocol.number(), 0, 0]); // don't fragment
        ip.extend([source, destination].concat());
        let sum = !checksum::sum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());

        let rest = length - ipv4::HEADER as u16;
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
        };
        segment.resize(usize::from(rest), 0);
        let pseudo = [source, destination].concat();
        let pseudo = u32::from(checksum::sum(&pseudo)) + u32::from(self.protocol.number()) + u32::from(rest);
        let sum = checksum::fold(pseudo + u32::from(checksum::sum(&segment)));
        // RFC 768: a UDP checksum that comes out as 0 is sent as 0xFFFF.
        let sum = if self.protocol == Protocol::Udp && sum == 0xFFFF { sum } else { !sum };
        segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());

        let mut frame = [&to[..], from, &ethernet::IPV4.to_be_bytes(), &ip, &segment].concat();
        frame.resize(frame.len().max(SHORTEST), 0);
        frame
    }
}

/// A fragment that is made of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whether it is the first of its datagram. If not, it is one of those without ports.
    pub is_first: bool,
    /// What all of them have in common.
    pub identification: u16,
}

impl Piece {
    /// Where the data of one that is not the first begins in the datagram's, in units of 8 bytes: behind a packet of 1500.
    const OFFSET: u16 = 185;
    /// More of them follow.
    const MORE: u16 = 0x2000;

    /// Has a frame that was made be that fragment.
    pub fn apply(self, frame: &mut [u8]) {
        let Some(ip) = frame.get_mut(ethernet::HEADER..ethernet::HEADER + ipv4::HEADER) else { return };
        let place = if self.is_first { Self::MORE } else { Self::OFFSET };
        ip[4..6].copy_from_slice(&self.identification.to_be_bytes());
        ip[6..8].copy_from_slice(&place.to_be_bytes());
        ip[10..12].fill(0);
        let sum = !checksum::sum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
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
    use crate::wire::ipv4::Ipv4;
    use crate::wire::transport::Transport;

    #[test]
    fn what_is_made_is_well_formed() {
        for (protocol, length) in
            [(Protocol::Tcp, 0), (Protocol::Tcp, 1500), (Protocol::Udp, 0), (Protocol::Udp, 61)]
        {
            let (source, destination) =
                ("198.51.100.7:40112".parse().unwrap(), "192.0.2.10:80".parse().unwrap());
            let made = Made { protocol, source, destination, flags: 0x12, ttl: 64, length };
            let frame = made.frame(&[1; 6], &[2; 6]);
            assert!(
                frame.len() >= SHORTEST && frame.starts_with(&[2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 8, 0])
            );
            let ip = Ipv4::parse(&frame[14..]).unwrap();
            let rest = usize::from(ip.total_length) - 20;
            assert_eq!(ip.total_length, length.max(Made::least_length(protocol)));
            let segment = &frame[34..34 + rest];
            let transport = Transport::parse(protocol, segment, rest).unwrap();
            let flags = if protocol == Protocol::Tcp { 0x12 } else { 0 };
            assert_eq!(transport, Transport { source: 40112, destination: 80, flags });
            let pseudo =
                [&frame[26..34], &[0, protocol.number()], &(rest as u16).to_be_bytes(), segment].concat();
            assert_eq!(checksum::sum(&pseudo), 0xFFFF);
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
