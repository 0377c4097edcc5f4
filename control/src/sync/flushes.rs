//! What operators have flushed, here or at a peer: it is not to come back.
//!
//! All else that peers tell is how a connection is, and a connection that is not there cannot be told of. So a flush is
//! told as what it is, an order with a moment: what it names and what was last seen before that moment is forgotten. A
//! connection that begins afterwards is another one.
//!
//! Clocks of two routers do not agree by a tick or two, so those of the first moments after an order cannot be told from what it
//! means. Therefore who gives an order tells of no connection until it is carried out, at home and by the peer. What it tells
//! afterwards it has itself kept, and the order says nothing against it.
//!
//! Others tell of what they know until the order has come to them, and one that was away tells of everything when it is back.
//! So an order is remembered, and what it covers is not taken over from those who have not carried it out.

use std::sync::Weak;

use dataplane::clock::{COARSE_SHIFT, TICKS_PER_SECOND, Tick};
use dataplane::snapshot::Snapshot;
use dataplane::table::{Table, Word};

use crate::flush::{self, Filter};

/// Orders that are remembered, and for how long: longer than a peer is away that comes back with what it knew.
pub const REMEMBERED: usize = 64;
pub const HOURS: u64 = 1;
const MEMORY: u64 = HOURS * 3600 * TICKS_PER_SECOND as u64;
/// Buckets that are looked through in a turn for one order, and for many so many fewer: some ten milliseconds.
const BUCKETS_AT_ONCE: usize = 1 << 18;

/// Orders to forget connections.
#[derive(Debug, Default)]
pub struct Flushes {
    orders: Vec<Order>,
    /// The next bucket to be looked through. All orders that are not carried out yet share the way.
    next: usize,
    /// Flushes of this router, as long as connections are being removed.
    under_way: Vec<Weak<()>>,
}

#[derive(Debug)]
struct Order {
    giver: Giver,
    filter: Filter,
    /// Connections that were seen later are others.
    at: Tick,
    /// Buckets that have not been looked through.
    left: usize,
}

/// Who has given an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Giver {
    /// This router, which removes the connections itself.
    Here,
    /// A peer, and the order's number there.
    Peer(usize, u32),
}

/// What is known of a connection that a peer tells of.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When it was last seen.
    pub at: Tick,
    /// In units of 64 seconds.
    pub is_coarse: bool,
}

/// Who tells of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Teller {
    /// Which peer.
    pub peer: usize,
    /// It has just seen it change.
    pub is_live: bool,
    /// It has carried out all orders between it and us by now.
    pub has_swept: bool,
}

impl Flushes {
    /// An order of this router, which removes the connections as long as `under_way` lives.
    pub fn remember(&mut self, filter: Filter, at: Tick, under_way: Weak<()>) {
        self.under_way.push(under_way);
        self.add(Order { giver: Giver::Here, filter, at, left: 0 });
    }

    /// An order of a peer, for a table with so many buckets. One that comes again is not obeyed again.
    pub fn obey(&mut self, peer: usize, number: u32, filter: Filter, at: Tick, buckets: usize) {
        let giver = Giver::Peer(peer, number);
        // A peer that has started anew counts from the beginning. An order's moment is not the same tick each time it comes.
        let is_same =
            |order: &Order| order.giver == giver && order.filter == filter && order.at.0.abs_diff(at.0) <= 2;
        if !self.orders.iter().any(is_same) {
            self.add(Order { giver, filter, at, left: buckets });
        }
    }

    fn add(&mut self, order: Order) {
        self.orders.push(order);
        // One that is not carried out yet is not forgotten.
        if self.orders.len() > REMEMBERED
            && let Some(oldest) = self.orders.iter().position(|order| order.left == 0)
        {
            self.orders.remove(oldest);
        }
    }

    /// Whether connections are being removed that this router has flushed.
    pub fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether an order of a peer has been carried out.
    pub fn is_carried_out(&self, peer: usize, number: u32) -> bool {
        let giver = Giver::Peer(peer, number);
        !self.orders.iter().any(|order| order.giver == giver && order.left > 0)
    }

