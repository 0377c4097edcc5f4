//! The words of a process that has ended, taken over by the next one.
//!
//! A table in a file ([`Table::in_file`]) is there when its process has died, at whatever moment. Since a connection is
//! one word, only an insertion can be half done, and a word that is tentative says so itself. Nothing else has to be
//! repaired: there is no lock that somebody holds and no list that is half linked. So one pass over all words, before any
//! worker uses the table, is all: it removes the tentative ones and those whose dest is not there any more, and counts
//! the rest for the gauges. Expired ones stay for the sweep, which counts them out again.
//!
//! A table of another size, or one whose stamps count by another clock, cannot go on where it lies.
//! [`Table::fill_from`] leaves it as it is and copies what goes on, so that a process that dies meanwhile spoils nothing.
//! The home of a word is the upper part of its hash, in a table of any size. So who goes through one table from its beginning to
//! its end does the same in the other, and waits for no line but those of the one word in twenty that is not at home.
//!
//! Words of the same dest keep its number, so nothing in a word has to be translated; who the numbers are is remembered
//! by whoever made the file.

use std::ops::{AddAssign, Range};

use super::{DestId, Hash, SLOTS, Slot, Table, Word, is_tentative};
use crate::clock::Tick;
use crate::counters::Live;
use crate::service::{Protocol, State};
use crate::sync::Ordering;

/// Buckets whose words are under way to a new table at a time: enough to hide that its lines are not in a cache, few
/// enough to be there still when it is their turn.
const BATCH: usize = 8;

/// The dests whose connections go on, each with the protocol of its service.
#[derive(Clone, Debug, Default)]
pub struct Known(Vec<Option<Protocol>>);

impl Known {
    /// The protocol of a word's service, if the word is a connection that goes on.
    fn protocol(&self, word: Word) -> Option<Protocol> {
        let protocol = (*self.0.get(word.dest_number())?)?;
        // Words are only made with states that exist; memory that was damaged may say something else.
        (!is_tentative(word) && State::from_number(word.state_number()).is_some()).then_some(protocol)
    }
}

impl FromIterator<(DestId, Protocol)> for Known {
    fn from_iter<I: IntoIterator<Item = (DestId, Protocol)>>(dests: I) -> Self {
        let mut known = Vec::new();
        for (id, protocol) in dests {
            known.resize(known.len().max(id.index() + 1), None);
            known[id.index()] = Some(protocol);
        }
        Known(known)
    }
}

/// What was found, and what has become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Connections, and templates, that go on.
    pub kept: u64,
    /// Words that do not: of a dest that is not known, half inserted, or no connection at all.
    pub removed: u64,
    /// Connections that found no room in the new table.
    pub no_room: u64,
    /// By dest number, as far as there are any: what goes on.
    of_dests: Vec<Live>,
}

impl Census {
    /// What goes on of a dest.
    pub fn of(&self, id: DestId) -> Live {
        self.of_dests.get(id.index()).copied().unwrap_or_default()
    }

    fn keep(&mut self, word: Word) {
        let number = word.dest_number();
        if self.of_dests.len() <= number {
            self.of_dests.resize(number + 1, Live::default());
        }
        self.of_dests[number].add(word.state());
        self.kept += 1;
    }
}

impl AddAssign for Census {
    fn add_assign(&mut self, other: Census) {
        self.kept += other.kept;
        self.removed += other.removed;
        self.no_room += other.no_room;
        self.of_dests.resize(self.of_dests.len().max(other.of_dests.len()), Live::default());
        for (sum, more) in self.of_dests.iter_mut().zip(other.of_dests) {
            *sum += more;
        }
    }
}

impl Table {
    /// Takes over the words that are in this table. Nobody else may use it meanwhile.
    pub fn inherit(&self, known: &Known, threads: Threads<'_>) -> Census {
        in_parallel(self.buckets(), threads, |buckets| {
            let mut census = Census::default();
            for slot in slots(buckets) {
                let word = Word(self.word(slot).load(Ordering::Relaxed));
                if word.is_empty() {
                    continue;
                }
                if known.protocol(word).is_some() {
                    if word.mark() != 0 {
                        // Counted by a process that is no more. Nobody else is here, so nothing can have changed.
                        let _ = self.replace(slot, word, word.with_mark(0));
                    }
                    census.keep(word);
                } else if self.replace(slot, word, Word::EMPTY).is_ok() {
                    census.removed += 1;
                }
            }
            census
        })
    }

