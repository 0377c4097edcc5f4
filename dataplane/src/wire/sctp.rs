//! SCTP (RFC 9260), as far as a balancer looks into it: ports, what its chunks say of the association, and the checksum.
//!
//! The checksum is a CRC32c over the whole packet, without a pseudo header: other addresses do not change it. Other ports do, and as
//! with those of TCP ([`super::checksum`]) it is not made anew, which would turn a damaged packet into one that looks right, but
//! changed by what the ports have changed. A CRC is linear: that of the difference, with as many zeros behind it as the packet goes
//! on, is the difference of the CRCs. So the payload is not even read.

use super::read16;

mod field {
    pub const CHECKSUM: usize = 8;
    /// Where the chunks begin.
    pub const CHUNKS: usize = 12;
    /// In a chunk.
    pub const LENGTH: usize = 2;
}

/// Length of the common header.
pub(super) const HEADER: usize = field::CHUNKS;
/// Where the checksum is.
pub(super) const CHECKSUM: usize = field::CHECKSUM;
/// Length of a chunk's header.
const CHUNK: usize = 4;

/// What a packet says of its association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing new: data, acknowledgements, heartbeats, and what is not known.
    Data,
    /// INIT: it begins.
    Init,
    /// INIT ACK, with a cookie.
    InitAck,
    /// COOKIE ECHO: the cookie comes back.
    CookieEcho,
    /// COOKIE ACK.
    CookieAck,
    /// SHUTDOWN.
    Shutdown,
    /// SHUTDOWN ACK.
    ShutdownAck,
    /// SHUTDOWN COMPLETE.
    ShutdownComplete,
    /// ERROR.
    Error,
    /// ABORT.
    Abort,
}

/// What an event is in a packet's flags beside its number: it goes the long way, as do SYN, FIN and RST of TCP.
const MOVES: u8 = 7;

impl Event {
    /// All of them, by their numbers.
    pub const ALL: [Event; 10] = [
        Event::Data,
        Event::Init,
        Event::InitAck,
        Event::CookieEcho,
        Event::CookieAck,
        Event::Shutdown,
        Event::ShutdownAck,
        Event::ShutdownComplete,
        Event::Error,
        Event::Abort,
    ];

    /// In the place of TCP's flags: 0 if there is nothing new.
    pub const fn flags(self) -> u8 {
        if matches!(self, Event::Data) { 0 } else { (self as u8) << 3 | MOVES }
    }

    /// The event with these flags.
    pub fn of_flags(flags: u8) -> Event {
        Self::ALL.get(usize::from(flags >> 3)).copied().unwrap_or(Event::Data)
    }

    /// What a chunk of this type says (RFC 9260, section 3.2).
    const fn of_chunk(kind: u8) -> Event {
        match kind {
            1 => Event::Init,
            2 => Event::InitAck,
            6 => Event::Abort,
            7 => Event::Shutdown,
            8 => Event::ShutdownAck,
            9 => Event::Error,
            10 => Event::CookieEcho,
            11 => Event::CookieAck,
            14 => Event::ShutdownComplete,
            _ => Event::Data,
        }
    }

    /// What a packet says, of which so much is there. Of several chunks an ABORT counts before all others, else the first that says
    /// anything. (IPVS looks at the first one only, and misses a SHUTDOWN behind a SACK.)
    pub fn of_packet(packet: &[u8]) -> Event {
        let mut event = Event::Data;
        let mut rest = packet.get(field::CHUNKS..).unwrap_or_default();
        while rest.len() >= CHUNK {
            match Event::of_chunk(rest[0]) {
                Event::Abort => return Event::Abort,
                other if event == Event::Data => event = other,
                _ => {}
            }
            let length = usize::from(read16(rest, field::LENGTH));
            if length < CHUNK {
                break;
            }
            // Padding is not counted (section 3.2).
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        event
    }
}

/// Replaces the port that stands at a place in a packet, which ends where its bytes do.
#[cold]
#[inline(never)]
pub(super) fn set_port(packet: &mut [u8], at: usize, port: u16) {
    let change = change(packet.len(), at, read16(packet, at), port);
    packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
    for (byte, change) in packet[field::CHECKSUM..field::CHUNKS].iter_mut().zip(change) {
        *byte ^= change;
    }
}

/// What the checksum changes by (xor) when the port at a place, in a packet of so many bytes, becomes another.
pub(super) fn change(length: usize, at: usize, old: u16, new: u16) -> [u8; 4] {
    if old == new {
        return [0; 4];
    }
    // What a CRC adds to what it is of, at both ends, is the same with the old port and the new.
    let [old, new] = [old, new].map(|port| crc32c::crc32c(&port.to_be_bytes()));
    crc32c::crc32c_combine(old ^ new, 0, length.saturating_sub(at + 2)).to_le_bytes()
}

/// The checksum of a packet, as it stands there (RFC 9260, appendix A).
pub(super) fn checksum(packet: &[u8]) -> [u8; 4] {
    let header = crc32c::crc32c(&packet[..field::CHECKSUM]);
    let header = crc32c::crc32c_append(header, &[0; 4]);
    crc32c::crc32c_append(header, &packet[field::CHUNKS..]).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(chunks: &[&[u8]]) -> Vec<u8> {
        [&[0; HEADER][..], &chunks.concat()].concat()
    }

    #[test]
    fn chunks_are_walked_as_far_as_they_go() {
        let sack: &[u8] = &[3, 0, 0, 6, 0, 0, 0, 0];
        let of = |chunks: &[&[u8]]| Event::of_packet(&packet(chunks));
        assert_eq!(of(&[]), Event::Data);
        assert_eq!(of(&[sack]), Event::Data);
        assert_eq!(of(&[sack, &[7, 0, 0, 8, 0, 0, 0, 1]]), Event::Shutdown);
        assert_eq!(of(&[&[11, 0, 0, 4], &[0, 3, 0, 17], &[0; 16]]), Event::CookieAck);
        assert_eq!(of(&[&[10, 0, 0, 5, 9, 0, 0, 0], &[6, 0, 0, 4]]), Event::Abort);
        assert_eq!(of(&[&[1, 0, 0, 0], &[6, 0, 0, 4]]), Event::Init, "a length that cannot be ends the walk");
        assert_eq!(of(&[&[0, 3, 0xFF, 0xFF], &[6, 0, 0, 4]]), Event::Data);
        for event in Event::ALL {
            assert_eq!(Event::of_flags(event.flags()), event);
        }
    }

    proptest! {
        #[test]
        fn a_changed_checksum_is_that_of_the_changed_packet(
            mut bytes in prop::collection::vec(any::<u8>(), HEADER..1500),
            port: u16,
            at in prop::sample::select(vec![0usize, 2]),
            damage: bool,
        ) {
            let right = checksum(&bytes);
            bytes[field::CHECKSUM..HEADER].copy_from_slice(&right);
            bytes[field::CHECKSUM] ^= u8::from(damage);
            set_port(&mut bytes, at, port);
            prop_assert_eq!(read16(&bytes, at), port);
            prop_assert_eq!(bytes[field::CHECKSUM..HEADER] == checksum(&bytes), !damage);
        }

        #[test]
        fn no_bytes_are_read_that_are_not_there(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            Event::of_packet(&bytes);
        }
    }
}
