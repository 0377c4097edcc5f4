//! IPv6 headers (RFC 8200), and the extension headers before the transport's.

use super::read16;
use super::version::Fragment;

mod field {
    pub const PAYLOAD_LENGTH: usize = 4;
    pub const NEXT: usize = 6;
    pub const HOP_LIMIT: usize = 7;
}

/// Where the source address is in a header.
pub(super) const SOURCE: usize = 8;
/// Where the destination address is.
pub(super) const DESTINATION: usize = 24;

/// Length of the header, without extensions.
pub const HEADER: usize = 40;
/// Length of a fragment header.
pub const FRAGMENT_HEADER: usize = 8;
/// The least MTU of a link.
pub const LEAST_MTU: u16 = 1280;

/// Next header: ICMPv6.
pub const ICMPV6: u8 = 58;

/// Extension headers, by their numbers.
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
}

/// Extension headers that are walked: RFC 8200 has five kinds that may come before the transport header, one of them twice, and hosts
/// send one or none. A longer chain is a way to make routers work.
const MOST_EXTENSIONS: usize = 6;
/// So many bytes of them, at the most.
const LONGEST_CHAIN: usize = 256;

/// What a balancer needs of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Where the payload begins: length of the header with extensions.
    pub header_length: usize,
    /// Length of header, extensions and payload.
    pub total_length: u16,
    /// Hops that are left.
    pub hop_limit: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// What of its datagram it is, if that has been fragmented.
    pub fragment: Option<Fragment>,
    /// Whether its sender wants it to go by other hosts on its way (a routing header with segments left).
    pub is_routed: bool,
    /// Source address.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
}

impl Ipv6 {
    /// Reads the header of a packet that may have padding behind it, and walks its extensions, within bounds. `None` if lengths
    /// contradict each other or the frame, or if there are more extensions than anybody needs.
    ///
    /// Behind the fragment header of a fragment that is not the first there is no header: the walk ends there.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let ip = Ipv6::quoted(packet.get(..total_length(packet.first_chunk()?)?.into())?)?;
        (ip.header_length <= ip.total_length.into()).then_some(ip)
    }

    /// The same of a packet as an error quotes it, which may be cut off behind its headers.
    pub(super) fn quoted(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<HEADER>()?;
        let total_length = total_length(header)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let mut ip = Ipv6 {
            header_length: HEADER,
            total_length,
            hop_limit: header[field::HOP_LIMIT],
            protocol: header[field::NEXT],
            fragment: None,
            is_routed: false,
            source: read128(header, SOURCE),
            destination: read128(header, DESTINATION),
        };
        for _ in 0..MOST_EXTENSIONS {
            let is_later = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
            if is_later || !ip.walk(packet)? {
                return Some(ip);
            }
        }
        None
    }

    /// Goes behind one extension header; false if there is none.
    fn walk(&mut self, packet: &[u8]) -> Option<bool> {
        let here = &packet[self.header_length..];
        let length = match self.protocol {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                (usize::from(*here.get(1)?) + 1) * 8
            }
            extension::FRAGMENT => FRAGMENT_HEADER,
            _ => return Some(false),
        };
        let header = here.get(..length)?;
        match self.protocol {
            extension::ROUTING => self.is_routed |= header[3] > 0,
            // One, and not of one that is a fragment already.
            extension::FRAGMENT if self.fragment.is_some() => return None,
            extension::FRAGMENT => {
                let offset = read16(header, 2);
                // One that has all of its datagram is none (RFC 6946).
                if offset & 0xFFF9 != 0 {
                    self.fragment = Some(Fragment {
                        offset: offset & 0xFFF8,
                        more: offset & 1 != 0,
                        identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                    });
                }
            }
            _ => {}
        }
        self.protocol = header[0];
        self.header_length += length;
        (self.header_length - HEADER <= LONGEST_CHAIN).then_some(true)
    }
}