    /// Fills this table, which is empty, with the connections of another one. `then` and `now` are the present moment by
    /// the clock of its stamps and by that of ours. Nobody else may use either meanwhile.
    ///
    /// If there is less room than they had, the established ones have it first.
    pub fn fill_from(
        &self,
        old: &Table,
        then: Tick,
        now: Tick,
        known: &Known,
        threads: Threads<'_>,
    ) -> Census {
        let mut census = Census::default();
        let rounds: &[Round] =
            if self.pairs < old.pairs { &[Round::Valuable, Round::Rest] } else { &[Round::All] };
        for &round in rounds {
            census += in_parallel(old.buckets(), threads, |buckets| {
                self.fill_from_part(old, buckets, (then, now), known, round)
            });
        }
        census
    }

    fn fill_from_part(
        &self,
        old: &Table,
        buckets: Range<usize>,
        (then, now): (Tick, Tick),
        known: &Known,
        round: Round,
    ) -> Census {
        let mut census = Census::default();
        // With that much room nearly all will be at home.
        let is_roomy = self.pairs >= 2 * old.pairs;
        let mut batch: Vec<(Hash, Word)> = Vec::with_capacity(BATCH * SLOTS);
        for start in buckets.clone().step_by(BATCH) {
            for slot in slots(start..(start + BATCH).min(buckets.end)) {
                let word = Word(old.word(slot).load(Ordering::Relaxed));
                if word.is_empty() {
                    continue;
                }
                match known.protocol(word) {
                    None => census.removed += u64::from(round != Round::Rest),
                    Some(_) if !round.has(word) => {}
                    Some(protocol) => {
                        let hash = self.hash(word.client(), protocol);
                        self.prefetch(hash);
                        if !is_roomy {
                            self.prefetch_rest(hash);
                        }
                        batch.push((hash, restamped(word, then, now).with_mark(0)));
                    }
                }
            }
            for (hash, word) in batch.drain(..) {
                if self.place(hash, word) {
                    census.keep(word);
                } else {
                    census.no_room += 1;
                }
            }
        }
        census
    }

    /// Puts a word into an empty slot of its flow's buckets, if there is one. Whoever does has the flow alone, so there is
    /// nobody to agree with by a tentative insertion.
    fn place(&self, hash: Hash, word: Word) -> bool {
        let put = |slot| self.replace(slot, Word::EMPTY, word).is_ok();
        // Mostly there is room at home, where nobody has to be judged, and the second pair need not be loaded.
        if self.vacancy_at_home(hash).is_some_and(put) || self.vacancy(hash, word.client()).is_some_and(put) {
            return true;
        }
        // The same client is there with another service, or another thread was faster.
        let all = self.candidates(hash).into_iter().flat_map(|bucket| slots(bucket..bucket + 1));
        all.into_iter().any(|slot| self.at(slot).is_empty() && put(slot))
    }
}

/// Who has the room of a table, if it is smaller than the one before.
#[derive(Clone, Copy, PartialEq)]
enum Round {
    /// There is enough.
    All,
    /// What its client would miss.
    Valuable,
    /// What has ended, or is tried again by its client.
    Rest,
}

impl Round {
    fn has(self, word: Word) -> bool {
        let is_valuable = matches!(word.state(), State::Established | State::Udp | State::Template);
        match self {
            Round::All => true,
            Round::Valuable => is_valuable,
            Round::Rest => !is_valuable,
        }
    }
}

/// The word with a stamp of our clock.
fn restamped(word: Word, then: Tick, now: Tick) -> Word {
    if then == now {
        return word;
    }
    // Around the beginning of time, too: a stamp has sixteen bits of it.
    word.seen(Tick(now.0.wrapping_sub(u64::from(word.age(then)))), word.is_coarse())
}

