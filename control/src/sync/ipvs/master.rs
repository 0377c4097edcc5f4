//! The side that tells backups.
//!
//! A backup hears of a connection when it changes, and again by the [walk](crate::sync::walk) through the table: so one
//! that joins knows all after a minute, and one that is told of a connection as it is keeps it for as long as we do. A
//! connection that never changes is a reason for the walk, too: a backup forgets it when the timeout that it was told has
//! passed.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use dataplane::table::Slot;

use super::translate::write;
use super::{Counts, Router, wire};
use crate::sync::walk::Walk;

/// How long a change waits for others to fill the message with. Linux waits for two seconds, and RVS does not: who has
/// few changes can pay for small messages, and who has many fills them sooner. What has not been told dies with its
/// director.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Changes that wait. What finds no room is found by the walk through the table, within a minute.
const NOTES: usize = 1 << 20;
/// Buckets read for a message, at most, when there is little in them.
const BUCKETS_AT_ONCE: usize = 1 << 14;

/// Tells of this router's connections.
#[derive(Debug)]
pub struct Master {
    syncid: u8,
    /// Connections of a message.
    room: usize,
    /// Slots to be told of, in order, and since when the first has waited.
    notes: VecDeque<Slot>,
    noted: HashSet<Slot>,
    since: Option<Duration>,
    walk: Walk,
}

impl Master {
    /// One of a group, with messages of so many bytes.
    pub fn new(syncid: u8, maxlen: u16) -> Master {
        Master {
            syncid,
            room: wire::room(maxlen),
            notes: VecDeque::new(),
            noted: HashSet::new(),
            since: None,
            walk: Walk::new(Duration::ZERO),
        }
    }

    /// A connection has changed.
    pub fn note(&mut self, now: Duration, slot: Slot) {
        if self.notes.len() < NOTES && self.noted.insert(slot) {
            self.notes.push_back(slot);
            self.since.get_or_insert(now);
        }
    }

    /// The next message, if one is due. To be asked again until there is none, and every few milliseconds. A router that is
    /// withdrawn says nothing: somebody else has its connections, and knows better how they are.
    pub fn speak(
        &mut self,
        now: Duration,
        router: &impl Router,
        is_withdrawn: bool,
        counts: &mut Counts,
    ) -> Option<Vec<u8>> {
        if is_withdrawn {
            return None;
        }
        self.go_on(now, router);
        let is_late = self.since.is_some_and(|since| now >= since + FLUSH_AFTER);
        if self.notes.len() < self.room && !is_late {
            return None;
        }
        let mut entries = Vec::with_capacity(self.room);
        while entries.len() < self.room
            && let Some(slot) = self.notes.pop_front()
        {
            self.noted.remove(&slot);
            entries.extend(router.connection(slot).as_ref().and_then(write));
        }
        if self.notes.is_empty() {
            self.since = None;
        }
        if entries.is_empty() {
            return None;
        }
        counts.sent += 1;
        counts.connections_sent += entries.len() as u64;
        Some(wire::encode(self.syncid, &entries))
    }

    /// Notes what is due of the walk.
    fn go_on(&mut self, now: Duration, router: &impl Router) {
        for _ in 0..BUCKETS_AT_ONCE {
            if self.notes.len() >= self.room {
                break;
            }
            let Some(turn) = self.walk.step(now, router.buckets(), router.pace()) else { break };
            router.due(turn).into_iter().for_each(|slot| self.note(now, slot));
        }
    }
}
