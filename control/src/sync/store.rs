//! The connection table, as peers see it: by who the dests are, not by their numbers.

use dataplane::changes::is_shared;
use dataplane::clock::Tick;
use dataplane::engine::{Adopted, adopt};
use dataplane::service::State;
use dataplane::snapshot::{Dest, Snapshot};
use dataplane::table::{Client, DestId, FLAG_REPLIED, Slot, Table, Word};
use foldhash::HashMap;

use super::peer::Store;
use super::wire::{Identity, Record};
use crate::ids::{ServerKey, ServiceKey};

/// Ticks that a change may take from there to here: two seconds.
pub const ON_THE_WAY: u32 = 8;

/// Which of our dests an identity is.
#[derive(Debug, Default)]
pub struct Numbers {
    /// The snapshot that it is of.
    generation: Option<u64>,
    by_identity: HashMap<Identity, DestId>,
}

impl Numbers {
    /// Follows the snapshot.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        if self.generation != Some(snapshot.generation) {
            self.generation = Some(snapshot.generation);
            self.by_identity.clear();
            self.by_identity.extend(snapshot.dests().map(|dest| (identity(snapshot, dest), dest.id)));
        }
    }

    /// Our dest of this identity.
    pub fn dest(&self, identity: &Identity) -> Option<DestId> {
        self.by_identity.get(identity).copied()
    }
}

/// What has become of connections that peers told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adoptions {
    /// Not known before.
    pub new: u64,
    /// Known otherwise.
    pub changed: u64,
    /// Known as well or better.
    pub known: u64,
    /// Expired, or of a service or server that is not here.
    pub stale: u64,
    /// The table had no room.
    pub no_room: u64,
}

/// The table, at one moment and under one snapshot.
pub struct View<'a> {
    /// The connections.
    pub table: &'a Table,
    /// Services and servers.
    pub snapshot: &'a Snapshot,
    /// The moment.
    pub now: Tick,
    /// Has followed the snapshot.
    pub numbers: &'a Numbers,
    /// The states that peers are told of.
    pub states: &'a [State],
    /// Counts what peers tell.
    pub adoptions: &'a mut Adoptions,
}

impl Store for View<'_> {
    fn record(&self, slot: Slot) -> Option<Record> {
        let word = self.table.connection(slot).filter(|&word| self.is_told(word))?;
        let (client, state, age) = (word.client().socket(), word.state(), word.age(self.now));
        let replied = word.flags() & FLAG_REPLIED != 0;
        Some(Record { dest: word.dest_number() as u32, client, state, replied, age })
    }

    fn identity(&self, dest: u32) -> Option<Identity> {
        let dest = self.snapshot.dest(DestId::new(dest)?)?;
        Some(identity(self.snapshot, dest))
    }

    fn buckets(&self) -> usize {
        self.table.buckets()
    }

    fn slots(&self, bucket: usize) -> Vec<Slot> {
        let entries = self.table.entries(bucket..bucket + 1);
        entries.filter(|&(_, word)| self.is_told(word)).map(|(slot, _)| slot).collect()
    }

    fn adopt(&mut self, identity: &Identity, record: &Record, live: bool) {
        match self.numbers.dest(identity) {
            Some(dest) => self.take(dest, record, if live { ON_THE_WAY } else { 0 }),
            None => self.adoptions.stale += 1,
        }
    }
}

impl View<'_> {
    /// Takes over a connection of a dest of ours, unless what is known of it is fresher. `slack` is how many ticks older
    /// the news of its state may be.
    pub fn take(&mut self, dest: DestId, record: &Record, slack: u32) {
        let client = Client::new((*record.client.ip()).into(), record.client.port());
        let flags = if record.replied { FLAG_REPLIED } else { 0 };
        let word = Word::new(client, dest).with_state(record.state).with_flags(flags);
        let count = match adopt(self.table, self.snapshot, self.now, word, record.age, slack) {
            Adopted::New => &mut self.adoptions.new,
            Adopted::Changed => &mut self.adoptions.changed,
            Adopted::Known => &mut self.adoptions.known,
            Adopted::Stale => &mut self.adoptions.stale,
            Adopted::NoRoom => &mut self.adoptions.no_room,
        };
        *count += 1;
    }
}

impl View<'_> {
    fn is_told(&self, word: Word) -> bool {
        is_shared(word) && self.states.contains(&word.state())
    }
}

/// Who a dest is.
pub fn identity(snapshot: &Snapshot, dest: &Dest) -> Identity {
    let service = &snapshot.services[dest.service as usize];
    let socket = |address: u32, port| std::net::SocketAddrV4::new(address.into(), port);
    Identity {
        service: ServiceKey {
            address: socket(dest.virtual_address, dest.virtual_port),
            protocol: service.protocol,
        },
        server: ServerKey { address: socket(dest.address, dest.port), mode: service.mode },
    }
}

#[cfg(test)]
mod tests {
    use dataplane::fib::Fib;
    use dataplane::table::HashKey;

    use super::*;

    #[test]
    fn peers_hear_of_the_configured_states_among_those_that_can_be_told() {
        let table = Table::new(16, HashKey { blind: 1, factor: 3 });
        let states = [State::Established, State::TimeWait, State::SynRecv];
        let slots = [0, 1, 2].map(Slot::from_number);
        for (slot, state) in slots.into_iter().zip(states) {
            let word = Word::new(Client::new(slot.number(), 80), DestId::new(1).unwrap()).with_state(state);
            table.replace(slot, Word::EMPTY, word).unwrap();
        }
        let snapshot = Snapshot::new(1, Vec::new(), &[], [], Fib::default());
        let (numbers, mut adoptions) = (Numbers::default(), Adoptions::default());
        let mut told = |states: &[State]| {
            let view = View {
                table: &table,
                snapshot: &snapshot,
                now: Tick(1),
                numbers: &numbers,
                states,
                adoptions: &mut adoptions,
            };
            assert_eq!(
                view.slots(0),
                slots.into_iter().filter(|&slot| view.record(slot).is_some()).collect::<Vec<_>>()
            );
            view.slots(0)
        };
        assert_eq!(told(&states), slots[..2]);
        assert_eq!(told(&[State::Established]), slots[..1]);
    }
}
