//! Packets in packets: IP in IP (RFC 2003, RFC 2473, RFC 4213), GRE (RFC 2784, RFC 7676) and GUE (draft-ietf-intarea-gue, variant 0), of
//! either version in either, as Linux takes them apart.
//!
//! ```text
//!   ipip   IP 20 or 40 |                                  | the packet inside      20 or 40 bytes more
//!   gre    IP 20 or 40 | GRE 4 (8 with a checksum)        | the packet inside      24 or 44, 28 or 48
//!   gue    IP 20 or 40 | UDP 8 | GUE 4                    | the packet inside      32 or 52
//! ```
//!
//! The outer header has 64 hops, and class and ECN of the packet inside (RFC 6040, section 4.1, normal mode). Whether the outer packet may
//! be fragmented is the packet's inside to say: [`Inside::may_be_split`].
//!
//! The checksums of GRE and UDP cover the packet inside, so they are summed from scratch, over all of it. What was damaged inside before
//! is still found by the sums there: these stay as they are. Without a checksum UDP's is zero, over IPv6 as well, where a tunnel may do that (RFC 6935).

use std::fmt;
use std::hash::Hasher;
use std::net::IpAddr;

use super::checksum::{self, fold};
use super::version::{Fragment, Version};
use super::{ethernet, ipv4, ipv6, read16};
use crate::key::KeyHasher;

/// Protocol numbers (IANA): a packet of IPv4 inside, one of IPv6.
const FOUR: u8 = 4;
const SIX: u8 = 41;
const UDP: u8 = 17;
const GRE: u8 = 47;

/// GRE's flag of a checksum.
const GRE_CHECKSUM: u8 = 0x80;
/// UDP, then GUE.
const GUE_HEADERS: usize = 12;
/// Where ephemeral ports begin (RFC 6335).
const EPHEMERAL: u16 = 0xC000;

/// How a packet is put into another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP in IP.
    #[default]
    Ipip,
    /// GRE.
    Gre {
        /// With a checksum.
        checksum: bool,
    },
    /// GUE in UDP.
    Gue {
        /// The destination port.
        port: u16,
        /// With UDP's checksum.
        checksum: bool,
    },
}

/// As `ipvsadm -Ln --tun-info` shows it: `ipip`, `gre:-c`, `gue:6080:+c`.
impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = |checksum| if checksum { "+c" } else { "-c" };
        match *self {
            Encapsulation::Ipip => f.write_str("ipip"),
            Encapsulation::Gre { checksum } => write!(f, "gre:{}", sign(checksum)),
            Encapsulation::Gue { port, checksum } => write!(f, "gue:{port}:{}", sign(checksum)),
        }
    }
}

/// Between whom a tunnel is: the addresses of outer packets, as numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// Over IPv4.
    Four {
        /// Who puts packets in.
        source: u32,
        /// Who takes them out.
        destination: u32,
    },
    /// Over IPv6.
    Six {
        /// Who puts packets in.
        source: u128,
        /// Who takes them out.
        destination: u128,
    },
}

impl Outer {
    /// Between these two; `None` if they are of two families.
    pub fn new(source: IpAddr, destination: IpAddr) -> Option<Outer> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Some(Outer::Four { source: source.into(), destination: destination.into() })
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Some(Outer::Six { source: source.into(), destination: destination.into() })
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    /// Who puts packets in.
    pub fn source(&self) -> IpAddr {
        match *self {
            Outer::Four { source, .. } => IpAddr::V4(source.into()),
            Outer::Six { source, .. } => IpAddr::V6(source.into()),
        }
    }

    /// EtherType of outer packets.
    pub const fn ethertype(&self) -> u16 {
        match self {
            Outer::Four { .. } => ethernet::IPV4,
            Outer::Six { .. } => ethernet::IPV6,
        }
    }

    const fn header_length(&self) -> usize {
        match self {
            Outer::Four { .. } => ipv4::HEADER,
            Outer::Six { .. } => ipv6::HEADER,
        }
    }

