//! What is true of an IP packet in a frame, computed from all its bytes (RFC 791, RFC 1071, RFC 8200).

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use dataplane::service::Protocol;

/// What is true of it.
pub(crate) struct Facts {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Hops that are left.
    pub ttl: u8,
    /// Whether the header's checksum is right, if it has one.
    pub header_is_right: bool,
    /// Whether the checksum of TCP, UDP or ICMP is; none where there is none.
    pub payload_is_right: Option<bool>,
    /// The packet without what a router or a NAT changes: hops, addresses, ports, checksums, and what an ICMP message quotes.
    pub rest: Vec<u8>,
}

/// Where things are in a packet.
struct Places {
    /// Where its payload begins.
    payload: usize,
    /// What the payload is.
    protocol: u8,
    is_fragment: bool,
    is_later: bool,
}

impl Facts {
    /// None if it is no IP packet with all its bytes.
    pub fn of(frame: &[u8]) -> Option<Facts> {
        match frame.get(12..14)? {
            [0x08, 0x00] => Facts::of_four(&frame[14..]),
            [0x86, 0xDD] => Facts::of_six(&frame[14..]),
            _ => None,
        }
    }

    fn of_four(packet: &[u8]) -> Option<Facts> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let payload = usize::from(header[0] & 15) * 4;
        let packet = packet.get(..usize::from(u16::from_be_bytes([header[2], header[3]])))?;
        if header[0] >> 4 != 4 || payload < 20 || packet.len() < payload {
            return None;
        }
        let (is_later, more) = (header[6] & 0x1F != 0 || header[7] != 0, header[6] & 0x20 != 0);
        let places = Places { payload, protocol: header[9], is_fragment: is_later || more, is_later };
        let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).ok()?));
        Some(Facts {
            source: address(12)?,
            destination: address(16)?,
            ttl: header[8],
            header_is_right: sum(&packet[..payload]) == 0xFFFF,
            payload_is_right: payload_is_right(packet, 12..20, &places),
            rest: rest(packet, &[8..9, 10..20], &places),
        })
    }

    fn of_six(packet: &[u8]) -> Option<Facts> {
        let header: &[u8; 40] = packet.first_chunk()?;
        let packet = packet.get(..40 + usize::from(u16::from_be_bytes([header[4], header[5]])))?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let mut places = Places { payload: 40, protocol: header[6], is_fragment: false, is_later: false };
        while !places.is_later && [0, 43, 44, 60].contains(&places.protocol) {
            let &[next, length, high, low] = packet.get(places.payload..)?.first_chunk()?;
            if places.protocol == 44 {
                let place = u16::from_be_bytes([high, low]);
                places.is_later = place >> 3 != 0;
                places.is_fragment = place & 0xFFF9 != 0;
                places.payload += 8;
            } else {
                places.payload += (usize::from(length) + 1) * 8;
            }
            places.protocol = next;
        }
        packet.get(places.payload..)?;
        let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).ok()?));
        Some(Facts {
            source: address(8)?,
            destination: address(24)?,
            ttl: header[7],
            header_is_right: true,
            payload_is_right: payload_is_right(packet, 8..40, &places),
            rest: rest(packet, &[7..8, 8..40], &places),
        })
    }
}

/// Where a frame's transport begins that [`Made`](dataplane::wire::made::Made) has made, and whether it is of IPv4.
fn transport(frame: &[u8]) -> (usize, bool) {
    let is_four = frame[12..14] == [0x08, 0x00];
    (if is_four { 34 } else { 54 }, is_four)
}

