//! Stage 3: where a packet's connection is.

use super::BURST;
use super::packet::{Packet, Search, Work};
use crate::service::Protocol;
use crate::snapshot::Snapshot;
use crate::table::{Table, Word};
use crate::wire::prefetch;

/// The order in which the packets are to be worked on. Those whose connection was found come first, so that the
/// others' buckets are there when it is their turn; packets of one flow keep their order.
pub(super) struct Order {
    turns: [u8; BURST],
    /// How many were found.
    pub hits: usize,
}

impl Order {
    /// Whose turn it is, as an index into the packets.
    #[inline(always)]
    pub fn turn(&self, turn: usize) -> usize {
        usize::from(self.turns[turn % BURST]) % BURST
    }
}

/// Stage 3: looks into each packet's home bucket, and prefetches what it leads to: the dest, or the other buckets.
/// Found or not is no branch: it is one in ten, and nobody could predict which.
#[inline(never)]
pub(super) fn look_up_all(snapshot: &Snapshot, table: &Table, work: &mut Work) -> Order {
    let (mut turns, mut missed) = ([0; BURST], [0; BURST]);
    let (mut hits, mut misses) = (0, 0);
    for (index, packet) in work.packets.iter_mut().enumerate().take(work.count) {
        (packet.slot, packet.word) = table.glance(packet.hash, packet.client);
        prefetch(snapshot.transform_of(packet.word));
        let found = packet.word.client() == packet.client;
        turns[hits % BURST] = index as u8;
        missed[misses % BURST] = index as u8;
        hits += usize::from(found);
        misses += usize::from(!found);
    }
    for (turn, &index) in (hits..BURST).zip(&missed[..misses]) {
        table.prefetch_rest(work.packets[usize::from(index) % BURST].hash);
        turns[turn] = index;
    }
    Order { turns, hits }
}

/// Looks into the other buckets of those that were not found. What may begin a connection waits for its turn, and for
/// [`search`]: most of it has no connection, and what is found out now would have to be found out again.
#[inline(never)]
pub(super) fn look_further(snapshot: &Snapshot, table: &Table, order: &Order, work: &mut Work) {
    for turn in order.hits..work.count {
        let packet: &mut Packet = &mut work.packets[order.turn(turn)];
        packet.word = Word::EMPTY;
        if packet.may_begin() {
            packet.search = Search::Due;
            continue;
        }
        if let Some(slot) = table.glance_at_rest(packet.hash, packet.client) {
            packet.slot = slot;
            packet.look_again(table);
            prefetch(snapshot.transform_of(packet.word));
        }
    }
}

/// Looks for a vacancy, or for the connection if the client has one.
#[inline(never)]
pub(super) fn search(table: &Table, packet: &mut Packet) {
    packet.search = Search::Done;
    if let Some(slot) = table.vacancy(packet.hash, packet.client) {
        (packet.slot, packet.search) = (slot, Search::Vacancy);
    } else if packet.protocol == Protocol::Udp
        && let Some(slot) = table.glance_at_rest(packet.hash, packet.client)
    {
        packet.slot = slot;
        packet.look_again(table);
    }
}
