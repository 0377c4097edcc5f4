//! How many connections are in each state.
//!
//! Nobody keeps these numbers: a worker that did would write a shared counter at every change of state. So the table is
//! read, in a thread that may block and not on a worker's core. A table for ten million connections is 320 MB: to read it
//! took 38 ms when it was empty and 100 ms with five million in it, and all of it goes through the cache that the workers
//! share. Their own sweep does the same every four seconds, so at most one reading in [`PERIOD`] adds an eighth to that,
//! however often somebody scrapes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::clock::Tick;
use dataplane::service::State;
use dataplane::snapshot::Snapshot;
use dataplane::table::Table;

/// The table is not read more often than this; a scrape in between gets the numbers from before.
pub const PERIOD: Duration = Duration::from_secs(30);

/// Connections by state, in the order of [`State::ALL`].
pub type ByState = [u64; State::COUNT];

/// Reads the table, now and then.
#[derive(Debug, Default)]
pub struct States(Mutex<Option<(Instant, ByState)>>);

impl States {
    /// The numbers of a reading that is not older than `period`. Blocks while the table is read, by itself or by another
    /// thread, which it then does not do again.
    pub fn get(&self, period: Duration, read: impl FnOnce() -> ByState) -> ByState {
        // A reading that panicked has left what was there before.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((when, numbers)) if when.elapsed() < period => numbers,
            _ => {
                let numbers = read();
                *last = Some((Instant::now(), numbers));
                numbers
            }
        }
    }
}

/// Reads the whole table. What has expired and is not swept yet does not count, nor what a removed server leaves, as in
/// the listing of connections.
pub fn count(table: &Table, snapshot: &Snapshot, now: Tick) -> ByState {
    let mut numbers = ByState::default();
    for word in table.words(0..table.buckets()) {
        let Some(dest) = snapshot.dest_of(word) else { continue };
        let state = word.state();
        if !snapshot.timeout(dest, state).has_passed(word.age(now)) {
            numbers[state as usize] += 1;
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dataplane::service::{Mode, Protocol, Scheduler};
    use dataplane::snapshot::{DestSpec, ServiceSpec};
    use dataplane::table::{Client, DestId, HashKey, Inserted, Judge, Word, Worth};

    use super::*;

    struct NoRival;

    impl Judge for NoRival {
        fn is_mine(&self, _: Word) -> bool {
            false
        }

        fn worth(&self, _: Word) -> Worth {
            Worth::Keep
        }

        fn removed(&self, _: Word) {}
    }

    fn service(ids: impl Iterator<Item = u32>) -> ServiceSpec {
        let dest = |id: u32| DestSpec {
            ..DestSpec::new(
                DestId::new(id).unwrap(),
                format!("10.0.0.{id}:80").parse::<SocketAddr>().unwrap(),
            )
        };
        ServiceSpec {
            scheduler: Scheduler::Rr,
            dests: ids.map(dest).collect(),
            ..ServiceSpec::new("192.0.2.10:80".parse::<SocketAddr>().unwrap(), Protocol::Tcp, Mode::Nat)
        }
    }

    /// A table with so many connections of server 1 in each of these states, last seen at a time.
    fn filled(table: &Table, connections: &[(State, u32, Tick, u32)]) {
        let mut address = 0;
        for &(state, count, seen, id) in connections {
            for _ in 0..count {
                address += 1;
                let client = Client::new(address, 40_112);
                let word = Word::new(client, DestId::new(id).unwrap()).with_state(state).seen(seen, false);
                let hash = table.hash(client, Protocol::Tcp);
                assert!(matches!(table.insert(hash, word, 0, &NoRival), Inserted::New(_)));
            }
        }
    }

    #[test]
    fn connections_are_counted_by_state_and_the_dead_are_not() {
        let (then, now) = (Tick(10_000), Tick(10_000 + 4 * 61));
        let table = Table::new(1_000, HashKey { blind: 1, factor: 3 });
        let snapshot = Snapshot::new(1, Vec::new(), &[service(1..=2)], [], dataplane::fib::Fibs::default());
        filled(
            &table,
            &[
                (State::Established, 7, then, 1),
                (State::Established, 2, now, 2),
                (State::FinWait, 3, then, 1),
                // A minute is over for these, but for those not.
                (State::SynRecv, 4, Tick(10_000 - 4 * 60), 1),
                (State::SynRecv, 5, now, 1),
                // Server 9 has been removed.
                (State::Established, 11, now, 9),
            ],
        );
        let numbers = count(&table, &snapshot, now);
        let seen: Vec<_> = State::ALL.iter().zip(numbers).filter(|(_, count)| *count > 0).collect();
        assert_eq!(seen, [(&State::Established, 9), (&State::SynRecv, 5), (&State::FinWait, 3)]);
    }

    #[test]
    fn the_table_is_not_read_more_often_than_once_a_period() {
        let states = States::default();
        let numbers = |n| [n; State::COUNT];
        assert_eq!(states.get(PERIOD, || numbers(1)), numbers(1));
        assert_eq!(states.get(PERIOD, || unreachable!("read again")), numbers(1));
        assert_eq!(states.get(Duration::ZERO, || numbers(2)), numbers(2));
        assert_eq!(states.get(PERIOD, || unreachable!("read again")), numbers(2));
    }
}