    fn pseudo_sum(&self, protocol: u8, length: u16) -> u16 {
        match *self {
            Outer::Four { source, destination } => u32::pseudo_sum(source, destination, protocol, length),
            Outer::Six { source, destination } => u128::pseudo_sum(source, destination, protocol, length),
        }
    }
}

/// What of a packet counts for the headers around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Its length, header included.
    pub length: u16,
    /// Whether the outer packet may be fragmented, here and on its way: of IPv4 as the packet says itself (RFC 2003, section 3.1); of IPv6 if it
    /// is one that every link has to take whole, since its sender can make it no shorter (RFC 2473, section 7.1; RFC 4213, section 3.2).
    pub may_be_split: bool,
    /// [`FOUR`] or [`SIX`].
    protocol: u8,
    /// Differentiated services and ECN.
    class: u8,
    /// By what its sender tells it from others, if it is of IPv4; else 0.
    number: u16,
}

impl Inside {
    /// Of a packet of either version, of which the header is there; `None` if it is not.
    #[inline(always)]
    pub fn read(packet: &[u8]) -> Option<Inside> {
        Some(match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk()?;
                let (length, dont_fragment) = ipv4::extent(header);
                let number = ipv4::number(header);
                Inside { length, may_be_split: !dont_fragment, protocol: FOUR, class: header[1], number }
            }
            6 => {
                let header = packet.first_chunk()?;
                let length = ipv6::total_length(header)?;
                let (may_be_split, class) = (length <= ipv6::LEAST_MTU, ipv6::class(header));
                Inside { length, may_be_split, protocol: SIX, class, number: 0 }
            }
            _ => return None,
        })
    }

    /// Takes one hop of those that the packet has left (not 0).
    #[inline(always)]
    pub fn decrement_ttl(&self, packet: &mut [u8]) {
        match self.protocol {
            FOUR => u32::decrement_ttl(packet),
            _ => u128::decrement_ttl(packet),
        }
    }

    /// GRE without flags, version 0.
    const fn gre(&self) -> [u8; 4] {
        let ethertype = if self.protocol == FOUR { ethernet::IPV4 } else { ethernet::IPV6 };
        let [high, low] = ethertype.to_be_bytes();
        [0, 0, high, low]
    }

    /// GUE: variant 0, data, no extension; no flags.
    const fn gue(&self) -> [u8; 4] {
        [0, self.protocol, 0, 0]
    }

    /// By what fragments of an outer packet of IPv4 are put together, without a counter that all workers share: of IPv4 the packet's own
    /// number, mixed with `who` the client is. One of IPv6 has none; if there may be fragments at all, a hash of its headers and of what a
    /// transport begins with.
    fn identification(&self, packet: &[u8], who: u16) -> u16 {
        if self.protocol == SIX && self.may_be_split {
            return hash(&packet[..packet.len().min(64)]) as u16;
        }
        self.number ^ who
    }
}

/// Of as much of a packet as is given.
#[inline(never)]
pub(crate) fn hash(bytes: &[u8]) -> u32 {
    let mut hasher = KeyHasher::default();
    let (words, rest) = bytes.as_chunks();
    words.iter().for_each(|&word| hasher.write_u64(u64::from_be_bytes(word)));
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hasher.write_u64(u64::from_be_bytes(word));
    }
    (hasher.finish() >> 32) as u32
}

impl Encapsulation {
    /// Bytes of the headers around a packet.
    pub const fn overhead(self, outer: &Outer) -> u16 {
        (outer.header_length() + self.between()) as u16
    }

    /// Bytes between the outer header and the packet inside.
    const fn between(self) -> usize {
        match self {
            Encapsulation::Ipip => 0,
            Encapsulation::Gre { checksum: false } => 4,
            Encapsulation::Gre { checksum: true } => 8,
            Encapsulation::Gue { .. } => GUE_HEADERS,
        }
    }

    const fn protocol(self, inside: &Inside) -> u8 {
        match self {
            Encapsulation::Ipip => inside.protocol,
            Encapsulation::Gre { .. } => GRE,
            Encapsulation::Gue { .. } => UDP,
        }
    }

