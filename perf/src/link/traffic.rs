//! What the generator sends, and knows again.

use dataplane::service::{Mode, Protocol};
use dpdk::Mbuf;
use harness::packet::Mac;

use crate::frame::{Flags, Frames};
use crate::source::Way;

/// Packets of flows, one flow after the other; by NAT every other packet is a reply.
pub struct Traffic {
    frames: Frames,
    router: Mac,
    length: u16,
    flows: u32,
    ways: &'static [Way],
    next: u32,
}

impl Traffic {
    /// Datagrams of so many flows for a router with this MAC; frames have `length` bytes without FCS.
    pub fn new(mode: Mode, router: Mac, flows: u32, length: u16) -> Traffic {
        let ways: &[Way] = if mode == Mode::Nat { &[Way::In, Way::Out] } else { &[Way::In] };
        Traffic { frames: frames(mode, length), router, length, flows, ways, next: 0 }
    }

    /// The same in one direction, as connections are opened.
    pub fn only(&self, way: Way) -> Traffic {
        let ways: &[Way] = if way == Way::In { &[Way::In] } else { &[Way::Out] };
        Traffic { frames: self.frames.clone(), ways, next: 0, ..*self }
    }

    /// The directions.
    pub fn ways(&self) -> &'static [Way] {
        self.ways
    }

    /// How many flows.
    pub fn flows(&self) -> u32 {
        self.flows
    }

    /// Makes an empty packet the next one.
    #[inline]
    pub fn write(&mut self, mbuf: &mut Mbuf) {
        let number = self.next;
        let ways = self.ways.len() as u32;
        self.next = if number + 1 == self.flows * ways { 0 } else { number + 1 };
        // One or two: a mask and a shift.
        let (flow, way) = (number >> (ways - 1), self.ways[(number & (ways - 1)) as usize]);
        let Some(bytes) = mbuf.append(usize::from(self.length)) else { return };
        let Some((headers, rest)) = bytes.split_first_chunk_mut() else { return };
        self.frames.write(way, self.frames.flow(flow), headers);
        headers[..6].copy_from_slice(&self.router);
        // An earlier packet's mark may end there; everything behind it is zeros for ever.
        if let Some(rest) = rest.first_chunk_mut::<4>() {
            *rest = [0; 4];
        }
    }

    /// Whether a packet that came back is one of ours, and not the router's own ARP.
    #[inline]
    pub fn is_own(&self, frame: &[u8]) -> bool {
        const UDP: u8 = 17;
        frame.len() == usize::from(self.length) && frame[12..14] == [8, 0] && frame[23] == UDP
    }
}

/// The frames of one service with one real server.
pub fn frames(mode: Mode, length: u16) -> Frames {
    Frames::new(mode, Protocol::Udp, Flags::Ack, 1, 1, length)
}

/// Times of departure in packets.
pub trait Marks {
    /// Notes when it left.
    fn mark(&mut self, time: u64);

    /// When it left, if that was noted.
    fn marked(&self) -> Option<u64>;
}

/// Behind Ethernet, IP and UDP.
const MARK: usize = 42;

impl Marks for Mbuf {
    #[inline]
    fn mark(&mut self, time: u64) {
        mark(self.data_mut(), time);
    }

    #[inline]
    fn marked(&self) -> Option<u64> {
        marked(self.data())
    }
}

#[inline]
fn mark(frame: &mut [u8], time: u64) {
    if let Some(place) = frame.get_mut(MARK..MARK + 16) {
        place[..8].copy_from_slice(&time.to_ne_bytes());
        place[8..].copy_from_slice(&(!time).to_ne_bytes());
    }
}

#[inline]
fn marked(frame: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u64::from_ne_bytes(*frame.get(at..)?.first_chunk()?));
    let (time, inverted) = (word(MARK)?, word(MARK + 8)?);
    (time == !inverted).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::wire::checksum;

    #[test]
    fn a_mark_is_read_again_and_changes_no_checksum() {
        let frames = frames(Mode::Nat, 60);
        let mut frame = frames.frame(Way::In, frames.flow(3));
        assert_eq!(marked(&frame), None);
        let before = checksum::sum(&frame[34..]);
        mark(&mut frame, 0x0123_4567_89AB_CDEF);
        assert_eq!(marked(&frame), Some(0x0123_4567_89AB_CDEF));
        assert_eq!(checksum::sum(&frame[34..]), before);
    }
}
