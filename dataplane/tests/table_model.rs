//! The table against a plain `HashMap`, and several threads against each other.
//!
//! One enum of operations runs against both and they must agree after each. The threads' test cannot say
//! which connection wins, but whoever wins, there is one for each flow and every removal is counted once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dataplane::service::{Protocol, State};
use dataplane::table::{Client, DestId, Fate, Hash, HashKey, Inserted, Judge, Slot, Table, Word, Worth};
use proptest::prelude::*;

const KEY: HashKey = HashKey { blind: 0x5EED, factor: 0x9E37_79B9 };

/// All connections live and worth keeping.
#[derive(Default)]
struct Keeper {
    removed: AtomicUsize,
}

impl Judge for Keeper {
    fn is_mine(&self, _: Word) -> bool {
        true
    }
    fn worth(&self, _: Word) -> Worth {
        Worth::Keep
    }
    fn removed(&self, _: Word) {
        self.removed.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Find(u8),
    Insert(u8, u8),
    ChangeState(u8, u8),
    Remove(u8),
    SweepDest(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        any::<u8>().prop_map(Operation::Find),
        (any::<u8>(), 1u8..8).prop_map(|(client, dest)| Operation::Insert(client, dest)),
        (any::<u8>(), 0u8..12).prop_map(|(client, state)| Operation::ChangeState(client, state)),
        any::<u8>().prop_map(Operation::Remove),
        (1u8..8).prop_map(Operation::SweepDest),
    ]
}

fn client(n: u8) -> Client {
    Client::new(0xC633_6400 | u32::from(n), 1000)
}

fn word(n: u8, dest: u8) -> Word {
    Word::new(client(n), DestId::new(u32::from(dest)).unwrap())
}

/// As the data path does it: where it has seen a vacancy, if that is still one.
fn insert(table: &Table, hash: Hash, word: Word, worker: u8, vacancy: Option<Slot>) -> Inserted {
    match vacancy {
        Some(slot) if table.occupy(hash, slot, word, worker) => Inserted::New(slot),
        _ => table.insert(hash, word, worker, &Keeper::default()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_hash_map(operations in prop::collection::vec(operation(), 0..if cfg!(miri) { 32 } else { 512 })) {
        // Room for all 256 clients: a quarter full at the most, so that nothing is ever turned away here.
        let table = Table::new(512, KEY);
        let judge = Keeper::default();
        let mut model: HashMap<u8, Word> = HashMap::new();
        let find = |n: u8| table.find(table.hash(client(n), Protocol::Tcp), client(n), &judge);
        for operation in operations {
            match operation {
                Operation::Find(n) => prop_assert_eq!(find(n).map(|found| found.1), model.get(&n).copied()),
                Operation::Insert(n, dest) => {
                    let hash = table.hash(client(n), Protocol::Tcp);
                    // With or without a short look before.
                    let vacancy = if dest % 2 == 0 { table.vacancy(hash, client(n)) } else { None };
                    prop_assert!(vacancy.is_none() || !model.contains_key(&n));
                    prop_assert!(vacancy.is_none_or(|slot| table.at(slot) == Word::EMPTY));
                    match (insert(&table, hash, word(n, dest), 0, vacancy), model.get(&n)) {
                        (Inserted::New(_), None) => { model.insert(n, word(n, dest)); }
                        (Inserted::Existing(_, found), Some(&kept)) => prop_assert_eq!(found, kept),
                        (other, expected) => prop_assert!(false, "{:?}, but the model has {:?}", other, expected),
                    }
                }
                Operation::ChangeState(n, state) => {
                    let state = State::from_number(state).unwrap();
                    if let Some((slot, old)) = find(n) {
                        prop_assert_eq!(table.replace(slot, old, old.with_state(state)), Ok(()));
                        model.entry(n).and_modify(|word| *word = word.with_state(state));
                    }
                }
                Operation::Remove(n) => {
                    if let Some((slot, old)) = find(n) {
                        prop_assert_eq!(table.replace(slot, old, Word::EMPTY), Ok(()));
                        prop_assert_eq!(table.replace(slot, old, old), Err(Word::EMPTY));
                    }
                    model.remove(&n);
                }
                Operation::SweepDest(dest) => {
                    let gone = |word: Word| word.dest_number() == usize::from(dest);
                    let mut removed = 0;
                    let decide = |_, word| if gone(word) { Fate::Remove } else { Fate::Keep };
                    table.sweep(0..table.buckets(), decide, |_| removed += 1);
                    let before = model.len();
                    model.retain(|_, word| !gone(*word));
                    prop_assert_eq!(removed, before - model.len());
                }
            }
            prop_assert_eq!(table.words(0..table.buckets()).count(), model.len());
        }
    }
}

/// Half load is what a table is sized for: every connection must find room, and a fifth more.
#[test]
fn takes_what_it_is_sized_for() {
    let connections = if cfg!(miri) { 64 } else { 100_000 };
    let table = Table::new(connections, KEY);
    assert_eq!(table.slots() * 16, table.buckets() * 64);
    for n in 0..connections as u32 / 5 * 6 {
        let client = Client::new(0x0A00_0000 + n / 8, 1024 + (n % 8) as u16);
        let word = Word::new(client, DestId::new(1).unwrap());
        let hash = table.hash(client, Protocol::Tcp);
        let inserted = insert(&table, hash, word, 0, table.vacancy(hash, client));
        assert!(matches!(inserted, Inserted::New(_)), "{n}");
    }
}

/// Threads fight for few flows: insert, remove, insert again. There is never a second word for a flow
/// when all is quiet, and each thread that was told "New" was the only one until it removed the word.
#[test]
fn one_connection_a_flow_under_contention() {
    let rounds = if cfg!(miri) { 5 } else { 20_000 };
    let table = Arc::new(Table::new(8, KEY));
    let owners: Arc<Vec<AtomicUsize>> = Arc::new((0..4).map(|_| AtomicUsize::new(0)).collect());
    let threads: Vec<_> = (1..=4u32)
        .map(|id| {
            let (table, owners) = (table.clone(), owners.clone());
            std::thread::spawn(move || {
                let judge = Keeper::default();
                for round in 0..rounds {
                    let flow = (round + id as usize) % owners.len();
                    let client = Client::new(flow as u32 + 1, 7);
                    let hash = table.hash(client, Protocol::Tcp);
                    let word = Word::new(client, DestId::new(id).unwrap());
                    let vacancy = table.vacancy(hash, word.client());
                    if let Inserted::New(_) = insert(&table, hash, word, id as u8, vacancy) {
                        assert_eq!(
                            owners[flow].fetch_add(1, Ordering::SeqCst),
                            0,
                            "two owners of flow {flow}"
                        );
                        let (slot, found) = table.find(hash, client, &judge).expect("it is there");
                        assert_eq!(found, word);
                        owners[flow].fetch_sub(1, Ordering::SeqCst);
                        table.replace(slot, found, Word::EMPTY).expect("only the owner removes it");
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(table.words(0..table.buckets()).count(), 0);
}
