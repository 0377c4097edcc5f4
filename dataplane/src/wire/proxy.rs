//! The PROXY protocol, version 2 (haproxy.org, `proxy-protocol.txt`): a header in front of a TCP stream says who its client is.
//!
//! Whoever puts it into a stream that goes through moves the stream by its length: sequence numbers one way, and what is
//! acknowledged of them the other way, SACK's edges included (RFC 2018).

use super::checksum::{self, Delta, mend};
use super::transport::TCP_CHECKSUM;
use super::version::Version;
use super::{ethernet, ipv4, read16};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

mod field {
    pub const SEQUENCE: usize = 4;
    pub const ACKNOWLEDGED: usize = 8;
    pub const OFFSET: usize = 12;
    pub const OPTIONS: usize = 20;
}

/// Length of a header for addresses of a family.
pub const fn length<A: Version>() -> usize {
    16 + 2 * size_of::<A>() + 4
}

/// The sequence number of a TCP segment.
pub fn sequence(segment: &[u8]) -> Option<u32> {
    read32(segment, field::SEQUENCE)
}

/// What a TCP segment acknowledges.
pub fn acknowledged(segment: &[u8]) -> Option<u32> {
    read32(segment, field::ACKNOWLEDGED)
}

/// Length of a TCP segment's header.
pub fn header_length(segment: &[u8]) -> Option<usize> {
    Some(usize::from(segment.get(field::OFFSET)? >> 4) * 4)
}

/// Gives a TCP segment another sequence number.
pub fn set_sequence(segment: &mut [u8], sequence: u32) {
    set32(segment, field::SEQUENCE, sequence);
}

/// Maps all that a TCP segment acknowledges.
pub fn map_acknowledged(segment: &mut [u8], map: impl Fn(u32) -> u32) {
    if let Some(number) = acknowledged(segment) {
        set32(segment, field::ACKNOWLEDGED, map(number));
    }
    let Some(header) = header_length(segment) else { return };
    let mut at = field::OPTIONS;
    while let Some((kind, length)) = option(segment, header, at) {
        const SACK: u8 = 5;
        if kind == SACK {
            for edge in
                (at + 2..at + length - length % 4).step_by(4).take_while(|edge| edge + 4 <= at + length)
            {
                if let Some(number) = read32(segment, edge) {
                    set32(segment, edge, map(number));
                }
            }
        }
        at += length;
    }
}

/// Kind and length of the option at this place of a header of this length.
fn option(segment: &[u8], header: usize, at: usize) -> Option<(u8, usize)> {
    let kind = *segment.get(..header)?.get(at)?;
    match kind {
        0 => None,
        1 => Some((kind, 1)),
        _ => {
            let length = usize::from(*segment.get(at + 1)?);
            (length >= 2 && at + length <= header).then_some((kind, length))
        }
    }
}

/// Writes a header into a frame that is longer by its length in front than the packet in it: the segment's header, which ends at
/// `end` in the frame as it was, moves forward, and the stream begins with who it is from and to. False if it would be too long.
pub fn insert<A: Version>(
    frame: &mut [u8],
    transport: usize,
    end: usize,
    from: (A, u16),
    to: (A, u16),
) -> bool {
    let added = length::<A>();
    if frame.len() < end + added {
        return false;
    }
    frame.copy_within(added..added + end, 0);
    let header = &mut frame[end..end + added];
    put(header, from, to);
    let sum = checksum::sum(header);
    let (at, is_four) =
        if A::HEADER == ipv4::HEADER { (ethernet::HEADER + 2, true) } else { (ethernet::HEADER + 4, false) };
    let old = read16(frame, at);
    let Some(new) = old.checked_add(added as u16) else { return false };
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    // The length of the whole packet, or that of its payload: the segment's grows by as much.
    let grown = Delta::word(old, new);
    if is_four {
        mend(frame, ethernet::HEADER + ipv4::CHECKSUM, grown);
    }
    mend(frame, transport + TCP_CHECKSUM, grown.and(Delta::word(0, sum)));
    true
}