    /// Whether a connection has been flushed that these filters match and that a peer tells of.
    pub fn covers(&self, seen: Seen, teller: Teller, matches: impl Fn(&Filter) -> bool) -> bool {
        self.orders.iter().any(|order| {
            let is_older = if teller.is_live { order.is_after(seen) } else { order.may_be_after(seen) };
            is_older && order.concerns(teller) && matches(&order.filter)
        })
    }

    /// Goes on to remove what peers have ordered, and says how many connections it has removed. To be called often: what is old is
    /// forgotten.
    pub fn go_on(&mut self, table: &Table, snapshot: &Snapshot, now: Tick) -> u64 {
        self.under_way.retain(|flush| flush.strong_count() > 0);
        self.orders.retain(|order| order.left > 0 || now.0 < order.at.0 + MEMORY);
        let mut pending: Vec<&mut Order> = self.orders.iter_mut().filter(|order| order.left > 0).collect();
        if pending.is_empty() {
            return 0;
        }
        let buckets = self.next..table.buckets().min(self.next + (BUCKETS_AT_ONCE / pending.len()).max(1));
        let removed = flush::remove(table, snapshot, buckets.clone(), |slot, word| {
            let seen = Seen::of(word, now);
            let is_meant = |order: &&mut Order| {
                order.may_be_after(seen) && order.filter.matches_word(table, snapshot, slot, word)
            };
            pending.iter().any(is_meant)
        });
        pending.iter_mut().for_each(|order| order.left = order.left.saturating_sub(buckets.len()));
        self.next = buckets.end % table.buckets();
        removed
    }
}

impl Order {
    /// Whether what was seen then may be no newer than the order. Ticks have not the same ends in two routers; of coarse units
    /// three are rounded: who tells of a connection, who hears of it, and who looks.
    fn may_be_after(&self, seen: Seen) -> bool {
        let margin = if seen.is_coarse { 3 << COARSE_SHIFT } else { 1 };
        seen.at.0 <= self.at.0 + margin
    }

    /// Whether it certainly is. What is coarse looks newer than it is, never older.
    fn is_after(&self, seen: Seen) -> bool {
        seen.at.0 + 2 < self.at.0
    }