fn slots(buckets: Range<usize>) -> impl Iterator<Item = Slot> {
    buckets.flat_map(|bucket| (0..SLOTS).map(move |index| Slot::new(bucket, index)))
}

/// Who goes through a table: so many threads, and what each of them does first, by its number. That is to go to a core of
/// its own: left to itself, a thread stays where it was started if the other cores are isolated for workers.
#[derive(Clone, Copy)]
pub struct Threads<'a> {
    /// How many.
    pub count: usize,
    /// What each does first.
    pub begin: &'a (dyn Fn(usize) + Sync),
}

/// Does the parts of a whole at once.
fn in_parallel(buckets: usize, threads: Threads<'_>, part: impl Fn(Range<usize>) -> Census + Sync) -> Census {
    let share = buckets.div_ceil(threads.count.max(1)).max(1);
    std::thread::scope(|scope| {
        let part = &part;
        let start = |(number, start): (usize, usize)| {
            scope.spawn(move || {
                (threads.begin)(number);
                part(start..(start + share).min(buckets))
            })
        };
        let threads: Vec<_> = (0..buckets).step_by(share).enumerate().map(start).collect();
        let mut sum = Census::default();
        for thread in threads {
            sum += thread.join().expect("a count does not panic");
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Client, FLAG_REPLIED, FLAG_TENTATIVE, HashKey, LAYOUT};

    const KEY: HashKey = HashKey { blind: 0x5EED, factor: 0x9E37_79B9 };

    fn by(count: usize) -> Threads<'static> {
        Threads { count, begin: &|_| () }
    }

    fn id(number: u32) -> DestId {
        DestId::new(number).unwrap()
    }

    fn known(numbers: impl IntoIterator<Item = u32>) -> Known {
        numbers.into_iter().map(|number| (id(number), Protocol::Tcp)).collect()
    }

    fn word(n: u32, dest: u32, state: State) -> Word {
        Word::new(Client::new(0x0A00_0000 + n, 1000), id(dest)).with_state(state)
    }

    fn filled(connections: usize, words: impl IntoIterator<Item = Word>) -> Table {
        let table = Table::new(connections, KEY);
        for word in words {
            assert!(table.place(table.hash(word.client(), Protocol::Tcp), word));
        }
        table
    }

    fn sorted(table: &Table) -> Vec<u128> {
        let mut words: Vec<u128> = table.words(0..table.buckets()).map(|word| word.0).collect();
        words.sort();
        words
    }

    /// Half inserted, of somebody unknown, or nonsense.
    fn rubbish() -> [Word; 4] {
        [
            word(1_000_001, 1, State::SynRecv).with_flags(FLAG_TENTATIVE),
            word(1_000_002, 9, State::Established),
            word(1_000_003, DestId::MAX, State::Established),
            Word(word(1_000_004, 1, State::None).0 | 0x7F << 96),
        ]
    }

    fn live(active: u32, inactive: u32) -> Live {
        Live { active, inactive, templates: 0 }
    }

    fn alive() -> impl Iterator<Item = Word> {
        (0..200).map(|n| word(n, 1 + n % 2, if n % 4 == 3 { State::FinWait } else { State::Established }))
    }

    /// What a file has in it. Who has to change this raises [`LAYOUT`], so that no build reads it as something else. (A state that
    /// is added at the end is rubbish to a build that does not know it, and so is removed.)
    #[test]
    fn the_layout_is_what_it_was() {
        let client = Client::new(0x0102_0304, 0x0506);
        let word = Word::new(client, id(0x07_0809)).with_state(State::TimeWait);
        let word = word.with_flags(FLAG_REPLIED).seen(Tick(0x0A0B << 8), true);
        let states = State::ALL.iter().map(|state| state.name()).collect::<Vec<_>>().join(" ");
        let hash = KEY.hash(client, Protocol::Tcp);
        assert_eq!(
            (LAYOUT, word.0, states.as_str(), SLOTS, hash.home(1000), hash.second(1000)),
            (
                2,
                0x0A0B_0305_0007_0809_0000_0506_0102_0304,
                "NONE ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN SYNACK UDP \
                 TEMPLATE INIT1 INIT C-SENT C-REPLIED C-WAIT COOKIE C-ECHOED S-SENT S-RECEIVED S-ACK-SENT REJECTED CLOSED",
                4,
                1633,
                1944
            )
        );
    }

    #[test]
    fn what_goes_on_is_counted_and_what_does_not_is_gone() {
        for threads in [1, 2, 7, 1000] {
            let table = filled(400, alive().chain(rubbish()));
            let census = table.inherit(&known([1, 2]), by(threads));
            assert_eq!((census.kept, census.removed, census.no_room), (200, 4, 0));
            assert_eq!(
                (census.of(id(1)), census.of(id(2)), census.of(id(9))),
                (live(100, 0), live(50, 50), live(0, 0))
            );
            assert_eq!(sorted(&table), sorted(&filled(400, alive())));
            // The next one finds what this one has left.
            assert_eq!(table.inherit(&known([2]), by(threads)).removed, 100);
        }
    }

    #[test]
    fn another_size_has_the_same_connections() {
        let old = filled(400, alive().chain(rubbish()));
        let before = old.buckets.iter().flat_map(|bucket| bucket.read(Ordering::Relaxed)).collect::<Vec<_>>();
        for (connections, threads) in [(250, 1), (401, 2), (10_000, 3)] {
            let new = Table::new(connections, KEY);
            let census = new.fill_from(&old, Tick(5), Tick(5), &known([1, 2]), by(threads));
            assert_eq!((census.kept, census.removed, census.no_room), (200, 4, 0));
            assert_eq!((census.of(id(1)), census.of(id(2))), (live(100, 0), live(50, 50)));
            assert_eq!(sorted(&new), sorted(&filled(400, alive())));
            for word in alive() {
                let hash = new.hash(word.client(), Protocol::Tcp);
                let found = new.glance(hash, word.client()).1.client() == word.client()
                    || new.glance_at_rest(hash, word.client()).is_some();
                assert!(found, "{word:?} is where nobody looks for it");
            }
        }
        let after = old.buckets.iter().flat_map(|bucket| bucket.read(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(before == after, "the old one has to be as it was");
    }

    #[test]
    fn a_table_that_is_too_small_has_the_established_ones() {
        let old = filled(400, alive());
        let new = Table::new(75, KEY);
        let census = new.fill_from(&old, Tick(5), Tick(5), &known([1, 2]), by(1));
        assert_eq!(new.slots(), 152);
        assert_eq!(census.kept + census.no_room, 200);
        let (first, second) = (census.of(id(1)), census.of(id(2)));
        assert!(first.active + second.active >= 140 && second.inactive <= 12, "{census:?}");
    }

    #[test]
    fn one_client_may_have_many_services() {
        // Sixteen words of one client: all slots of its buckets.
        let words = (1..=16).map(|dest| word(1, dest, State::Established));
        let old = filled(400, words);
        let new = Table::new(1000, KEY);
        assert_eq!(new.fill_from(&old, Tick(5), Tick(5), &known(1..=16), by(2)).kept, 16);
    }

    #[test]
    fn ages_are_the_same_by_another_clock() {
        let (then, now) = (Tick(1_000_000), Tick(77_777));
        let fine = word(1, 1, State::Established).seen(Tick(then.0 - 40), false);
        let coarse = word(2, 1, State::Established).seen(Tick(then.0 - 100_000), true);
        let new = Table::new(100, KEY);
        new.fill_from(&filled(100, [fine, coarse]), then, now, &known([1]), by(1));
        let age = |client: Client| {
            let mut words = new.words(0..new.buckets());
            words.find(|word| word.client() == client).unwrap().age(now)
        };
        assert_eq!(age(fine.client()), 40);
        // A coarse unit is 256 ticks, and both ends are rounded.
        assert!((100_000 - 512..=100_000).contains(&age(coarse.client())), "{}", age(coarse.client()));
    }
}