/// Has a frame that was made say this behind its header, with a right checksum, if it is long enough and no SCTP.
pub(crate) fn say(frame: &mut [u8], bytes: &[u8]) {
    let (transport, is_four) = transport(frame);
    let (protocol, addresses) = if is_four { (frame[23], 26..34) } else { (frame[20], 22..54) };
    let (payload, checksum) = match protocol {
        6 => (transport + 20, transport + 16),
        17 => (transport + 8, transport + 6),
        _ => return,
    };
    let Some(place) = frame.get_mut(payload..payload + bytes.len()) else { return };
    place.copy_from_slice(bytes);
    frame[checksum..checksum + 2].fill(0);
    let end = if is_four { 14 + length_at(frame, 16) } else { 54 + length_at(frame, 18) };
    let length = (end - transport) as u16;
    let pseudo = [&frame[addresses], &[0, protocol], &length.to_be_bytes()].concat();
    let sum = !sum(&[&pseudo, &frame[transport..end]].concat());
    frame[checksum..checksum + 2].copy_from_slice(&if sum == 0 { 0xFFFF } else { sum }.to_be_bytes());
}

fn length_at(frame: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]))
}

/// A frame that was made, in fragments of 8 bytes or more (RFC 791, RFC 8200), with this identification.
pub(crate) fn pieces(frame: &[u8], id: u8) -> Vec<Vec<u8>> {
    let (transport, is_four) = transport(frame);
    let end = if is_four { 14 + length_at(frame, 16) } else { 54 + length_at(frame, 18) };
    let payload = &frame[transport..end];
    let size = (payload.len() / 3).next_multiple_of(8).max(8);
    let piece = |(index, part): (usize, &[u8])| {
        let more = u16::from((index + 1) * size < payload.len());
        let mut header = frame[..transport].to_vec();
        if is_four {
            let place = (more << 13 | (index * size / 8) as u16).to_be_bytes();
            header[16..18].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
            header[18..24].copy_from_slice(&[0, id, place[0], place[1], frame[22], frame[23]]);
            header[24..26].fill(0);
            let sum = !sum(&header[14..34]);
            header[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            let place = ((index * size) as u16 | more).to_be_bytes();
            header[18..20].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
            header[20] = 44;
            header.extend([frame[20], 0, place[0], place[1], 0, 0, 0, id]);
        }
        [&header, part].concat()
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// From whom and to whom a frame is that has TCP or UDP right behind its IP header.
pub(crate) fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, Protocol)> {
    let facts = Facts::of(frame)?;
    let (protocol, transport) = if facts.source.is_ipv4() { (frame[23], 34) } else { (frame[20], 54) };
    let &[high, low, to_high, to_low] = frame.get(transport..)?.first_chunk()?;
    let port = |high, low| u16::from_be_bytes([high, low]);
    let (source, destination) = (port(high, low), port(to_high, to_low));
    let ends = (SocketAddr::new(facts.source, source), SocketAddr::new(facts.destination, destination));
    Some((ends.0, ends.1, Protocol::from_number(protocol)?))
}

fn payload_is_right(
    packet: &[u8],
    addresses: Range<usize>,
    &Places { payload, protocol, is_fragment, .. }: &Places,
) -> Option<bool> {
    let payload = &packet[payload..];
    // The pseudo header's sum: addresses, protocol, length.
    let pseudo = [&packet[addresses], &[0, protocol], &(payload.len() as u16).to_be_bytes()].concat();
    match protocol {
        // A fragment has a part of what its checksum is about.
        _ if is_fragment => None,
        17 if payload.get(6..8) == Some(&[0, 0]) => None,
        6 | 17 | 58 => Some(sum(&[&pseudo, payload].concat()) == 0xFFFF),
        1 => Some(sum(payload) == 0xFFFF),
        _ => None,
    }
}

fn rest(packet: &[u8], changed: &[Range<usize>], places: &Places) -> Vec<u8> {
    let at = |range: Range<usize>| places.payload + range.start..places.payload + range.end;
    let end = packet.len();
    let of_payload = match places.protocol {
        _ if places.is_later => vec![],
        6 => vec![at(0..4), at(16..18)],
        17 => vec![at(0..4), at(6..8)],
        1 | 58 => vec![at(2..4), places.payload + 8..end],
        _ => vec![],
    };
    let mut rest = packet.to_vec();
    for range in changed.iter().cloned().chain(of_payload) {
        rest.get_mut(range).into_iter().for_each(|bytes| bytes.fill(0));
    }
    rest
}

/// The sum in one's complement, over an even number of bytes or one that is filled up.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    ((folded & 0xFFFF) + (folded >> 16)) as u16
}