    /// Whether it says anything against what somebody tells: not if that one has carried it out before, or has given it.
    fn concerns(&self, teller: Teller) -> bool {
        let is_between_us = match self.giver {
            Giver::Here => true,
            Giver::Peer(peer, _) => peer == teller.peer,
        };
        !(is_between_us && teller.has_swept)
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
    use std::sync::Arc;

    use dataplane::table::HashKey;

    use super::*;

    /// One that tells again, and has not carried out anything.
    const TELLER: Teller = Teller { peer: 1, is_live: false, has_swept: false };

    fn client(n: u8) -> Filter {
        Filter { client: Some([198, 51, 100, n].into()), ..Filter::default() }
    }

    fn covers(flushes: &Flushes, n: u8, at: u64, teller: Teller) -> bool {
        flushes.covers(Seen { at: Tick(at), is_coarse: false }, teller, |filter| *filter == client(n))
    }

    /// A table with more buckets than are looked through for 64 orders in a turn, and nothing in it.
    fn world() -> (Table, Snapshot) {
        let table = Table::new(1 << 16, HashKey { blind: 1, factor: 3 });
        assert!(table.buckets() > BUCKETS_AT_ONCE / REMEMBERED);
        (table, Snapshot::new(1, Vec::new(), &[], [], dataplane::fib::Fibs::default()))
    }

    #[test]
    fn what_was_seen_before_the_order_is_covered_and_what_came_after_is_not() {
        let mut flushes = Flushes::default();
        flushes.remember(client(1), Tick(1000), Weak::new());
        let covers = |n, at, teller| covers(&flushes, n, at, teller);
        assert!(covers(1, 10, TELLER) && covers(1, 1001, TELLER), "of one moment");
        assert!(!covers(1, 1002, TELLER) && !covers(2, 10, TELLER));
        let live = Teller { is_live: true, ..TELLER };
        assert!(
            covers(1, 997, live) && !covers(1, 998, live),
            "what has just changed, if it is certainly older"
        );
    }

    #[test]
    fn an_order_says_nothing_against_who_has_carried_it_out_or_given_it() {
        let mut flushes = Flushes::default();
        flushes.remember(client(1), Tick(1000), Weak::new());
        flushes.obey(2, 7, client(2), Tick(1000), 0);
        let covers = |n, peer| covers(&flushes, n, 900, Teller { peer, has_swept: true, ..TELLER });
        assert_eq!([covers(1, 1), covers(1, 2)], [false, false], "ours");
        assert_eq!(
            [covers(2, 1), covers(2, 2)],
            [true, false],
            "of that one, whom another one does not know"
        );
    }

    #[test]
    fn an_order_that_comes_again_is_not_obeyed_again_and_another_one_is() {
        let (table, snapshot) = world();
        let mut flushes = Flushes::default();
        flushes.obey(1, 7, client(1), Tick(1000), table.buckets());
        assert!(!flushes.is_carried_out(1, 7));
        flushes.go_on(&table, &snapshot, Tick(1000));
        for at in [999, 1000, 1001] {
            flushes.obey(1, 7, client(1), Tick(at), table.buckets());
            assert!(flushes.is_carried_out(1, 7), "at {at}");
        }
        // At the same moment, too: something may have been told between the two.
        flushes.obey(1, 8, client(1), Tick(1000), table.buckets());
        assert!(!flushes.is_carried_out(1, 8));
        // It has started anew.
        flushes.obey(1, 7, client(1), Tick(1900), table.buckets());
        assert!(!flushes.is_carried_out(1, 7));
    }

    #[test]
    fn all_orders_of_a_turn_are_carried_out_in_one_pass_and_no_turn_takes_longer_for_many() {
        let (table, snapshot) = world();
        let mut flushes = Flushes::default();
        let count = 2 * REMEMBERED as u32;
        (0..count).for_each(|n| flushes.obey(1, n, client(n as u8), Tick(1000), table.buckets()));
        let is_done = |flushes: &Flushes| (0..count).all(|n| flushes.is_carried_out(1, n));
        let turns = (0..1000).take_while(|_| {
            flushes.go_on(&table, &snapshot, Tick(1000));
            !is_done(&flushes)
        });
        assert_eq!(turns.count() + 1, table.buckets() * count as usize / BUCKETS_AT_ONCE);
    }

    #[test]
    fn an_order_that_comes_while_others_are_carried_out_is_carried_out_whole() {
        let (table, snapshot) = world();
        let mut flushes = Flushes::default();
        (0..64).for_each(|n| flushes.obey(1, n, client(n as u8), Tick(1000), table.buckets()));
        flushes.go_on(&table, &snapshot, Tick(1000));
        flushes.obey(1, 64, client(64), Tick(1000), table.buckets());
        while !flushes.is_carried_out(1, 63) {
            flushes.go_on(&table, &snapshot, Tick(1000));
        }
        assert!(!flushes.is_carried_out(1, 64), "the first buckets are still to come");
        flushes.go_on(&table, &snapshot, Tick(1000));
        assert!(flushes.is_carried_out(1, 64));
    }

    #[test]
    fn neither_too_many_nor_old_ones_are_remembered() {
        let (table, snapshot) = world();
        let mut flushes = Flushes::default();
        (0..200).for_each(|n| flushes.remember(client(n), Tick(u64::from(n)), Weak::new()));
        assert_eq!(flushes.orders.len(), REMEMBERED);
        assert!(!covers(&flushes, 135, 0, TELLER) && covers(&flushes, 136, 0, TELLER));
        flushes.go_on(&table, &snapshot, Tick(MEMORY + 150));
        assert!(!covers(&flushes, 150, 0, TELLER) && covers(&flushes, 151, 0, TELLER));
    }

    #[test]
    fn a_flush_is_under_way_until_who_removes_says_otherwise() {
        let (table, snapshot) = world();
        let (mut flushes, under_way) = (Flushes::default(), Arc::new(()));
        flushes.remember(client(1), Tick(1000), Arc::downgrade(&under_way));
        flushes.go_on(&table, &snapshot, Tick(1000));
        assert!(flushes.is_under_way());
        drop(under_way);
        flushes.go_on(&table, &snapshot, Tick(1000));
        assert!(!flushes.is_under_way());
    }
}
