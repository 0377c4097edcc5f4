//! IP of either version, for what is done with both in the same way.

use super::checksum::{self, Delta};
use super::ethernet;
use super::icmp::Kind;
use super::ipv4::{self, Ipv4};
use super::ipv6::{self, Ipv6};
use crate::fib::Address;

/// What a balancer needs of a header of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// Where the payload begins: length of the header with options or extensions.
    pub header_length: usize,
    /// Length of header and payload.
    pub total_length: u16,
    /// Hops that are left.
    pub ttl: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// What of its datagram it is, if that has been fragmented.
    pub fragment: Option<Fragment>,
    /// Whether routers may not make fragments of it.
    pub dont_fragment: bool,
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
}

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where its data is in the datagram's, in bytes; 0 in the first one.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// What the fragments of a datagram have in common.
    pub identification: u32,
}

/// A version of IP, by its addresses.
pub trait Version: Address {
    /// EtherType of its packets.
    const ETHERTYPE: u16;
    /// Length of a header without options or extensions.
    const HEADER: usize;
    /// Where the source address is in it.
    const SOURCE: usize;
    /// Where the destination address is.
    const DESTINATION: usize;
    /// What of a fragment's headers the 16 bits of a datagram's length do not count: of IPv6 its own header, and the fragment header.
    const NOT_COUNTED: usize;
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// The longest ICMP error (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
    const LONGEST_ERROR: usize;
    /// Nobody takes it: port unreachable.
    const PORT_UNREACHABLE: Kind;
    /// Its hops are used up.
    const TTL_EXCEEDED: Kind;
    /// It is longer than the next link's MTU, and must not be fragmented.
    const TOO_BIG: Kind;
    /// There is no way to its network.
    const NO_ROUTE: Kind;
    /// There is none to its host.
    const HOST_UNREACHABLE: Kind;
    /// What every link takes (RFC 791; RFC 8200, section 5).
    const LEAST_MTU: u16;
    /// The bytes of an address.
    type Octets: AsRef<[u8]>;

    /// Its bytes.
    fn octets(self) -> Self::Octets;
    /// Reads the header of a whole packet, which may have padding behind it.
    fn parse(packet: &[u8]) -> Option<Ip<Self>>;
    /// Reads the header of a packet as an error quotes it: the rest may be missing, and nothing is checked that a router on the
    /// way may have changed.
    fn quoted(packet: &[u8]) -> Option<Ip<Self>>;
    /// The header of a packet that this router makes, of so many bytes with its header: 64 hops, not to be fragmented.
    fn header(length: u16, protocol: u8, source: Self, destination: Self) -> Vec<u8>;
    /// Whether a type of ICMP messages is an error about a packet, and then whether it is a redirect.
    fn is_error(kind: u8) -> Option<bool>;
    /// Whether an error of this kind says that a packet cannot get to where it is for. A source route that failed was its sender's.
    fn is_unreachable(kind: Kind) -> bool;
    /// Whether ICMP's checksum covers the addresses of the packet that the message is in.
    const ICMP_COVERS_ADDRESSES: bool;
    /// The change of a checksum when an address becomes another one.
    fn delta(old: Self, new: Self) -> Delta;
    /// Whether this address stands for one host, wherever that is: it may be a client's, and errors may be sent to it (RFC 1122, 3.2.2;
    /// RFC 4443, 2.4).
    fn is_somebody(self) -> bool;
    /// Whether routers pass on what is from or to this address: it stands for one host, and not on one link alone (RFC 3927, section 7;
    /// RFC 4291, section 2.5.6).
    fn is_routable(self) -> bool;
    /// Whether a packet with a whole header has options that routers on its way are to look at (RFC 791, section 3.1; RFC 8200, section 4.3).
    fn is_for_routers(packet: &[u8]) -> bool;
    /// Gives a header so many hops.
    fn set_ttl(header: &mut [u8], ttl: u8);
    /// Takes one hop of those that are left (not 0).
    fn decrement_ttl(header: &mut [u8]);
    /// Replaces the source address in a header.
    fn set_source(header: &mut [u8], old: Self, new: Self);
    /// Replaces the destination address in a header.
    fn set_destination(header: &mut [u8], old: Self, new: Self);

