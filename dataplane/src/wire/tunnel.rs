//! Packets in packets: IP in IP (RFC 2003), GRE (RFC 2784) and GUE (draft-ietf-intarea-gue, variant 0), as Linux takes them apart.
//!
//! ```text
//!   ipip   IP 20 |                                  | the packet inside      20 bytes more
//!   gre    IP 20 | GRE 4 (8 with a checksum)        | the packet inside      24 or 28
//!   gue    IP 20 | UDP 8 | GUE 4                    | the packet inside      32
//! ```
//!
//! The checksums of GRE and UDP cover the packet inside, so they are summed from scratch, over all of it. What was damaged inside before
//! is still found by the sums there: these stay as they are.

use std::fmt;

use super::checksum::{self, fold};
use super::{ipv4, read16, read32};

const IPIP: u8 = 4;
const UDP: u8 = 17;
const GRE: u8 = 47;

/// GRE's flag of a checksum.
const GRE_CHECKSUM: u8 = 0x80;
/// GRE without flags, version 0, around IPv4.
const GRE_IPV4: [u8; 4] = [0, 0, 0x08, 0x00];
/// GUE: variant 0, data, no extension; IPv4 inside; no flags.
const GUE_IPV4: [u8; 4] = [0, IPIP, 0, 0];
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

impl Encapsulation {
    /// Bytes of the headers around a packet.
    pub const fn overhead(self) -> u16 {
        ipv4::HEADER as u16
            + match self {
                Encapsulation::Ipip => 0,
                Encapsulation::Gre { checksum: false } => 4,
                Encapsulation::Gre { checksum: true } => 8,
                Encapsulation::Gue { .. } => GUE_HEADERS as u16,
            }
    }

    const fn protocol(self) -> u8 {
        match self {
            Encapsulation::Ipip => IPIP,
            Encapsulation::Gre { .. } => GRE,
            Encapsulation::Gue { .. } => UDP,
        }
    }

