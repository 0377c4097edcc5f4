//! TCP (RFC 9293), UDP (RFC 768) and SCTP ([`super::sctp`]) headers, as far as a balancer looks into them.

use super::checksum::Delta;
use super::{read16, sctp};
use crate::service::Protocol;

mod field {
    pub const SOURCE_PORT: usize = 0;
    pub const DESTINATION_PORT: usize = 2;
    pub const UDP_LENGTH: usize = 4;
    pub const TCP_OFFSET: usize = 12;
    pub const TCP_FLAGS: usize = 13;
}

/// Where the checksum is in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Where the checksum is in a UDP header.
pub(super) const UDP_CHECKSUM: usize = 6;

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag PSH.
pub const PSH: u8 = 0x08;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

/// Length of a header without options.
#[inline]
pub const fn header_length(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
        Protocol::Sctp => sctp::HEADER,
    }
}

/// What a balancer needs of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// TCP flags; 0 for UDP; of SCTP [`sctp::Event::flags`].
    pub flags: u8,
}

impl Transport {
    /// Reads the header. `segment` starts with it, `length` is what the IP header says of its length.
    /// `None` if the header does not fit or its own length field contradicts.
    #[inline]
    pub fn parse(protocol: Protocol, segment: &[u8], length: usize) -> Option<Self> {
        if length < header_length(protocol) || segment.len() < header_length(protocol) {
            return None;
        }
        let flags = match protocol {
            Protocol::Tcp => {
                let offset = usize::from(segment[field::TCP_OFFSET] >> 4) * 4;
                if offset < header_length(protocol) || offset > length {
                    return None;
                }
                segment[field::TCP_FLAGS]
            }
            Protocol::Udp => {
                let stated = usize::from(read16(segment, field::UDP_LENGTH));
                if stated < header_length(protocol) || stated > length {
                    return None;
                }
                0
            }
            Protocol::Sctp => sctp::Event::of_packet(&segment[..segment.len().min(length)]).flags(),
        };
        let source = read16(segment, field::SOURCE_PORT);
        Some(Transport { source, destination: read16(segment, field::DESTINATION_PORT), flags })
    }
}

/// What a datagram of UDP carries, by its own length (RFC 768): behind it there may be the padding of a short frame.
#[inline]
pub fn payload(segment: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes(*segment.get(field::UDP_LENGTH..)?.first_chunk()?);
    segment.get(header_length(Protocol::Udp)..usize::from(length))
}

/// Replaces the source port; `delta` is the change of the checksum, pseudo-header included. One of SCTP has to end where its packet does.
#[inline]
pub fn set_source(protocol: Protocol, segment: &mut [u8], port: u16, delta: Delta) {
    if protocol == Protocol::Sctp {
        return sctp::set_port(segment, field::SOURCE_PORT, port);
    }
    segment[field::SOURCE_PORT..field::SOURCE_PORT + 2].copy_from_slice(&port.to_be_bytes());
    update_checksum(protocol, segment, delta);
}

/// Replaces the destination port, as [`set_source`] does.
#[inline]
pub fn set_destination(protocol: Protocol, segment: &mut [u8], port: u16, delta: Delta) {
    if protocol == Protocol::Sctp {
        return sctp::set_port(segment, field::DESTINATION_PORT, port);
    }
    segment[field::DESTINATION_PORT..field::DESTINATION_PORT + 2].copy_from_slice(&port.to_be_bytes());
    update_checksum(protocol, segment, delta);
}

#[inline]
fn update_checksum(protocol: Protocol, segment: &mut [u8], delta: Delta) {
    let at = checksum_at(protocol);
    let new = updated_checksum(protocol, read16(segment, at), delta);
    segment[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

/// Where the checksum is in a header.
#[inline]
pub(super) const fn checksum_at(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => TCP_CHECKSUM,
        Protocol::Udp => UDP_CHECKSUM,
        Protocol::Sctp => sctp::CHECKSUM,
    }
}

/// The checksum after a change. RFC 768: a UDP checksum of 0 says that there is none, and one that comes out as 0
/// is sent as 0xFFFF.
#[inline]
pub(super) fn updated_checksum(protocol: Protocol, old: u16, delta: Delta) -> u16 {
    match (protocol, old, delta.apply(old)) {
        (Protocol::Udp, 0, _) => 0,
        (Protocol::Udp, _, 0) => 0xFFFF,
        (_, _, new) => new,
    }
}
