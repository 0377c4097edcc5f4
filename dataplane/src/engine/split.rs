//! Fragments of a packet that is too long for the next link: in a tunnel, of either family, or routed, of IPv4 (RFC 791, section 2.3; RFC 8200,
//! section 4.5, where this router is the source).
//!
//! Control does this, with packets that a worker has handed over as [`Punt::ToFragment`](crate::counters::Punt::ToFragment); it is not the
//! packet path. Clients that forbid fragments, as all that look for the path's MTU do, never have their packets here.

use crate::fib::NextHop;
use crate::snapshot::Snapshot;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, FRAGMENT_HEADER, Ipv6};
use crate::wire::tunnel;

/// The fragments of a packet without options or extensions, none longer than the way to its destination takes; none at all if that is
/// not known, or the packet must stay whole.
pub fn fragments(snapshot: &Snapshot, packet: &[u8]) -> Vec<Vec<u8>> {
    let mtu = |next_hop| match next_hop {
        NextHop::Ready(adjacency) => Some(adjacency.mtu),
        NextHop::Unresolved(_) | NextHop::NoRoute => None,
    };
    let parts = match packet.first().map(|first| first >> 4) {
        Some(4) => Ipv4::parse(packet).ok().filter(|ip| !ip.dont_fragment).and_then(|ip| {
            let mtu = mtu(snapshot.fibs.four.look_up(ip.destination))?;
            split(&packet[..usize::from(ip.total_length)], (ip.offset, ip.more_fragments), mtu)
        }),
        Some(6) => Ipv6::parse(packet).filter(|ip| ip.fragment.is_none()).and_then(|ip| {
            let mtu = mtu(snapshot.fibs.six.look_up(ip.destination))?;
            split_six(&packet[..usize::from(ip.total_length)], mtu)
        }),
        _ => None,
    };
    parts.unwrap_or_default()
}

/// A packet that is itself so far behind the beginning of its datagram, and with more behind it or not.
fn split(packet: &[u8], (offset, has_more): (u16, bool), mtu: u16) -> Option<Vec<Vec<u8>>> {
    let (header, payload) =
        packet.split_first_chunk::<{ ipv4::HEADER }>().filter(|(header, _)| header[0] == 0x45)?;
    // What is too long to be put together is not taken apart.
    u16::try_from(usize::from(offset) + payload.len()).ok()?;
    let part = |part: &[u8], at: usize, more_follow| {
        let length = (ipv4::HEADER + part.len()) as u16;
        [&ipv4::of_fragment(header, length, offset + at as u16, has_more || more_follow), part].concat()
    };
    parts(payload, usize::from(mtu).checked_sub(ipv4::HEADER)?, part)
}

/// Their identification is a hash of all that they carry, so that nobody else can tell the next one (RFC 7739), and without a counter.
fn split_six(packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
    let (header, payload) = packet.split_first_chunk::<{ ipv6::HEADER }>()?;
    let identification = tunnel::hash(payload);
    let part = |part: &[u8], at: usize, more_follow| {
        ipv6::fragment(header, identification, (part, at as u16), more_follow)
    };
    parts(payload, usize::from(mtu).checked_sub(ipv6::HEADER + FRAGMENT_HEADER)?, part)
}

/// Makes a packet of each part of a payload, of which so many bytes fit into one: by the part, its place, and whether others follow.
fn parts(payload: &[u8], room: usize, part: impl Fn(&[u8], usize, bool) -> Vec<u8>) -> Option<Vec<Vec<u8>>> {
    // Offsets count in eights.
    let longest = room / 8 * 8;
    let place = (0..).step_by(longest.max(1));
    let make = |(bytes, at): (&[u8], usize)| part(bytes, at, at + bytes.len() < payload.len());
    (longest > 0).then(|| payload.chunks(longest).zip(place).map(make).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::checksum;

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut header = ipv4::header((20 + payload.len()) as u16, 4, 0x0A00_00FE, 0x0A00_0001);
        ipv4::carry(&mut header, 0, 0x0700, true);
        [&header, payload].concat()
    }

    #[test]
    fn by_hand() {
        let payload: Vec<u8> = (0..30).collect();
        let parts = split(&packet(&payload), (0, false), 44).unwrap();
        // 24 bytes with more to follow, and 6 from the third eight on.
        assert_eq!(parts.len(), 2);
        assert_eq!((&parts[0][2..8], &parts[0][20..]), (&[0, 44, 7, 0, 0x20, 0][..], &payload[..24]));
        assert_eq!((&parts[1][2..8], &parts[1][20..]), (&[0, 26, 7, 0, 0, 3][..], &payload[24..]));
    }

    proptest! {
        #[test]
        fn they_are_the_packet(
            payload in prop::collection::vec(any::<u8>(), 1..4000),
            eights in 0u16..7000,
            has_more: bool,
            mtu in 28u16..1600,
        ) {
            let whole = packet(&payload);
            let mut rebuilt: Vec<u8> = Vec::new();
            let parts = split(&whole, (8 * eights, has_more), mtu).unwrap();
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(part.len() <= usize::from(mtu));
                prop_assert_eq!(checksum::sum(&part[..20]), 0xFFFF);
                let (length, word) = (u16::from_be_bytes([part[2], part[3]]), u16::from_be_bytes([part[6], part[7]]));
                prop_assert_eq!(usize::from(length), part.len());
                prop_assert_eq!(usize::from((word & 0x1FFF) - eights) * 8, rebuilt.len());
                prop_assert_eq!(word & 0x2000 != 0, has_more || index + 1 < parts.len());
                prop_assert_eq!((&part[4..6], &part[8..10], &part[12..20]), (&whole[4..6], &whole[8..10], &whole[12..20]));
                rebuilt.extend(&part[20..]);
            }
            prop_assert_eq!(rebuilt, payload);
        }
    }
}
