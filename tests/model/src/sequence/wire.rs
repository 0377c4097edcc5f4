//! Packets as bytes.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::Protocol;

use super::{Odd, Sent};
use crate::packet;
use crate::sctp;

/// Bytes of the payload of a datagram in fragments, and of each of these but the last.
pub(super) const PARTED: usize = 45;
const PART: usize = 24;

impl Sent {
    /// From the IP header on.
    pub(super) fn packet(&self, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Vec<u8> {
        let number = match self.odd {
            Some(Odd::OtherProtocol(number)) => number,
            _ => protocol.number(),
        };
        self.packet_of(number, source, destination, protocol)
    }

    /// The same as a packet of the protocol with this number.
    pub(super) fn packet_of(
        &self,
        number: u8,
        source: SocketAddr,
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Vec<u8> {
        let segment = self.segment(source, destination, protocol);
        match source.ip() {
            IpAddr::V4(_) => self.four(source.ip(), destination.ip(), number, &segment),
            IpAddr::V6(_) => self.six(source.ip(), destination.ip(), number, &segment),
        }
    }

    pub(crate) fn segment(&self, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Vec<u8> {
        let counted = |length: usize| (0..length).map(|byte| byte as u8).collect();
        let behind = match &self.odd {
            Some(Odd::Part(..)) => counted(PARTED),
            Some(Odd::Payload(bytes, _)) => bytes.clone(),
            Some(Odd::Said(said)) if protocol == Protocol::Tcp => said.by(source.ip()).bytes().collect(),
            _ => counted(self.payload),
        };
        let payload = behind.len();
        let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        match protocol {
            Protocol::Tcp => {
                let options = self.options();
                segment.extend(self.numbers.0.to_be_bytes());
                segment.extend(self.numbers.1.to_be_bytes());
                segment.extend([0x50 + options.len() as u8 * 4, self.flags, 0xFF, 0xFF, 0, 0, 0, 0]);
                segment.extend(options);
            }
            // The chunk's type is by the flags, its length that of all that follows.
            Protocol::Sctp => {
                let types = [1, 10, 11, 7, 8, 14, 0, 3, 2, 6, 9];
                segment.extend([0, 0, 0, 1, 0, 0, 0, 0, types[usize::from(self.flags) % types.len()], 0]);
                segment.extend((4 + payload as u16).to_be_bytes());
            }
            Protocol::Udp => segment.extend([((8 + payload) >> 8) as u8, (8 + payload) as u8, 0, 0]),
        }
        segment.extend(behind);
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

    /// Of TCP.
    fn options(&self) -> Vec<u8> {
        match self.odd {
            Some(Odd::Mss(size)) => [&[2, 4], &size.to_be_bytes()[..]].concat(),
            Some(Odd::Sack(from, to)) => {
                [&[1, 5, 10], &from.to_be_bytes()[..], &to.to_be_bytes(), &[1]].concat()
            }
            _ => Vec::new(),
        }
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

    pub(super) fn six(&self, source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
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

/// Writes the checksum of an IPv4 header, as far as there is one.
pub(super) fn sum_header(ip: &mut [u8]) {
    let header = usize::from(ip.first().map_or(0, |first| first & 15)) * 4;
    if header >= 20 && ip.len() >= header {
        ip[10..12].fill(0);
        let sum = !packet::sum(&ip[..header]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
