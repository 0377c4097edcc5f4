//! What a peer is to hear of: slots of the table, in order.
//!
//! Who changes, who is part of a bulk and whose turn has come again share one queue. A slot stands in it once.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::time::Duration;

use dataplane::table::Slot;
use foldhash::HashMap;

use super::{Counts, Store};
use crate::sync::walk::Walk;

/// Notes that wait for a slow peer. With more, the whole table is sent instead.
const MOST: usize = 1 << 20;
/// Buckets read for a datagram, at most, when there is little in them.
const BUCKETS_AT_ONCE: usize = 1 << 14;
/// What is only told again goes without a change when there is so much of it: headers and the cipher's tag are 49 bytes, a connection ten.
const ENOUGH: usize = 4;

/// A slot whose connection the peer should hear of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) slot: Slot,
    pub(super) kind: Kind,
    pub(super) since: Duration,
    /// It has changed since it was noted.
    has_changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It has changed.
    Live,
    /// The bulk with this number.
    Bulk(u32),
    /// It is told again.
    Healing,
}

impl Note {
    pub(super) fn new(slot: Slot, kind: Kind, since: Duration) -> Note {
        Note { slot, kind, since, has_changed: false }
    }

    /// Whether it has just changed, however it came to be noted.
    pub(super) fn is_change(&self) -> bool {
        self.kind == Kind::Live || self.has_changed
    }
}

/// All notes.
pub(super) struct Notes {
    queue: VecDeque<Note>,
    /// The slots in it, and whether they have changed since.
    noted: HashMap<Slot, bool>,
    /// The bulk that the peer has asked for, if it is on its way.
    bulk: Option<Bulk>,
    walk: Walk,
}

/// A bulk on its way.
#[derive(Debug, Default)]
struct Bulk {
    /// Its number; an earlier one may have been given up.
    number: u32,
    /// The next bucket.
    next: usize,
    /// Connections of it that have been noted and have not come.
    open: usize,
    /// Changes have been lost since it began, so that another one has to follow.
    is_short: bool,
}

impl Notes {
    pub(super) fn new(now: Duration) -> Notes {
        Notes { queue: VecDeque::new(), noted: HashMap::default(), bulk: None, walk: Walk::new(now) }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The oldest change.
    pub(super) fn oldest(&self) -> Option<&Note> {
        self.queue.iter().find(|note| note.kind == Kind::Live)
    }

    /// How much of all buckets has been sent of the bulk that is on its way, from 0 to 1.
    pub(super) fn progress(&self, buckets: usize) -> Option<f64> {
        self.bulk.as_ref().map(|bulk| bulk.next as f64 / buckets.max(1) as f64)
    }

    /// Whether a bulk is on its way, for whose end the peer waits.
    pub(super) fn has_bulk(&self) -> bool {
        self.bulk.is_some()
    }

    /// Whether it is time for a datagram. A change does not wait for company: what the peer has not heard of is lost with this
    /// router. What is only told again goes with the next datagram, whatever that is for.
    pub(super) fn are_due(&self) -> bool {
        let has_changed = |note: &Note| self.noted.get(&note.slot) == Some(&true);
        self.queue.len() >= ENOUGH || self.has_bulk() || self.queue.iter().any(has_changed)
    }

    /// Adds one, unless its slot is noted.
    pub(super) fn add(&mut self, note: Note, counts: &mut Counts) {
        if self.queue.len() >= MOST {
            return self.miss(counts);
        }
        if let Some(has_changed) = self.noted.get_mut(&note.slot) {
            *has_changed |= note.is_change();
        } else {
            self.noted.insert(note.slot, note.is_change());
            self.queue.push_back(note);
            if let Some(bulk) = self.bulk_of(note.kind) {
                bulk.open += 1;
            }
        }
    }

    /// What was lost is noted again, before anything else. False if it has been noted meanwhile.
    pub(super) fn add_again(&mut self, note: Note) -> bool {
        if let Entry::Vacant(place) = self.noted.entry(note.slot) {
            place.insert(note.is_change());
            self.queue.push_front(note);
            return true;
        }
        self.settle(note.kind);
        false
    }

    /// The next one.
    pub(super) fn take(&mut self) -> Option<Note> {
        let note = self.queue.pop_front()?;
        let has_changed = self.noted.remove(&note.slot).unwrap_or_default();
        Some(Note { has_changed, ..note })
    }

    /// Nothing more has to be done about a note.
    pub(super) fn settle(&mut self, kind: Kind) {
        if let Some(bulk) = self.bulk_of(kind) {
            bulk.open -= 1;
        }
    }

    /// Changes are lost. A bulk that is under way comes to its end first: begun anew each time, it might never, and the peer
    /// would wait for it.
    pub(super) fn miss(&mut self, counts: &mut Counts) {
        match &mut self.bulk {
            Some(bulk) => bulk.is_short = true,
            None => self.begin_bulk(counts),
        }
    }

    pub(super) fn begin_bulk(&mut self, counts: &mut Counts) {
        counts.bulks += 1;
        self.queue.clear();
        self.noted.clear();
        self.bulk = Some(Bulk { number: counts.bulks as u32, ..Bulk::default() });
    }

    /// Adds what is due of the bulk and of the walk, up to so many. True if the bulk has come to its end: all of it is known to
    /// the peer.
    pub(super) fn fill(
        &mut self,
        now: Duration,
        enough: usize,
        store: &impl Store,
        counts: &mut Counts,
    ) -> bool {
        let buckets = store.buckets();
        let mut read = 0;
        while self.queue.len() < enough && read < BUCKETS_AT_ONCE {
            let Some(bulk) = self.bulk.as_mut().filter(|bulk| bulk.next < buckets) else { break };
            let slots = store.slots(bulk.next);
            bulk.next += 1;
            let kind = Kind::Bulk(bulk.number);
            read += 1;
            slots.into_iter().for_each(|slot| self.add(Note::new(slot, kind, now), counts));
        }
        if let Some(bulk) = &self.bulk {
            let has_come = bulk.next >= buckets && bulk.open == 0;
            if has_come {
                let is_short = bulk.is_short;
                self.bulk = None;
                self.walk.begin_anew(now);
                if is_short {
                    self.begin_bulk(counts);
                }
            }
            return has_come;
        }
        while self.queue.len() < enough
            && read < BUCKETS_AT_ONCE
            && let Some(turn) = self.walk.step(now, buckets, store.pace())
        {
            read += 1;
            let kind = Kind::Healing;
            store.due(turn).into_iter().for_each(|slot| self.add(Note::new(slot, kind, now), counts));
        }
        false
    }

    /// The bulk that a note is of, if it is still under way.
    fn bulk_of(&mut self, kind: Kind) -> Option<&mut Bulk> {
        self.bulk.as_mut().filter(|bulk| kind == Kind::Bulk(bulk.number))
    }
}