    /// Writes the headers into the first [`Self::overhead`] bytes of a packet, behind which the packet `inside` stands, already as it is
    /// to arrive. `who` is a number of the client's, of 20 bits: routers on the way spread packets over paths and queues by the source port
    /// of GUE, or by IPv6's flow label (RFC 6438), that are made of it.
    #[inline]
    pub fn wrap(self, packet: &mut [u8], outer: &Outer, inside: &Inside, who: u32) {
        let (length, protocol) = (packet.len() as u16, self.protocol(inside));
        let who16 = (who >> 4) as u16;
        let rest = match *outer {
            Outer::Four { source, destination } => {
                let Some((header, rest)) = packet.split_first_chunk_mut() else { return };
                let identification = inside.identification(&rest[self.between()..], who16);
                *header = ipv4::header(length, protocol, source, destination);
                ipv4::carry(header, inside.class, identification, inside.may_be_split);
                rest
            }
            Outer::Six { source, destination } => {
                let Some((header, rest)) = packet.split_first_chunk_mut() else { return };
                *header = ipv6::header(length, protocol, source, destination);
                ipv6::carry(header, inside.class, who);
                rest
            }
        };
        if self != Encapsulation::Ipip {
            self.fill(rest, outer, inside, who16);
        }
    }

    /// Writes what is between the outer header and the packet inside, from there on.
    #[inline(never)]
    fn fill(self, packet: &mut [u8], outer: &Outer, inside: &Inside, who: u16) {
        let length = packet.len() as u16;
        let Some((between, body)) = packet.split_at_mut_checked(self.between()) else { return };
        match self {
            Encapsulation::Ipip => {}
            Encapsulation::Gre { checksum } => {
                between.fill(0);
                between[..4].copy_from_slice(&inside.gre());
                if checksum {
                    between[0] = GRE_CHECKSUM;
                    let sum = !sum_of(&[between, body]);
                    between[4..6].copy_from_slice(&sum.to_be_bytes());
                }
            }
            Encapsulation::Gue { port, checksum } => {
                between[..2].copy_from_slice(&(EPHEMERAL | who).to_be_bytes());
                between[2..4].copy_from_slice(&port.to_be_bytes());
                between[4..6].copy_from_slice(&length.to_be_bytes());
                between[6..8].fill(0);
                between[8..].copy_from_slice(&inside.gue());
                if checksum {
                    let of_parts = u32::from(sum_of(&[between, body]));
                    let sum = fold(of_parts + u32::from(outer.pseudo_sum(UDP, length)));
                    // RFC 768: a checksum that comes out as 0 is sent as 0xFFFF.
                    let sum = if sum == 0xFFFF { sum } else { !sum };
                    between[6..8].copy_from_slice(&sum.to_be_bytes());
                }
            }
        }
    }
}

/// The sum of parts of even length, but for the last.
fn sum_of(parts: &[&[u8]]) -> u16 {
    fold(parts.iter().map(|part| u32::from(checksum::sum(part))).sum())
}

