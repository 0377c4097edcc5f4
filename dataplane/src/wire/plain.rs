//! The usual frame, taken apart at once: Ethernet without tag, IPv4 without options or fragments, TCP or UDP.
//!
//! Nearly every packet of a balancer is one of these. Its fields are at fixed places in the first 54 bytes, so
//! one check of the length is enough for all of them, and whether the frame is plain is one condition without
//! branches. What is not plain is not wrong: the views of the other files of this folder say what it is.

use super::checksum::{self, Delta};
use super::transport::{self, TCP_CHECKSUM, UDP_CHECKSUM};
use super::{ethernet, ipv4, read_native, read16};
use crate::service::Protocol;

/// Bytes of a frame that are looked at: up to the end of a TCP header without options.
pub const HEADERS: usize = ethernet::HEADER + ipv4::HEADER + transport::header_length(Protocol::Tcp);

/// The headers of a frame.
pub type Headers = [u8; HEADERS];

/// Where the transport header begins.
pub const TRANSPORT: usize = ethernet::HEADER + ipv4::HEADER;

mod field {
    pub const TYPE: usize = 12;
    /// The IP header: twice eight bytes, and the destination.
    pub const IP: usize = 14;
    pub const TTL: usize = 22;
    pub const HEADER_CHECKSUM: usize = 24;
    pub const DESTINATION: usize = 30;
    pub const PORTS: usize = 34;
    pub const UDP_LENGTH: usize = 38;
    pub const TCP_OFFSET: usize = 46;
    pub const TCP_FLAGS: usize = 47;
}

/// The first eight bytes of the IP header as they have to be: version 4 and five words of header, neither more
/// fragments nor an offset. Type of service, length, identification and "don't fragment" are anything.
const IP_FIXED: u64 = u64::from_be_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);
const IP_FIXED_MASK: u64 = u64::from_be_bytes([0xFF, 0, 0, 0, 0, 0, 0x3F, 0xFF]);

/// A MAC, ready to be compared with the first bytes of a frame.
#[derive(Clone, Copy, Debug)]
pub struct MacPattern(u64);

impl MacPattern {
    /// That of no frame.
    pub const NOBODY: MacPattern = MacPattern(u64::MAX);

    /// Of a MAC.
    pub const fn new(mac: &ethernet::Mac) -> Self {
        MacPattern(u64::from_be_bytes([0, 0, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]]))
    }

    /// 0 if the frame begins with this MAC.
    #[inline(always)]
    fn difference(self, headers: &Headers) -> u64 {
        (u64::from_be_bytes(read_native(headers, 0)) >> 16) ^ self.0
    }
}

/// What a balancer needs of a plain frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Length of the IP packet.
    pub length: u16,
    /// Time to live.
    pub ttl: u8,
    /// Transport protocol.
    pub protocol: Protocol,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
}

impl Plain {
    /// Takes a frame of `length` bytes apart that begins with these headers; `None` if it is not plain, or not
    /// for this MAC, or anything in it contradicts anything else.
    ///
    /// Differences from what has to be are collected by `or`, lengths that must not be negative by their sign
    /// bits, so that there is one branch for all of them.
    #[inline(always)]
    pub fn parse(headers: &Headers, length: usize, mac: MacPattern) -> Option<Plain> {
        let first = u64::from_be_bytes(read_native(headers, field::IP));
        let second = u64::from_be_bytes(read_native(headers, field::IP + 8));
        let destination = u32::from_be_bytes(read_native(headers, field::DESTINATION));
        let ports = u32::from_be_bytes(read_native(headers, field::PORTS));

        let ip_length = (first >> 32) as u16;
        let segment = i32::from(ip_length) - ipv4::HEADER as i32;
        let (protocol, stated, least, flags) = match (second >> 48) as u8 {
            TCP => {
                let offset = i32::from(headers[field::TCP_OFFSET] >> 4) * 4;
                (Protocol::Tcp, offset, 20, headers[field::TCP_FLAGS])
            }
            UDP => (Protocol::Udp, i32::from(read16(headers, field::UDP_LENGTH)), 8, 0),
            _ => return None,
        };
        let different = mac.difference(headers)
            | u64::from(read16(headers, field::TYPE) ^ ethernet::IPV4)
            | ((first ^ IP_FIXED) & IP_FIXED_MASK)
            | u64::from(!checksum::is_valid_sum(first, second, destination));
        let missing = (length as i32 - ethernet::HEADER as i32 - i32::from(ip_length))
            | (stated - least)
            | (segment - stated);
        if (different != 0) | (missing < 0) {
            return None;
        }
        Some(Plain {
            source: second as u32,
            destination,
            source_port: (ports >> 16) as u16,
            destination_port: ports as u16,
            length: ip_length,
            ttl: (second >> 56) as u8,
            protocol,
            flags,
        })
    }
}

const TCP: u8 = Protocol::Tcp.number();
const UDP: u8 = Protocol::Udp.number();

/// What becomes of a plain frame.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite<'a> {
    /// 0: the destination changes, towards a server; 1: the source, towards a client.
    pub direction: usize,
    /// The new address.
    pub address: u32,
    /// The new port.
    pub port: u16,
    /// The header checksum's change, TTL included.
    pub header_delta: Delta,
    /// The transport checksum's change.
    pub transport_delta: Delta,
    /// The new MACs.
    pub macs: &'a [u8; 12],
}

impl Rewrite<'_> {
    /// Rewrites a frame that [`Plain::parse`] has found plain; decrements its TTL, too.
    #[inline(always)]
    pub fn apply(&self, protocol: Protocol, headers: &mut Headers) {
        headers[..12].copy_from_slice(self.macs);
        headers[field::TTL] -= 1;
        let checksum = self.header_delta.apply(read16(headers, field::HEADER_CHECKSUM));
        write16(headers, field::HEADER_CHECKSUM, checksum);
        // The source's fields stand before the destination's.
        let direction = self.direction & 1;
        let address = field::DESTINATION - 4 * direction;
        headers[address..address + 4].copy_from_slice(&self.address.to_be_bytes());
        write16(headers, field::PORTS + 2 - 2 * direction, self.port);
        let at = TRANSPORT + if protocol == Protocol::Tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        let old = read16(headers, at);
        write16(headers, at, transport::updated_checksum(protocol, old, self.transport_delta));
    }
}

#[inline(always)]
fn write16(headers: &mut Headers, at: usize, value: u16) {
    headers[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