/// Length of a packet with this header; none if it is longer than any.
pub(super) fn total_length(header: &[u8; HEADER]) -> Option<u16> {
    (HEADER as u16).checked_add(read16(header, field::PAYLOAD_LENGTH))
}

fn read128(header: &[u8; HEADER], at: usize) -> u128 {
    u128::from_be_bytes(std::array::from_fn(|index| header[at + index]))
}

/// The header of a packet that this router makes: so many bytes in all (and no less than the header), 64 hops.
pub fn header(length: u16, protocol: u8, source: u128, destination: u128) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = 0x60;
    let payload = length.saturating_sub(HEADER as u16);
    header[field::PAYLOAD_LENGTH..field::NEXT].copy_from_slice(&payload.to_be_bytes());
    (header[field::NEXT], header[field::HOP_LIMIT]) = (protocol, 64);
    set_source(&mut header, source);
    set_destination(&mut header, destination);
    header
}

/// The traffic class of a header: differentiated services and ECN.
pub(super) fn class(header: &[u8; HEADER]) -> u8 {
    header[0] << 4 | header[1] >> 4
}

/// Makes a header that of a packet with another one inside: its traffic class, and a flow label of 20 bits.
pub(super) fn carry(header: &mut [u8; HEADER], class: u8, label: u32) {
    let word = 6 << 28 | u32::from(class) << 20 | label & 0xF_FFFF;
    header[..field::PAYLOAD_LENGTH].copy_from_slice(&word.to_be_bytes());
}

/// A part of a packet without extensions: its header, a fragment header with this identification, and so much of what it carries, that
/// many bytes behind the first, with or without more to follow (RFC 8200, section 4.5).
pub fn fragment(
    header: &[u8; HEADER],
    identification: u32,
    (part, offset): (&[u8], u16),
    more_follow: bool,
) -> Vec<u8> {
    let mut headers = *header;
    let payload = (FRAGMENT_HEADER + part.len()) as u16;
    headers[field::PAYLOAD_LENGTH..field::NEXT].copy_from_slice(&payload.to_be_bytes());
    headers[field::NEXT] = extension::FRAGMENT;
    let place = (offset & 0xFFF8 | u16::from(more_follow)).to_be_bytes();
    let of_fragment = [&[header[field::NEXT], 0], &place[..], &identification.to_be_bytes()].concat();
    [&headers[..], &of_fragment, part].concat()
}

/// Whether the first header behind that of a packet is one for all routers on the way (RFC 8200, section 4.3).
pub(super) fn has_hop_by_hop(packet: &[u8]) -> bool {
    packet.get(field::NEXT) == Some(&extension::HOP_BY_HOP)
}

/// Gives a header so many hops.
pub(super) fn set_hop_limit(header: &mut [u8; HEADER], hops: u8) {
    header[field::HOP_LIMIT] = hops;
}

/// Takes one hop of those that are left (not 0).
#[inline]
pub fn decrement_hop_limit(header: &mut [u8; HEADER]) {
    header[field::HOP_LIMIT] -= 1;
}

/// Replaces the source address. There is no checksum but that of the transport.
#[inline]
pub fn set_source(header: &mut [u8; HEADER], address: u128) {
    header[SOURCE..DESTINATION].copy_from_slice(&address.to_be_bytes());
}