    /// The sum of the header that checksums of transport protocols count in (RFC 793; RFC 8200, section 8.1).
    fn pseudo_sum(source: Self, destination: Self, protocol: u8, length: u16) -> u16 {
        let [source, destination] =
            [source, destination].map(|end| u32::from(checksum::sum(end.octets().as_ref())));
        checksum::fold(source + destination + u32::from(protocol) + u32::from(length))
    }
}

impl From<&Ipv4> for Ip<u32> {
    fn from(ip: &Ipv4) -> Self {
        let &Ipv4 { header_length, total_length, ttl, protocol, dont_fragment, source, destination, .. } = ip;
        let fragment = ip.is_fragment.then_some(Fragment {
            offset: ip.offset,
            more: ip.more_fragments,
            identification: ip.identification.into(),
        });
        Ip { header_length, total_length, ttl, protocol, fragment, dont_fragment, source, destination }
    }
}

impl From<&Ipv6> for Ip<u128> {
    fn from(ip: &Ipv6) -> Self {
        let &Ipv6 { header_length, total_length, hop_limit, protocol, fragment, source, destination, .. } =
            ip;
        // Routers make no fragments of IPv6 at all.
        let (ttl, dont_fragment) = (hop_limit, true);
        Ip { header_length, total_length, ttl, protocol, fragment, dont_fragment, source, destination }
    }
}

impl Version for u32 {
    const ETHERTYPE: u16 = ethernet::IPV4;
    const HEADER: usize = ipv4::HEADER;
    const SOURCE: usize = ipv4::SOURCE;
    const DESTINATION: usize = ipv4::DESTINATION;
    const NOT_COUNTED: usize = 0;
    const ICMP: u8 = 1;
    const LONGEST_ERROR: usize = 576;
    const PORT_UNREACHABLE: Kind = (3, 3);
    const TTL_EXCEEDED: Kind = (11, 0);
    /// RFC 1191.
    const TOO_BIG: Kind = (3, 4);
    const NO_ROUTE: Kind = (3, 0);
    const HOST_UNREACHABLE: Kind = (3, 1);
    const LEAST_MTU: u16 = 68;
    const ICMP_COVERS_ADDRESSES: bool = false;
    type Octets = [u8; 4];

    fn octets(self) -> [u8; 4] {
        self.to_be_bytes()
    }

    fn parse(packet: &[u8]) -> Option<Ip<u32>> {
        Ipv4::parse(packet).ok().map(|ip| Ip::from(&ip))
    }

    fn quoted(packet: &[u8]) -> Option<Ip<u32>> {
        Ipv4::quoted(packet).map(|ip| Ip::from(&ip))
    }

    fn header(length: u16, protocol: u8, source: u32, destination: u32) -> Vec<u8> {
        ipv4::header(length, protocol, source, destination).into()
    }

    fn is_error(kind: u8) -> Option<bool> {
        const REDIRECT: u8 = 5;
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        matches!(kind, 3 | 4 | REDIRECT | 11 | 12).then_some(kind == REDIRECT)
    }

    fn is_unreachable(kind: Kind) -> bool {
        matches!(kind, (3, code) if code != 5)
    }

    fn delta(old: u32, new: u32) -> Delta {
        Delta::double(old, new)
    }

    fn is_somebody(self) -> bool {
        // 0.0.0.0/8, 127.0.0.0/8, and multicast and all beyond.
        !matches!(self >> 24, 0 | 127 | 224..)
    }

    fn is_routable(self) -> bool {
        self.is_somebody() && self >> 16 != 0xA9FE
    }

    fn is_for_routers(packet: &[u8]) -> bool {
        packet[0] & 0x0F > 5
    }

