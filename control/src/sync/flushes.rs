//! What operators have flushed, here or at a peer: it is not to come back.
//!
//! All else that peers tell is how a connection is, and a connection that is not there cannot be told of. So a flush is
//! told as what it is, an order with a moment: what it names and what was last seen before that moment is forgotten. A
//! connection that begins afterwards is another one and stays, whenever the order comes and however often.
//!
//! Peers tell of what they know until the order has come to them, and one that was away tells of everything when it is back.
//! So an order is remembered, and what it covers is not taken over from anybody who tells of it once more.

use dataplane::clock::{COARSE_SHIFT, TICKS_PER_SECOND, Tick};
use dataplane::snapshot::Snapshot;
use dataplane::table::{Table, Word};

use crate::flush::{self, Filter};

/// Orders that are remembered, and for how long: longer than a peer is away that comes back with what it knew.
pub const REMEMBERED: usize = 64;
pub const HOURS: u64 = 1;
/// Buckets that are looked through in a turn: some ten milliseconds. Few turns, since what begins anew within the tick of the order
/// would be taken for what is meant.
const BUCKETS_AT_ONCE: usize = 1 << 18;

/// Orders to forget connections.
#[derive(Debug, Default)]
pub struct Flushes(Vec<Order>);

#[derive(Debug)]
struct Order {
    filter: Filter,
    /// Connections that were seen later are others.
    at: Tick,
    /// The next bucket to be looked through; all of them have been, if there are no more.
    next: usize,
}

/// What is compared of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When it was last seen.
    pub at: Tick,
    /// In units of 64 seconds, of which one may be missing.
    pub is_coarse: bool,
}

impl Flushes {
    /// An order of this router, which has removed the connections itself.
    pub fn remember(&mut self, filter: Filter, at: Tick) {
        self.add(filter, at, usize::MAX);
    }

    /// An order of a peer. One that has come before is not obeyed again.
    pub fn obey(&mut self, filter: Filter, at: Tick) {
        if !self.0.iter().any(|order| order.filter == filter && at.0 <= order.at.0 + 1) {
            self.add(filter, at, 0);
        }
    }

    fn add(&mut self, filter: Filter, at: Tick, next: usize) {
        self.0.retain(|order| {
            order.filter != filter && order.at.0 + HOURS * 3600 * u64::from(TICKS_PER_SECOND) > at.0
        });
        if self.0.len() >= REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(Order { filter, at, next });
    }

    /// Whether a connection has been flushed that these filters match.
    pub fn covers(&self, seen: Seen, matches: impl Fn(&Filter) -> bool) -> bool {
        self.0.iter().any(|order| order.precedes(seen) && matches(&order.filter))
    }

    /// Goes on to remove what peers have ordered, and says how many connections it has removed.
    pub fn go_on(&mut self, table: &Table, snapshot: &Snapshot, now: Tick) -> u64 {
        let mut removed = 0;
        for order in self.0.iter_mut().filter(|order| order.next < table.buckets()) {
            let until = (order.next + BUCKETS_AT_ONCE).min(table.buckets());
            let buckets = std::mem::replace(&mut order.next, until)..until;
            removed += flush::remove(table, snapshot, buckets, |word| {
                order.precedes(Seen::of(word, now)) && order.filter.matches_word(snapshot, word)
            });
        }
        removed
    }
}

impl Order {
    /// Whether what was seen then is no newer than the order. Ticks have not the same ends in two routers.
    fn precedes(&self, seen: Seen) -> bool {
        let margin = if seen.is_coarse { 1 << COARSE_SHIFT } else { 1 };
        seen.at.0 <= self.at.0 + margin
    }
}

impl Seen {
    /// What is known of a word.
    fn of(word: Word, now: Tick) -> Seen {
        Seen { at: Tick(now.0.saturating_sub(word.age(now).into())), is_coarse: word.is_coarse() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(n: u8) -> Filter {
        Filter { client: Some(Ipv4Addr::new(198, 51, 100, n)), ..Filter::default() }
    }

    fn covers(flushes: &Flushes, n: u8, at: u64) -> bool {
        flushes.covers(Seen { at: Tick(at), is_coarse: false }, |filter| *filter == client(n))
    }

    #[test]
    fn what_was_seen_before_the_order_is_covered_and_what_came_after_is_not() {
        let mut flushes = Flushes::default();
        flushes.remember(client(1), Tick(1000));
        assert!(covers(&flushes, 1, 10) && covers(&flushes, 1, 1001), "of one moment");
        assert!(!covers(&flushes, 1, 1002) && !covers(&flushes, 2, 10));
        flushes.remember(client(1), Tick(2000));
        assert!(covers(&flushes, 1, 1500));
        assert_eq!(flushes.0.len(), 1, "the later order says more");
        let coarse = Seen { at: Tick(2200), is_coarse: true };
        assert!(flushes.covers(coarse, |_| true), "a coarse moment is a minute");
    }

    #[test]
    fn an_order_that_has_come_before_is_not_obeyed_again() {
        let mut flushes = Flushes::default();
        flushes.obey(client(1), Tick(1000));
        flushes.0[0].next = usize::MAX;
        flushes.obey(client(1), Tick(999));
        flushes.obey(client(1), Tick(1001));
        assert_eq!(flushes.0[0].next, usize::MAX);
        flushes.obey(client(1), Tick(1004));
        assert_eq!(flushes.0[0].next, 0, "another one");
    }

    #[test]
    fn neither_too_many_nor_old_ones_are_remembered() {
        let mut flushes = Flushes::default();
        (0..200).for_each(|n| flushes.obey(client(n), Tick(u64::from(n))));
        assert_eq!(flushes.0.len(), REMEMBERED);
        assert!(!covers(&flushes, 135, 0) && covers(&flushes, 136, 0));
        flushes.obey(client(1), Tick(HOURS * 3600 * u64::from(TICKS_PER_SECOND) + 300));
        assert_eq!(flushes.0.len(), 1);
    }
}