/// A packet with another one inside, or as much of it as an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapped<'a> {
    /// Between whom.
    pub outer: Outer,
    /// How.
    pub encapsulation: Encapsulation,
    /// The packet inside, as far as it is there; its first byte is.
    pub inside: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// Takes a packet apart that [`Encapsulation::wrap`] may have made; `None` if it has not, or too little of it is there to tell.
    pub fn parse(packet: &'a [u8]) -> Option<Wrapped<'a>> {
        match packet.first()? >> 4 {
            4 => Wrapped::of_version::<u32>(packet),
            6 => Wrapped::of_version::<u128>(packet),
            _ => None,
        }
    }

    fn of_version<A: Version>(packet: &'a [u8]) -> Option<Wrapped<'a>> {
        let is_later = |fragment: Option<Fragment>| fragment.is_some_and(|fragment| fragment.offset > 0);
        let ip = A::quoted(packet).filter(|ip| !is_later(ip.fragment))?;
        let rest = packet.get(ip.header_length..)?;
        let (encapsulation, headers, is_six) = match ip.protocol {
            FOUR | SIX => (Encapsulation::Ipip, 0, ip.protocol == SIX),
            GRE => {
                let &[flags, version, high, low] = rest.first_chunk()?;
                let checksum = match [flags, version] {
                    [0, 0] => false,
                    [GRE_CHECKSUM, 0] => true,
                    _ => return None,
                };
                let is_six = is_six(u16::from_be_bytes([high, low]), ethernet::IPV4, ethernet::IPV6)?;
                (Encapsulation::Gre { checksum }, if checksum { 8 } else { 4 }, is_six)
            }
            UDP => {
                let headers = rest.first_chunk::<GUE_HEADERS>()?;
                let [0, protocol, 0, 0] = headers[8..] else { return None };
                let (port, checksum) = (read16(headers, 2), read16(headers, 6) != 0);
                (Encapsulation::Gue { port, checksum }, GUE_HEADERS, is_six(protocol, FOUR, SIX)?)
            }
            _ => return None,
        };
        let inside = rest.get(headers..)?;
        let is_what_it_says = inside.first()? >> 4 == if is_six { 6 } else { 4 };
        let outer = Outer::new(ip.source.ip(), ip.destination.ip())?;
        is_what_it_says.then_some(Wrapped { outer, encapsulation, inside })
    }
}

/// Whether a number of the packet inside is that of IPv6; `None` if it is neither's.
fn is_six<N: PartialEq>(number: N, four: N, six: N) -> Option<bool> {
    if number == six { Some(true) } else { (number == four).then_some(false) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUTER: Outer = Outer::Four { source: 0x0A00_00FE, destination: 0x0A00_0001 };

    /// A UDP packet, 198.51.100.7:40112 > 192.0.2.10:53, 63 hops, ECT(0) and AF11, "don't fragment", identification 0x1234, payload "ab".
    const INSIDE: [u8; 30] = [
        0x45, 0x2A, 0x00, 0x1E, 0x12, 0x34, 0x40, 0x00, 0x3F, 0x11, 0x3D, 0x2C, 198, 51, 100, 7, 192, 0, 2,
        10, //
        0x9C, 0xB0, 0x00, 0x35, 0x00, 0x0A, 0x15, 0x4D, b'a', b'b',
    ];

    /// 2001:db8::fe > 2001:db8::1.
    const OUTER6: Outer = Outer::Six {
        source: 0x2001_0DB8_0000_0000_0000_0000_0000_00FE,
        destination: 0x2001_0DB8_0000_0000_0000_0000_0000_0001,
    };

    /// A UDP packet, [2001:db8:c::7]:40112 > [2001:db8::10]:53, 63 hops, ECT(0) and AF11, flow label 0x12345, payload "ab".
    const INSIDE6: [u8; 50] = [
        0x62, 0xA1, 0x23, 0x45, 0x00, 0x0A, 0x11, 0x3F, //
        0x20, 0x01, 0x0D, 0xB8, 0, 0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, //
        0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, //
        0x9C, 0xB0, 0x00, 0x35, 0x00, 0x0A, 0xA5, 0xFD, b'a', b'b',
    ];

    fn wrapped(encapsulation: Encapsulation, inside: &[u8], who: u16) -> Vec<u8> {
        wrapped_in(&OUTER, encapsulation, inside, u32::from(who) << 4)
    }

    fn wrapped_in(outer: &Outer, encapsulation: Encapsulation, inside: &[u8], who: u32) -> Vec<u8> {
        let mut packet = vec![0xEE; usize::from(encapsulation.overhead(outer))];
        packet.extend(inside);
        encapsulation.wrap(&mut packet, outer, &Inside::read(inside).unwrap(), who);
        packet
    }

    /// The outer header of IPv6: class and ECN copied, a flow label, so many bytes behind it, 64 hops.
    fn six(payload: u8, next: u8) -> Vec<u8> {
        let mut header = vec![0x62, 0xA1, 0x02, 0x03, 0x00, payload, next, 0x40];
        header.extend([0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFE]);
        header.extend([0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header
    }

    #[test]
    fn over_ipv6_to_the_byte() {
        let gre = Encapsulation::Gre { checksum: false };
        let gue = Encapsulation::Gue { port: 6080, checksum: false };
        for (inside, protocol, ethertype) in [(&INSIDE[..], 4, [0x08, 0x00]), (&INSIDE6, 41, [0x86, 0xDD])] {
            let length = inside.len() as u8;
            let wrapped = |encapsulation| wrapped_in(&OUTER6, encapsulation, inside, 0x1_0203);
            assert_eq!(wrapped(Encapsulation::Ipip), [&six(length, protocol), inside].concat());
            assert_eq!(wrapped(gre), [&six(length + 4, 47), &[0, 0][..], &ethertype, inside].concat());
            // The source port is of the upper sixteen of the label's bits.
            let udp = [0xD0, 0x20, 0x17, 0xC0, 0x00, length + 12, 0x00, 0x00, 0x00, protocol, 0x00, 0x00];
            assert_eq!(wrapped(gue), [&six(length + 12, 17), &udp[..], inside].concat());
        }
    }

    #[test]
    fn ipv6_in_ipv4_to_the_byte() {
        let packet = wrapped(Encapsulation::Ipip, &INSIDE6, 0x0102);
        // Class and ECN copied, 70 bytes, a number, no DF, 64 hops, protocol 41.
        assert_eq!((&packet[..4], &packet[6..10]), (&[0x45, 0x2A, 0, 70][..], &[0, 0, 64, 41][..]));
        assert_eq!(
            (checksum::sum(&packet[..20]), &packet[12..20]),
            (0xFFFF, &[10, 0, 0, 254, 10, 0, 0, 1][..])
        );
        assert_eq!(packet[20..], INSIDE6);
        let mut other = INSIDE6;
        other[47] ^= 1;
        assert_ne!(
            wrapped(Encapsulation::Ipip, &other, 0x0102)[4..6],
            packet[4..6],
            "fragments of another packet"
        );
    }

    /// Of IPv6 what every link has to take (RFC 2473, section 7.1).
    #[test]
    fn what_cannot_be_made_shorter_may_be_split() {
        for (length, dont_fragment) in [(1280u16, 0), (1281, 0x40)] {
            let mut inside = INSIDE6.to_vec();
            inside.resize(length.into(), 0);
            inside[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            let packet = wrapped(Encapsulation::Ipip, &inside, 0x0102);
            assert_eq!(packet[6], dont_fragment);
            assert_eq!(packet[4..6] == [1, 2], dont_fragment != 0, "what stays whole needs no number");
        }
    }

    #[test]
    fn the_packet_inside_is_a_good_one() {
        assert_eq!(checksum::sum(&INSIDE[..20]), 0xFFFF);
        assert_eq!(sum_of(&[&INSIDE[12..20], &[0, 17, 0, 10], &INSIDE[20..]]), 0xFFFF);
        assert_eq!(sum_of(&[&INSIDE6[8..40], &[0, 17, 0, 10], &INSIDE6[40..]]), 0xFFFF);
    }

    #[test]
    fn ipip_to_the_byte() {
        // Class and ECN copied, 50 bytes, 0x1234 ^ 0x0102, DF copied, 64 hops, protocol 4.
        let outer = [
            0x45, 0x2A, 0x00, 0x32, 0x13, 0x36, 0x40, 0x00, 0x40, 0x04, 0x12, 0x6A, 10, 0, 0, 254, 10, 0, 0,
            1,
        ];
        assert_eq!(wrapped(Encapsulation::Ipip, &INSIDE, 0x0102), [&outer[..], &INSIDE].concat());
    }

    #[test]
    fn gre_to_the_byte() {
        let outer = [
            0x45, 0x2A, 0x00, 0x36, 0x13, 0x36, 0x40, 0x00, 0x40, 0x2F, 0x12, 0x3B, 10, 0, 0, 254, 10, 0, 0,
            1, //
            0x00, 0x00, 0x08, 0x00,
        ];
        let gre = Encapsulation::Gre { checksum: false };
        assert_eq!(wrapped(gre, &INSIDE, 0x0102), [&outer[..], &INSIDE].concat());
        let outer = [
            0x45, 0x2A, 0x00, 0x3A, 0x13, 0x36, 0x40, 0x00, 0x40, 0x2F, 0x12, 0x37, 10, 0, 0, 254, 10, 0, 0,
            1, //
            0x80, 0x00, 0x08, 0x00, 0x64, 0x60, 0x00, 0x00,
        ];
        let gre = Encapsulation::Gre { checksum: true };
        assert_eq!(wrapped(gre, &INSIDE, 0x0102), [&outer[..], &INSIDE].concat());
    }

    #[test]
    fn gue_to_the_byte() {
        let outer = [
            0x45, 0x2A, 0x00, 0x3E, 0x13, 0x36, 0x40, 0x00, 0x40, 0x11, 0x12, 0x51, 10, 0, 0, 254, 10, 0, 0,
            1, //
            0xC1, 0x02, 0x17, 0xC0, 0x00, 0x2A, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00,
        ];
        let gue = Encapsulation::Gue { port: 6080, checksum: false };
        assert_eq!(wrapped(gue, &INSIDE, 0x0102), [&outer[..], &INSIDE].concat());
        let gue = Encapsulation::Gue { port: 6080, checksum: true };
        let packet = wrapped(gue, &INSIDE, 0x0102);
        assert_eq!(packet[..26], outer[..26]);
        assert_eq!(packet[26..28], [0xFE, 0x35]);
        assert_eq!(packet[28..], [&outer[28..], &INSIDE].concat());
    }

    #[test]
    fn what_may_be_fragmented_inside_may_be_outside() {
        let mut inside = INSIDE;
        inside[6] = 0;
        assert_eq!(
            wrapped(Encapsulation::Ipip, &inside, 0x1234)[4..8],
            [0, 1, 0, 0],
            "and no packet has the number 0"
        );
    }

    fn encapsulations() -> impl Strategy<Value = Encapsulation> {
        prop_oneof![
            Just(Encapsulation::Ipip),
            any::<bool>().prop_map(|checksum| Encapsulation::Gre { checksum }),
            (any::<u16>(), any::<bool>()).prop_map(|(port, checksum)| Encapsulation::Gue { port, checksum }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_wrapped_is_found_and_sums_are_right(
            encapsulation in encapsulations(), payload in prop::collection::vec(any::<u8>(), 0..1400), who in 0u32..1 << 20,
            four_inside in any::<bool>(), four_outside in any::<bool>(),
        ) {
            let header = if four_inside { &INSIDE[..20] } else { &INSIDE6[..40] };
            let inside = [header, &payload].concat();
            let outer = if four_outside { OUTER } else { OUTER6 };
            let header = if four_outside { 20 } else { 40 };
            let packet = wrapped_in(&outer, encapsulation, &inside, who);
            prop_assert_eq!(Wrapped::parse(&packet), Some(Wrapped { outer, encapsulation, inside: &inside }));
            prop_assert!(!four_outside || checksum::sum(&packet[..20]) == 0xFFFF);
            match encapsulation {
                Encapsulation::Gre { checksum: true } => prop_assert_eq!(checksum::sum(&packet[header..]), 0xFFFF),
                Encapsulation::Gue { checksum: true, .. } => {
                    let length = (packet.len() - header) as u16;
                    let addresses = if four_outside { &packet[12..20] } else { &packet[8..40] };
                    prop_assert_eq!(sum_of(&[addresses, &[0, 17], &length.to_be_bytes(), &packet[header..]]), 0xFFFF);
                }
                _ => {}
            }
        }

        #[test]
        fn no_bytes_are_a_panic(packet in prop::collection::vec(any::<u8>(), 0..80), good in any::<bool>()) {
            let mut packet = packet;
            if good && packet.len() > 9 {
                packet[0] = if packet[0] % 2 == 0 { 0x45 } else { 0x60 };
                packet[6] = [FOUR, SIX, GRE, UDP][usize::from(packet[6]) % 4];
                packet[9] = [FOUR, SIX, GRE, UDP][usize::from(packet[9]) % 4];
            }
            Wrapped::parse(&packet);
        }
    }
}