    fn set_ttl(header: &mut [u8], ttl: u8) {
        header.first_chunk_mut().into_iter().for_each(|header| ipv4::set_ttl(header, ttl));
    }

    fn decrement_ttl(header: &mut [u8]) {
        header.first_chunk_mut().into_iter().for_each(ipv4::decrement_ttl);
    }

    fn set_source(header: &mut [u8], old: u32, new: u32) {
        let header = header.first_chunk_mut().into_iter();
        header.for_each(|header| ipv4::set_source(header, new, Delta::double(old, new)));
    }

    fn set_destination(header: &mut [u8], old: u32, new: u32) {
        let header = header.first_chunk_mut().into_iter();
        header.for_each(|header| ipv4::set_destination(header, new, Delta::double(old, new)));
    }
}

impl Version for u128 {
    const ETHERTYPE: u16 = ethernet::IPV6;
    const HEADER: usize = ipv6::HEADER;
    const SOURCE: usize = ipv6::SOURCE;
    const DESTINATION: usize = ipv6::DESTINATION;
    const NOT_COUNTED: usize = ipv6::HEADER + ipv6::FRAGMENT_HEADER;
    const ICMP: u8 = ipv6::ICMPV6;
    const LONGEST_ERROR: usize = ipv6::LEAST_MTU as usize;
    const PORT_UNREACHABLE: Kind = (1, 4);
    const TTL_EXCEEDED: Kind = (3, 0);
    const TOO_BIG: Kind = (2, 0);
    const NO_ROUTE: Kind = (1, 0);
    const HOST_UNREACHABLE: Kind = (1, 3);
    const LEAST_MTU: u16 = ipv6::LEAST_MTU;
    const ICMP_COVERS_ADDRESSES: bool = true;
    type Octets = [u8; 16];

    fn octets(self) -> [u8; 16] {
        self.to_be_bytes()
    }

    fn parse(packet: &[u8]) -> Option<Ip<u128>> {
        Ipv6::parse(packet).map(|ip| Ip::from(&ip))
    }

    fn quoted(packet: &[u8]) -> Option<Ip<u128>> {
        Ipv6::quoted(packet).map(|ip| Ip::from(&ip))
    }

    fn header(length: u16, protocol: u8, source: u128, destination: u128) -> Vec<u8> {
        ipv6::header(length, protocol, source, destination).into()
    }

    fn is_error(kind: u8) -> Option<bool> {
        // All types below 128 are errors (RFC 4443, 2.1). A redirect is a message of neighbour discovery.
        (kind < 128).then_some(false)
    }

    fn is_unreachable(kind: Kind) -> bool {
        // Of a next header that nobody there knows it is said as a parameter problem.
        kind.0 == 1 || kind == (4, 1)
    }

    fn delta(old: u128, new: u128) -> Delta {
        Delta::wide(old, new)
    }

    fn is_somebody(self) -> bool {
        // Unspecified, loopback, multicast, and those of a link, which no router forwards (RFC 4291, section 2.5.6).
        self > 1 && self >> 120 != 0xFF && self >> 118 != 0xFE80 >> 6
    }

    fn is_routable(self) -> bool {
        self.is_somebody()
    }

    fn is_for_routers(packet: &[u8]) -> bool {
        ipv6::has_hop_by_hop(packet)
    }

    fn set_ttl(header: &mut [u8], ttl: u8) {
        header.first_chunk_mut().into_iter().for_each(|header| ipv6::set_hop_limit(header, ttl));
    }

    fn decrement_ttl(header: &mut [u8]) {
        header.first_chunk_mut().into_iter().for_each(ipv6::decrement_hop_limit);
    }

    fn set_source(header: &mut [u8], _: u128, new: u128) {
        header.first_chunk_mut().into_iter().for_each(|header| ipv6::set_source(header, new));
    }

    fn set_destination(header: &mut [u8], _: u128, new: u128) {
        header.first_chunk_mut().into_iter().for_each(|header| ipv6::set_destination(header, new));
    }
}