fn put<A: Version>(header: &mut [u8], from: (A, u16), to: (A, u16)) {
    const PROXY: u8 = 0x21;
    let family = if A::HEADER == ipv4::HEADER { 0x11 } else { 0x21 };
    let (from_octets, to_octets) = (from.0.octets(), to.0.octets());
    let rest = (header.len() - 16) as u16;
    let parts: [&[u8]; 7] = [
        &SIGNATURE,
        &[PROXY, family],
        &rest.to_be_bytes(),
        from_octets.as_ref(),
        to_octets.as_ref(),
        &from.1.to_be_bytes(),
        &to.1.to_be_bytes(),
    ];
    let mut at = 0;
    for part in parts {
        header[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn set32(segment: &mut [u8], at: usize, new: u32) {
    let Some(old) = read32(segment, at) else { return };
    segment[at..at + 4].copy_from_slice(&new.to_be_bytes());
    let swapped = |number: u32| number.swap_bytes().rotate_left(16);
    // At an odd place its bytes count the other way round.
    let delta = if at.is_multiple_of(2) {
        Delta::double(old, new)
    } else {
        Delta::double(swapped(old), swapped(new))
    };
    mend(segment, TCP_CHECKSUM, delta);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A segment with these options, whose sum is right (without a pseudo-header, which does not change).
    fn segment(sequence: u32, acknowledged: u32, options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x9C, 0xB0, 0, 80];
        segment.extend(sequence.to_be_bytes());
        segment.extend(acknowledged.to_be_bytes());
        segment.extend([((5 + options.len() / 4) as u8) << 4, 0x10, 0xFA, 0xF0, 0, 0, 0, 0]);
        segment.extend(options);
        let sum = !checksum::sum(&segment);
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    #[test]
    fn the_header_is_that_of_the_specification() {
        let mut header = [0; 28];
        put(&mut header, (0xC633_6407_u32, 40_112), (0xC000_020A, 80));
        let expected = [
            &b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x0C"[..],
            &[198, 51, 100, 7, 192, 0, 2, 10, 0x9C, 0xB0, 0, 80],
        ];
        assert_eq!(header, *expected.concat());
        assert_eq!((length::<u32>(), length::<u128>()), (28, 52));
    }

    proptest! {
        #[test]
        fn numbers_and_edges_move_and_the_sum_follows(
            sequence in any::<u32>(), told in any::<u32>(), nothing in 0usize..4, edges in prop::collection::vec(any::<u32>(), 0..4),
        ) {
            let edges = &edges[..edges.len() / 2 * 2];
            let mut options = vec![1; nothing];
            options.extend([5, 2 + 4 * edges.len() as u8]);
            edges.iter().for_each(|edge| options.extend(edge.to_be_bytes()));
            options.resize(options.len().next_multiple_of(4), 0);
            let mut moved = segment(sequence, told, &options);
            set_sequence(&mut moved, sequence.wrapping_add(28));
            map_acknowledged(&mut moved, |number| number.wrapping_sub(28));
            prop_assert_eq!(checksum::sum(&moved), 0xFFFF);
            prop_assert_eq!(super::sequence(&moved), Some(sequence.wrapping_add(28)));
            prop_assert_eq!(acknowledged(&moved), Some(told.wrapping_sub(28)));
            for (index, edge) in edges.iter().enumerate() {
                prop_assert_eq!(read32(&moved, 22 + nothing + 4 * index), Some(edge.wrapping_sub(28)));
            }
        }

        #[test]
        fn no_bytes_are_a_panic(mut segment in prop::collection::vec(any::<u8>(), 18..80)) {
            map_acknowledged(&mut segment, |number| number.wrapping_sub(28));
            set_sequence(&mut segment, 7);
        }
    }
}
