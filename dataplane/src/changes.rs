//! Which connections have changed, for peer routers.
//!
//! A worker notes the *slot* of a connection whose state has changed, in a ring of its own; whoever sends connections to
//! peers takes the slots out and reads what is in them then. So a note is four bytes, never stale, and a connection that
//! changes three times before it is sent is sent once. Notes are taken only off the short way of packets that change
//! nothing, and cost a locked instruction each. A full ring loses notes, which is counted; the reader, who goes through
//! the whole table now and then, finds what was lost.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::service::State;
use crate::table::{FLAG_REPLIED, Slot, Word};

/// Notes that wait. At 600 000 changes a second, 100 ms of them.
const CAPACITY: usize = 1 << 16;

/// A worker's notes of connections that have changed.
#[derive(Debug)]
pub struct Changes {
    slots: ArrayQueue<Slot>,
    lost: AtomicU64,
}

impl Default for Changes {
    fn default() -> Self {
        Changes::with_room(CAPACITY)
    }
}

impl Changes {
    fn with_room(notes: usize) -> Self {
        Changes { slots: ArrayQueue::new(notes), lost: AtomicU64::new(0) }
    }

    /// Notes that a connection has become this word, if a peer should know it.
    #[inline]
    pub fn note(&self, slot: Slot, word: Word) {
        if is_shared(word) && self.slots.push(slot).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that a mapping of source NAT has changed of which peers should know: by the number of its place
    /// ([`crate::snat::Snats::at`]), which is behind all slots of connections.
    #[inline]
    pub fn note_mapping(&self, number: usize) {
        // A place that has no number is told of when it is its turn.
        if let Ok(number) = number.try_into()
            && self.slots.push(Slot::from_number(number)).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The next connection, or mapping, that has changed.
    pub fn take(&self) -> Option<Slot> {
        self.slots.pop()
    }

    /// Whether all have been taken.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes that found no room so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Whether peers should know of this connection. Of one that is not established there is nothing to lose that its
/// client would not send again, and a flood of what never will be would be told of; nor of a template before one of its
/// connections is. IPVS has the same TCP states but LAST_ACK, and sends UDP unanswered, too.
pub fn is_shared(word: Word) -> bool {
    is_told(word.state(), word.flags() & FLAG_REPLIED != 0)
}

/// The same of a connection in this state, if it is UDP or a template that counts as answered ([`FLAG_REPLIED`]) or not.
pub fn is_told(state: State, replied: bool) -> bool {
    match state {
        State::Udp | State::Template => replied,
        State::Listen | State::Rejected => false,
        state => !state.is_embryonic(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Client, DestId};

    fn word(state: State) -> Word {
        Word::new(Client::new(1, 2), DestId::new(3).unwrap()).with_state(state)
    }

    #[test]
    fn only_what_is_shared_is_noted() {
        let changes = Changes::default();
        changes.note(Slot::default(), word(State::SynRecv));
        assert_eq!(changes.take(), None, "not established");
        changes.note(Slot::default(), word(State::Established));
        assert_eq!(changes.take(), Some(Slot::default()));
    }

    #[test]
    fn lost_notes_are_counted() {
        let changes = Changes::with_room(1);
        for _ in 0..3 {
            changes.note(Slot::default(), word(State::Close));
        }
        assert_eq!(changes.lost(), 2);
    }
}