    /// Writes the headers into the first [`Self::overhead`] bytes of a packet, behind which the packet inside stands, already as it is
    /// to arrive. `who` is a number of the client's: routers on the way spread GUE over paths and queues by the source port that is
    /// made of it.
    pub fn wrap(self, packet: &mut [u8], source: u32, destination: u32, who: u16) {
        let length = packet.len() as u16;
        let Some((headers, inside)) = packet.split_at_mut_checked(usize::from(self.overhead())) else {
            return;
        };
        let Some((outer, between)) = headers.split_first_chunk_mut::<{ ipv4::HEADER }>() else { return };
        let Some(inner) = inside.first_chunk() else { return };
        *outer = ipv4::around(inner, length, self.protocol(), source, destination, who);
        match self {
            Encapsulation::Ipip => {}
            Encapsulation::Gre { checksum } => {
                between.fill(0);
                between[..4].copy_from_slice(&GRE_IPV4);
                if checksum {
                    between[0] = GRE_CHECKSUM;
                    let sum = !sum_of(&[between, inside]);
                    between[4..6].copy_from_slice(&sum.to_be_bytes());
                }
            }
            Encapsulation::Gue { port, checksum } => {
                let segment = length - ipv4::HEADER as u16;
                between[..2].copy_from_slice(&(EPHEMERAL | who).to_be_bytes());
                between[2..4].copy_from_slice(&port.to_be_bytes());
                between[4..6].copy_from_slice(&segment.to_be_bytes());
                between[6..8].fill(0);
                between[8..].copy_from_slice(&GUE_IPV4);
                if checksum {
                    let [high, low] = segment.to_be_bytes();
                    let sum = sum_of(&[&outer[12..], &[0, UDP, high, low], between, inside]);
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
    /// Who has put it in.
    pub source: u32,
    /// Who takes it out.
    pub destination: u32,
    /// How.
    pub encapsulation: Encapsulation,
    /// The packet inside.
    pub inside: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// Takes a packet apart that [`Encapsulation::wrap`] may have made; `None` if it has not, or too little of it is there to tell.
    pub fn parse(packet: &'a [u8]) -> Option<Wrapped<'a>> {
        let (outer, rest) = packet.split_first_chunk::<{ ipv4::HEADER }>()?;
        if outer[0] != 0x45 || ipv4::is_later_fragment(outer) {
            return None;
        }
        let (encapsulation, headers) = match outer[9] {
            IPIP => (Encapsulation::Ipip, 0),
            GRE => match *rest.first_chunk::<4>()? {
                GRE_IPV4 => (Encapsulation::Gre { checksum: false }, 4),
                [GRE_CHECKSUM, 0, 0x08, 0x00] => (Encapsulation::Gre { checksum: true }, 8),
                _ => return None,
            },
            UDP => {
                let headers = rest.first_chunk::<GUE_HEADERS>()?;
                if headers[8..] != GUE_IPV4 {
                    return None;
                }
                let (port, checksum) = (read16(headers, 2), read16(headers, 6) != 0);
                (Encapsulation::Gue { port, checksum }, GUE_HEADERS)
            }
            _ => return None,
        };
        Some(Wrapped {
            source: read32(outer, ipv4::SOURCE),
            destination: read32(outer, ipv4::DESTINATION),
            encapsulation,
            inside: rest.get(headers..)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOURCE: u32 = 0x0A00_00FE;
    const DESTINATION: u32 = 0x0A00_0001;

    /// A UDP packet, 198.51.100.7:40112 > 192.0.2.10:53, 63 hops, ECT(0) and AF11, "don't fragment", identification 0x1234, payload "ab".
    const INSIDE: [u8; 30] = [
        0x45, 0x2A, 0x00, 0x1E, 0x12, 0x34, 0x40, 0x00, 0x3F, 0x11, 0x3D, 0x2C, 198, 51, 100, 7, 192, 0, 2,
        10, //
        0x9C, 0xB0, 0x00, 0x35, 0x00, 0x0A, 0x15, 0x4D, b'a', b'b',
    ];

    fn wrapped(encapsulation: Encapsulation, inside: &[u8], who: u16) -> Vec<u8> {
        let mut packet = vec![0xEE; usize::from(encapsulation.overhead())];
        packet.extend(inside);
        encapsulation.wrap(&mut packet, SOURCE, DESTINATION, who);
        packet
    }

    #[test]
    fn the_packet_inside_is_a_good_one() {
        assert_eq!(checksum::sum(&INSIDE[..20]), 0xFFFF);
        assert_eq!(sum_of(&[&INSIDE[12..20], &[0, 17, 0, 10], &INSIDE[20..]]), 0xFFFF);
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
            encapsulation in encapsulations(), payload in prop::collection::vec(any::<u8>(), 0..1400), who in any::<u16>(),
        ) {
            let inside = [&INSIDE[..20], &payload].concat();
            let packet = wrapped(encapsulation, &inside, who);
            let expected = Wrapped { source: SOURCE, destination: DESTINATION, encapsulation, inside: &inside };
            prop_assert_eq!(Wrapped::parse(&packet), Some(expected));
            prop_assert_eq!(checksum::sum(&packet[..20]), 0xFFFF);
            match encapsulation {
                Encapsulation::Gre { checksum: true } => prop_assert_eq!(checksum::sum(&packet[20..]), 0xFFFF),
                Encapsulation::Gue { checksum: true, .. } => {
                    let length = (packet.len() as u16 - 20).to_be_bytes();
                    prop_assert_eq!(sum_of(&[&packet[12..20], &[0, 17], &length, &packet[20..]]), 0xFFFF);
                }
                _ => {}
            }
        }

        #[test]
        fn no_bytes_are_a_panic(packet in prop::collection::vec(any::<u8>(), 0..80), good in any::<bool>()) {
            let mut packet = packet;
            if good && packet.len() > 9 {
                packet[0] = 0x45;
                packet[9] = [IPIP, GRE, UDP][usize::from(packet[9]) % 3];
            }
            Wrapped::parse(&packet);
        }
    }
}