/// Replaces the destination address.
#[inline]
pub fn set_destination(header: &mut [u8; HEADER], address: u128) {
    header[DESTINATION..].copy_from_slice(&address.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet with these extensions, each with its number, and a payload of this protocol.
    fn packet(extensions: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        bytes.extend((1..=32).collect::<Vec<u8>>());
        let mut next = field::NEXT;
        for (number, extension) in extensions {
            bytes[next] = *number;
            next = bytes.len();
            bytes.extend(*extension);
        }
        bytes[next] = protocol;
        bytes.extend(payload);
        let length = (bytes.len() - HEADER) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    const OPTIONS: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    const LONG_OPTIONS: &[u8] = &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_header_without_extensions() {
        let ip = Ipv6::parse(&[packet(&[], 6, b"data"), vec![0; 9]].concat()).unwrap();
        assert_eq!((ip.header_length, ip.total_length, ip.hop_limit, ip.protocol), (40, 44, 64, 6));
        assert_eq!(ip.source, 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10);
        assert_eq!(ip.destination, 0x1112_1314_1516_1718_191A_1B1C_1D1E_1F20);
        assert_eq!((ip.fragment, ip.is_routed), (None, false));
    }

    #[test]
    fn extensions_are_walked() {
        let extensions = [(0, OPTIONS), (60, LONG_OPTIONS), (43, &[0, 0, 0, 0, 0, 0, 0, 0]), (60, OPTIONS)];
        let ip = Ipv6::parse(&packet(&extensions, 17, b"data")).unwrap();
        assert_eq!((ip.header_length, ip.protocol, ip.is_routed), (40 + 40, 17, false));
        let routed = Ipv6::parse(&packet(&[(43, &[0, 0, 0, 1, 0, 0, 0, 0])], 17, b"data")).unwrap();
        assert!(routed.is_routed);
    }

    #[test]
    fn fragments_say_what_they_are() {
        let of = |offset: u16, extension: &[u8]| {
            let [high, low] = offset.to_be_bytes();
            let header = [0, 0, high, low, 1, 2, 3, 4];
            Ipv6::parse(&packet(&[(60, OPTIONS), (44, &header)], 17, extension))
        };
        let first = of(1, b"data").unwrap().fragment;
        assert_eq!(first, Some(Fragment { offset: 0, more: true, identification: 0x0102_0304 }));
        let last = of(1448, b"data").unwrap();
        assert_eq!(last.fragment, Some(Fragment { offset: 1448, more: false, identification: 0x0102_0304 }));
        assert_eq!((last.protocol, last.header_length), (17, 56));
        // All of its datagram.
        assert_eq!(of(0, b"data").unwrap().fragment, None);
        // What looks like an extension behind a later fragment's header is data.
        let later = [0, 0, 5, 0xA8, 1, 2, 3, 4];
        assert_eq!(Ipv6::parse(&packet(&[(44, &later)], 60, b"")).unwrap().protocol, 60);
    }

    #[test]
    fn what_contradicts_itself_is_none() {
        let good = packet(&[(60, OPTIONS)], 6, b"data");
        assert!(Ipv6::parse(&good).is_some());
        assert_eq!(Ipv6::parse(&good[..good.len() - 1]), None, "cut off");
        assert_eq!(Ipv6::parse(&[&[0x50], &good[1..]].concat()), None, "version 5");
        assert_eq!(Ipv6::parse(&packet(&[(60, &[0, 1, 0, 0, 0, 0, 0, 0])], 6, b"data")), None, "runs out");
        assert_eq!(Ipv6::parse(&packet(&[(60, OPTIONS); 7], 6, b"data")), None, "seven extensions");
        let long = [&[0, 31][..], &[0; 254]].concat();
        assert!(Ipv6::parse(&packet(&[(60, &long)], 6, b"")).is_some());
        assert_eq!(Ipv6::parse(&packet(&[(60, &long), (60, OPTIONS)], 6, b"")), None, "a long chain");
        let first = [0, 0, 0, 1, 0, 0, 0, 1];
        assert_eq!(
            Ipv6::parse(&packet(&[(44, &first), (44, &first)], 6, b"")),
            None,
            "a fragment's fragment"
        );
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() { *first = 0x60; }
            if let Some(ip) = Ipv6::parse(&bytes) {
                prop_assert!(ip.header_length <= usize::from(ip.total_length));
                prop_assert!(usize::from(ip.total_length) <= bytes.len());
            }
        }
    }
}
