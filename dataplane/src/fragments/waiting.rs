//! Fragments that have come before the first of their datagram.
//!
//! A worker's room for packets that wait: [`ROOM`] of them, in groups, of which a pair of hosts has one. A group is a ring: what is
//! new takes the place of what has waited longest. So a datagram can wait in 64 pieces, which is 90 kB of the usual length, more
//! than any has; and all of it takes as much memory as that many buffers of a port.

use std::array;

use super::Tag;
use crate::clock::{TICKS_PER_SECOND, Tick};
use crate::fib::PortIndex;

/// Groups.
const GROUPS: usize = 8;
/// Packets of a group.
const GROUP: usize = 64;
/// Packets that can wait at a time.
pub const ROOM: usize = GROUPS * GROUP;

/// Ticks for which a packet waits: a second, up to a tick more. What was sent together comes within milliseconds.
const PATIENCE: u64 = TICKS_PER_SECOND as u64;

/// A worker's room for packets that wait.
pub struct Waiting<F> {
    slots: Box<[Option<Held<F>>]>,
    /// For each group the place of the next one: that which has waited longest, or an empty one.
    next: [usize; GROUPS],
    count: usize,
    /// The next slot to be looked at.
    turn: usize,
}

struct Held<F> {
    tag: Tag,
    since: Tick,
    port: PortIndex,
    frame: F,
}

impl<F> Default for Waiting<F> {
    fn default() -> Self {
        Waiting { slots: (0..ROOM).map(|_| None).collect(), next: [0; GROUPS], count: 0, turn: 0 }
    }
}

impl<F> Waiting<F> {
    /// How many packets wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Has a packet wait that came in on a port. The answer is the one that goes for it, if one has to.
    pub(crate) fn hold(&mut self, tag: Tag, now: Tick, port: PortIndex, frame: F) -> Option<F> {
        let group = tag.part(GROUPS);
        let place = group * GROUP + self.next[group];
        self.next[group] = (self.next[group] + 1) % GROUP;
        let gone = self.slots[place].replace(Held { tag, since: now, port, frame });
        self.count += usize::from(gone.is_none());
        gone.map(|held| held.frame)
    }

    /// Goes over what waits of a datagram, in the order in which it came; see [`Self::some`].
    pub(crate) fn of(&mut self, tag: Tag, now: Tick, mut ask: impl FnMut(PortIndex, F, bool) -> Option<F>) {
        let group = tag.part(GROUPS);
        let order: [usize; GROUP] = array::from_fn(|index| (self.next[group] + index) % GROUP);
        for index in order {
            let place = group * GROUP + index;
            if self.slots[place].as_ref().is_some_and(|held| held.tag == tag) {
                self.ask(place, now, &mut ask);
            }
        }
    }

    /// Goes over so many places, all in turn. `ask` gets each packet that waits there, with its port and whether its time is over,
    /// and gives it back if it is to wait on.
    pub(crate) fn some(
        &mut self,
        places: usize,
        now: Tick,
        mut ask: impl FnMut(PortIndex, F, bool) -> Option<F>,
    ) {
        for _ in 0..places.min(ROOM) {
            self.ask(self.turn, now, &mut ask);
            self.turn = (self.turn + 1) % ROOM;
        }
    }

    fn ask(&mut self, place: usize, now: Tick, ask: &mut impl FnMut(PortIndex, F, bool) -> Option<F>) {
        let Some(Held { tag, since, port, frame }) = self.slots[place].take() else { return };
        let is_over = now.0.saturating_sub(since.0) > PATIENCE;
        match ask(port, frame, is_over) {
            Some(frame) => self.slots[place] = Some(Held { tag, since, port, frame }),
            None => self.count -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments::{Datagram, Notes};
    use crate::table::HashKey;

    const NOW: Tick = Tick(1000);

    fn notes() -> Notes {
        Notes::new(HashKey { blind: 1, factor: 0x9E37_79B9_7F4A_7C15 })
    }

    fn tag(notes: &Notes, source: u32, identification: u16) -> Tag {
        notes.tag(&Datagram {
            source: source.into(),
            destination: 1,
            protocol: 17,
            identification: identification.into(),
        })
    }

    #[test]
    fn a_datagrams_fragments_come_out_in_their_order() {
        let (notes, mut waiting) = (notes(), Waiting::default());
        let (one, other) = (tag(&notes, 1, 1), tag(&notes, 1, 2));
        // More than a group has room for in all, so that the ring has come round.
        for frame in 0..100u32 {
            let gone = waiting.hold(if frame % 2 == 0 { one } else { other }, NOW, 3, frame);
            assert_eq!(gone, frame.checked_sub(64));
        }
        let mut out = Vec::new();
        waiting.of(one, NOW, |port, frame, is_over| {
            assert_eq!((port, is_over), (3, false));
            out.push(frame);
            None
        });
        assert_eq!(out, (36..100).filter(|frame| frame % 2 == 0).collect::<Vec<_>>());
        assert_eq!(waiting.len(), 32);
        waiting.of(one, NOW, |_, _, _| unreachable!("all have gone"));
    }

    #[test]
    fn who_is_asked_in_vain_waits_on_until_the_time_is_over() {
        let (notes, mut waiting) = (notes(), Waiting::default());
        waiting.hold(tag(&notes, 1, 1), NOW, 0, "a");
        for ticks in 0..=4 {
            let mut asked = 0;
            waiting.some(ROOM, Tick(NOW.0 + ticks), |_, frame, is_over| {
                assert!(!is_over);
                asked += 1;
                Some(frame)
            });
            assert_eq!((asked, waiting.len()), (1, 1), "after {ticks} ticks");
        }
        waiting.some(ROOM, Tick(NOW.0 + 5), |_, _, is_over| {
            assert!(is_over);
            None
        });
        assert!(waiting.is_empty());
    }

    #[test]
    fn all_places_have_their_turn() {
        let (notes, mut waiting) = (notes(), Waiting::default());
        for source in 0..200 {
            waiting.hold(tag(&notes, source, 1), NOW, 0, source);
        }
        let (held, mut asked) = (waiting.len(), 0);
        for _ in 0..ROOM / 16 {
            waiting.some(16, NOW, |_, frame, _| {
                asked += 1;
                Some(frame)
            });
        }
        assert_eq!(asked, held);
    }

    #[test]
    fn a_pair_of_hosts_pushes_out_its_own() {
        let (notes, mut waiting) = (notes(), Waiting::default());
        let flood = tag(&notes, 0, 0).part(GROUPS);
        let others: Vec<Tag> =
            (1..40).map(|source| tag(&notes, source, 1)).filter(|tag| tag.part(GROUPS) != flood).collect();
        others.iter().for_each(|&tag| assert_eq!(waiting.hold(tag, NOW, 0, u16::MAX), None));
        let pushed: Vec<u16> =
            (0..1000).filter_map(|id| waiting.hold(tag(&notes, 0, id), NOW, 0, id)).collect();
        assert_eq!(pushed, (0..1000 - GROUP as u16).collect::<Vec<_>>(), "the oldest of its own");
        assert_eq!(waiting.len(), others.len() + GROUP);
    }
}
