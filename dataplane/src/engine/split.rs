//! Fragments of a packet that is too long for the next link, in a tunnel or routed (RFC 791, section 2.3).
//!
//! Control does this, with packets that a worker has handed over as [`Punt::ToFragment`](crate::counters::Punt::ToFragment); it is not the
//! packet path. Clients that forbid fragments, as all that look for the path's MTU do, never have their packets here.

use crate::fib::NextHop;
use crate::snapshot::Snapshot;
use crate::wire::ipv4::{self, Ipv4};

/// The fragments of an IPv4 packet without options, none longer than the way to its destination takes; none at all if that is not known,
/// or the packet must stay whole.
pub fn fragments(snapshot: &Snapshot, packet: &[u8]) -> Vec<Vec<u8>> {
    let Ok(ip) = Ipv4::parse(packet) else { return Vec::new() };
    let NextHop::Ready(adjacency) = snapshot.fibs.four.look_up(ip.destination) else { return Vec::new() };
    if ip.dont_fragment {
        return Vec::new();
    }
    split(&packet[..usize::from(ip.total_length)], (ip.offset, ip.more_fragments), adjacency.mtu)
        .unwrap_or_default()
}

/// A packet that is itself so far behind the beginning of its datagram, and with more behind it or not.
fn split(packet: &[u8], (offset, has_more): (u16, bool), mtu: u16) -> Option<Vec<Vec<u8>>> {
    let (header, payload) =
        packet.split_first_chunk::<{ ipv4::HEADER }>().filter(|(header, _)| header[0] == 0x45)?;
    // What is too long to be put together is not taken apart. Offsets count in eights.
    u16::try_from(usize::from(offset) + payload.len()).ok()?;
    let longest = usize::from(mtu).checked_sub(ipv4::HEADER)? / 8 * 8;
    let part = |(part, at): (&[u8], usize)| {
        let more_follow = has_more || at + part.len() < payload.len();
        let length = (ipv4::HEADER + part.len()) as u16;
        [&ipv4::of_fragment(header, length, offset + at as u16, more_follow), part].concat()
    };
    (longest > 0).then(|| payload.chunks(longest).zip((0..).step_by(longest)).map(part).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::checksum;

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut inside = ipv4::header(20, 17, 1, 2);
        (inside[4], inside[6]) = (7, 0);
        let length = (20 + payload.len()) as u16;
        [&ipv4::around(&inside, length, 4, 0x0A00_00FE, 0x0A00_0001, 0), payload].concat()
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
