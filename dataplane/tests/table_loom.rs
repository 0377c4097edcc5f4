//! Workers that meet the first packets of one flow at the same moment: every interleaving with up to five
//! preemptions.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p dataplane --release --test table_loom`. The table is the
//! real one, shrunk: one slot a bucket, four buckets, three candidate slots for the flow.
#![cfg(loom)]

use std::sync::Mutex;

use dataplane::service::Protocol;
use dataplane::table::{Client, DestId, HashKey, Inserted, Judge, Table, Word, Worth};
use loom::sync::Arc;

const KEY: HashKey = HashKey { blind: 1, factor: 3 };

/// Dest 9 is the stale stranger that sits in the way; everything else is live.
#[derive(Default)]
struct Referee {
    removed: Mutex<Vec<usize>>,
}

impl Judge for Referee {
    fn is_mine(&self, word: Word) -> bool {
        word.dest_number() != 9
    }
    fn worth(&self, word: Word) -> Worth {
        if word.dest_number() == 9 { Worth::Free } else { Worth::Keep }
    }
    fn removed(&self, word: Word) {
        self.removed.lock().unwrap().push(word.dest_number());
    }
}

/// Puts a word where it is told to.
struct Lenient;

impl Judge for Lenient {
    fn is_mine(&self, _: Word) -> bool {
        false
    }
    fn worth(&self, _: Word) -> Worth {
        Worth::Keep
    }
    fn removed(&self, _: Word) {}
}

fn client() -> Client {
    Client::new(0xC633_6407, 40112)
}

fn word(dest: u32) -> Word {
    Word::new(client(), DestId::new(dest).unwrap())
}

/// Inserts for a worker; the dest that its packet goes to.
fn connect(table: &Table, dest: u32) -> usize {
    let hash = table.hash(client(), Protocol::Tcp);
    let vacancy = table.vacancy(hash, client());
    if vacancy.is_some_and(|slot| table.occupy(hash, slot, word(dest), dest as u8)) {
        return dest as usize;
    }
    match table.insert(hash, word(dest), dest as u8, &Referee::default()) {
        Inserted::New(_) => dest as usize,
        Inserted::Existing(_, word) => word.dest_number(),
        Inserted::Full => panic!("three slots are enough for two workers"),
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Without a bound loom finds the schedule that preempts each worker just before it confirms, again and
    // again, so that they kill each other's attempts for ever.
    builder.preemption_bound = Some(5);
    builder.check(check);
}

#[test]
fn two_workers_agree_on_one_connection() {
    model(|| {
        let table = Arc::new(Table::new(2, KEY));
        let other = table.clone();
        let thread = loom::thread::spawn(move || connect(&other, 2));
        let mine = connect(&table, 1);
        let theirs = thread.join().unwrap();
        assert_eq!(mine, theirs, "both packets go to one server");
        let words: Vec<Word> = table.words(0..table.buckets()).collect();
        assert_eq!(words, [word(mine as u32)]);
    });
}

/// A slot becomes free between the two insertions, so that the later one lands in an earlier slot: the
/// case for which insertions are tentative.
#[test]
fn two_workers_agree_though_a_slot_is_freed_between_them() {
    model(|| {
        let table = Arc::new(Table::new(2, KEY));
        let stranger = Word::new(client(), DestId::new(9).unwrap());
        let hash = table.hash(client(), Protocol::Tcp);
        assert!(matches!(table.insert(hash, stranger, 9, &Lenient), Inserted::New(_)));
        let other = table.clone();
        let thread = loom::thread::spawn(move || connect(&other, 2));
        let mine = connect(&table, 1);
        let theirs = thread.join().unwrap();
        assert_eq!(mine, theirs);
        assert_eq!(table.words(0..table.buckets()).count(), 1);
    });
}

/// The same when it is another client's, so that either worker has seen a vacancy, but not the same one.
#[test]
fn two_workers_agree_though_they_have_seen_different_vacancies() {
    model(|| {
        let table = Arc::new(Table::new(2, KEY));
        let hash = table.hash(client(), Protocol::Tcp);
        let stranger = Word::new(Client::new(1, 1), DestId::new(9).unwrap());
        assert!(matches!(table.insert(hash, stranger, 9, &Lenient), Inserted::New(_)));
        let (slot, _) = table.entries(0..table.buckets()).next().unwrap();
        let other = table.clone();
        let thread = loom::thread::spawn(move || {
            other.replace(slot, stranger, Word::EMPTY).unwrap();
            connect(&other, 2)
        });
        let mine = connect(&table, 1);
        let theirs = thread.join().unwrap();
        assert_eq!(mine, theirs);
        assert_eq!(table.words(0..table.buckets()).count(), 1);
    });
}
