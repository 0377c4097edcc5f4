//! The connection table: 128-bit words in 64-byte buckets, shared by all workers, without locks.
//!
//! A connection is read, created, changed and removed as one atomic word, so a torn or half-built one
//! cannot exist and nothing has to be reclaimed. A bucket is a cache line of four words. A connection
//! lives in its home bucket, else in the buddy (the other line of the same 128-byte pair), else in a second
//! pair, by a second hash. When all sixteen slots are taken, the least valuable expendable connection goes;
//! an established one never does.
//!
//! A home pair that is three quarters full passes a new connection on if the second pair has more room.
//! Measured by simulation, 40 000 random connections at half load: with a second *line* instead of a pair
//! 37 find no room, with a pair that is tried only when the first is full 4, with this rule none (and none
//! at 60 % load; of ten million at half load, one was seen to find none); 93 % are in the home line and
//! 4.7 % in the second pair.
//!
//! # One connection per flow, under any RSS
//!
//! Two workers may meet the first packets of one flow at the same moment. Both must end up with the same
//! connection, though they may have found different free slots. So a connection is inserted *tentatively*
//! (a flag that look-ups ignore), then every slot that the flow may use is scanned, and only then is it
//! confirmed:
//!
//! * a confirmed rival in the scan: withdraw, and use the rival;
//! * a tentative rival in a later slot: kill it (compare-and-swap to empty);
//! * a tentative rival in an earlier slot: withdraw and start again; it is about to be confirmed. If it
//!   still is not after a few rounds (its worker was descheduled), kill it.
//!
//! Of two words for a flow, the later insertion scans after the earlier one has been written. It sees it
//! either confirmed, and withdraws, or tentative, and kills it or withdraws. Hence at most one of them is
//! ever confirmed. `tests/table_loom.rs` tries this on a small table, in every interleaving with up to five
//! preemptions.
//!
//! This holds for workers whose judges agree. For the moment in which a reload that adds servers has reached
//! one worker and not the other, each may insert a word for the same flow. Both lead to servers of the
//! service, all packets find the same one first, and the other expires.
//!
//! # Who counts
//!
//! Whoever wins the compare-and-swap of a transition does its accounting, once: the table reports each
//! removal that it performed to [`Judge::removed`], and callers of [`Table::replace`] learn whether theirs
//! was the swap that held.

mod hash;
mod inherit;
mod locals;
mod matches;
mod memory;
mod wide;
mod word;

use std::fs::File;
use std::io;
use std::ops::Range;

pub use self::hash::{Hash, HashKey};
pub use self::inherit::{Census, Known, Threads};
pub use self::locals::{Identity, Local, LocalAddress, Stream};
use self::matches::{matches, vacant};
use self::memory::Buckets;
#[cfg(not(any(loom, miri)))]
pub use self::memory::write_mapped;
pub use self::word::{Client, DestId, FLAG_COARSE, FLAG_REPLIED, FLAG_TENTATIVE, Word};
use crate::fragments::Notes;
use crate::service::Protocol;
use crate::sync::{AtomicU128, Ordering};

/// Words in a bucket. loom's model is exponential in the number of steps, so it gets the smallest table.
const SLOTS: usize = if cfg!(loom) { 1 } else { 4 };

/// Words in a pair of buckets from which on it is crowded.
const CROWDED: usize = SLOTS * 2 * 3 / 4;

/// Empty slots that a crowded pair has at most.
const ROOMY: u32 = (SLOTS * 2 - CROWDED) as u32;

/// A bit for each slot of a pair of buckets.
const PAIR: u32 = (1 << (2 * SLOTS)) - 1;

/// Rounds in which a tentative rival in an earlier slot is waited for.
const PATIENCE: u32 = if cfg!(loom) { 1 } else { 16 };

/// What the bytes of a table in a file mean: raised whenever a build reads another connection in them than the one before,
/// be it for the fields of a word, the numbers of its states, the hash, or the buckets where a word may be.
pub const LAYOUT: u32 = 2;

/// What the table has to know about connections, and cannot: it has no snapshot and no clock.
pub trait Judge {
    /// Whether this word, whose client is the one that was asked for, is a live connection of the flow.
    fn is_mine(&self, word: Word) -> bool;

    /// What the connection is worth when its slot is wanted.
    fn worth(&self, word: Word) -> Worth;

    /// This call has removed this connection from the table.
    fn removed(&self, word: Word);
}

/// What a connection is worth when its slot is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// Nothing: expired, or its dest is gone.
    Free,
    /// It may go if there is no free slot; lower numbers go first.
    Expendable(u32),
    /// It stays.
    Keep,
}

/// Where a word stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    #[inline(always)]
    const fn new(bucket: usize, index: usize) -> Self {
        Slot((bucket * SLOTS + index) as u32)
    }

    #[inline(always)]
    const fn bucket(self) -> usize {
        self.0 as usize / SLOTS
    }

    #[inline(always)]
    const fn index(self) -> usize {
        self.0 as usize % SLOTS
    }

    /// Its number, from 0 to [`Table::slots`].
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The slot with this number.
    pub const fn from_number(number: u32) -> Self {
        Slot(number)
    }
}

/// What [`Table::insert`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The connection is in the table, here.
    New(Slot),
    /// The flow had a connection, or got one from another worker at the same moment.
    Existing(Slot, Word),
    /// No slot was free or expendable.
    Full,
}

/// What becomes of a word that the sweeper visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Keep,
    /// It goes.
    Remove,
    /// It becomes another word of the same connection.
    Become(Word),
}

#[derive(Default)]
#[repr(align(64))]
struct Bucket([AtomicU128; SLOTS]);

impl Bucket {
    /// Its words; each is read atomically, the whole is not.
    #[inline(always)]
    fn read(&self, ordering: Ordering) -> [Word; SLOTS] {
        std::array::from_fn(|index| Word(self.0[index].load(ordering)))
    }
}

/// The connection table.
pub struct Table {
    buckets: Buckets,
    pairs: usize,
    key: HashKey,
    fragments: Notes,
    /// The addresses of IPv6 clients, by slot.
    wide: Buckets,
    /// The local ports of connections, by slot.
    locals: Buckets,
}

impl Table {
    /// A table for so many connections at half load: 32 bytes each, and as much again once there is one of IPv6. Panics if there is no
    /// room in the address space, as every allocation does.
    pub fn new(connections: usize, key: HashKey) -> Self {
        let buckets = Buckets::new(2 * pairs(connections));
        Table::with(buckets, key).unwrap_or_else(|error| panic!("no room for a table: {error}"))
    }

    /// The same at the beginning of a file: what is there, if it was made with the same numbers, else an empty one if the
    /// file is all zeros. An error if the file is shorter than [`Self::bytes`], or cannot be mapped.
    pub fn in_file(file: &File, connections: usize, key: HashKey) -> io::Result<Self> {
        Table::with(Buckets::in_file(file, 2 * pairs(connections))?, key)
    }

    fn with(buckets: Buckets, key: HashKey) -> io::Result<Self> {
        let beside = || Buckets::untouched(buckets.len());
        let (pairs, wide, locals) = (buckets.len() / 2, beside()?, beside()?);
        Ok(Table { buckets, pairs, key, fragments: Notes::new(key), wide, locals })
    }

    /// How much memory a table for so many connections takes.
    pub fn bytes(connections: usize) -> u64 {
        (2 * pairs(connections) * size_of::<Bucket>()) as u64
    }

    /// Whether a table for so many connections has the same places as one for so many others.
    pub fn are_alike(connections: usize, others: usize) -> bool {
        pairs(connections) == pairs(others)
    }

    /// An empty table like this one, to try a packet on; see [`Self::copy_flow`]. It takes address space, but no memory but for what is
    /// copied. An error if there is none.
    pub fn stage(&self) -> io::Result<Self> {
        let untouched = || Buckets::untouched(self.buckets.len());
        let (buckets, wide, locals) = (untouched()?, untouched()?, untouched()?);
        let fragments = self.fragments.for_one_datagram();
        Ok(Table { buckets, pairs: self.pairs, key: self.key, fragments, wide, locals })
    }

    /// Copies what is in a flow's buckets into a [`Self::stage`]: packets of the flow meet there what they would meet
    /// here. Not copied is what is being inserted at this moment.
    pub fn copy_flow(&self, hash: Hash, stage: &Table) {
        for bucket in self.candidates(hash) {
            for (index, word) in self.load(bucket).into_iter().enumerate() {
                if !is_tentative(word) {
                    let slot = Slot::new(bucket, index);
                    // Another flow's buckets may be the same, and copied already.
                    let _ = stage.replace(slot, Word::EMPTY, word);
                    match self.noted(slot) {
                        0 => {}
                        address => stage.note_address(slot, address),
                    }
                    if let Some(local) = self.local_of(slot, word.identity()) {
                        stage.note_local(slot, word.identity(), local);
                    }
                }
            }
        }
    }

    /// The notes by which fragments find their connections. They are not in the file: a datagram's fragments come within
    /// milliseconds.
    pub fn fragments(&self) -> &Notes {
        &self.fragments
    }

    /// Number of slots, twice the connections that it is meant for.
    pub fn slots(&self) -> usize {
        self.buckets.len() * SLOTS
    }

    /// Number of buckets, for [`Self::sweep`] and [`Self::words`].
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Hashes a client under a protocol; to be passed to the other methods.
    #[inline]
    pub fn hash(&self, client: Client, protocol: Protocol) -> Hash {
        self.key.hash(client, protocol)
    }

    /// Starts to load the home bucket of a hash.
    #[inline]
    pub fn prefetch(&self, hash: Hash) {
        crate::wire::prefetch(&self.buckets[hash.home(self.pairs)]);
    }

    /// The client's first word in its home bucket and where it is, or any if there is none: a short look that is
    /// right for nine packets of ten, and whose caller has to check what it got.
    ///
    /// Which slot it is is as good as random, so it is chosen by arithmetic: branches here were mispredicted for
    /// every other packet.
    #[inline]
    pub fn glance(&self, hash: Hash, client: Client) -> (Slot, Word) {
        let home = hash.home(self.pairs);
        let bucket = &self.buckets[home];
        let first = matches(&bucket.read(Ordering::Acquire), client).trailing_zeros() as usize % SLOTS;
        // Loaded again: to choose among the four in registers takes more than that.
        (Slot::new(home, first), Word(bucket.0[first].load(Ordering::Acquire)))
    }

    /// The same for the other buckets of a hash.
    #[inline(never)]
    pub fn glance_at_rest(&self, hash: Hash, client: Client) -> Option<Slot> {
        self.candidates(hash)[1..].iter().find_map(|&bucket| {
            let hits = matches(&self.load(bucket), client);
            (hits != 0).then(|| Slot::new(bucket, hits.trailing_zeros() as usize))
        })
    }

    /// What is in a slot now.
    #[inline]
    pub fn at(&self, slot: Slot) -> Word {
        Word(self.word(slot).load(Ordering::Acquire))
    }

    /// The connection in a slot, if there is one now.
    pub fn connection(&self, slot: Slot) -> Option<Word> {
        Some(self.at(slot)).filter(|word| !word.is_empty() && !is_tentative(*word))
    }

    /// Starts to load the other buckets of a hash.
    #[inline]
    pub fn prefetch_rest(&self, hash: Hash) {
        for bucket in &self.candidates(hash)[1..] {
            crate::wire::prefetch(&self.buckets[*bucket]);
        }
    }

    /// Finds the connection of a flow.
    #[inline]
    pub fn find(&self, hash: Hash, client: Client, judge: &impl Judge) -> Option<(Slot, Word)> {
        for bucket in self.candidates(hash) {
            for (index, word) in self.load(bucket).into_iter().enumerate() {
                if word.client() == client && !is_tentative(word) && judge.is_mine(word) {
                    return Some((Slot::new(bucket, index), word));
                }
            }
        }
        None
    }

    /// An empty slot for a connection of a client of whom no word is in the flow's buckets: the usual case of a new
    /// connection, found without judging anybody. `None` says nothing: [`Self::find`] and [`Self::insert`] do.
    #[inline]
    pub fn vacancy(&self, hash: Hash, client: Client) -> Option<Slot> {
        let candidates = self.candidates(hash);
        // A bit for each slot, the home bucket's in the lowest ones.
        let (mut known, mut empty) = (0, 0);
        for (position, &bucket) in candidates.iter().enumerate() {
            let words = self.load(bucket);
            known |= matches(&words, client);
            empty |= vacant(&words) << (position * SLOTS);
        }
        let (home, second) = (empty & PAIR, empty & PAIR << (2 * SLOTS));
        let crowded = home.count_ones() <= ROOMY && home.count_ones() < second.count_ones();
        let empty = if crowded || home == 0 { second } else { home };
        let first = empty.trailing_zeros() as usize;
        (known == 0 && empty != 0).then(|| Slot::new(candidates[first / SLOTS % 4], first % SLOTS))
    }

    /// An empty slot in the home pair, if that is not crowded, whoever else is there.
    fn vacancy_at_home(&self, hash: Hash) -> Option<Slot> {
        let home = hash.home(self.pairs);
        let pair = [home, home ^ 1];
        let empty = |bucket: usize| {
            let words = self.load(bucket);
            words.map(|word| word.is_empty())
        };
        let [own, buddy] = pair.map(empty);
        let vacant = own.iter().chain(&buddy).filter(|&&is_empty| is_empty).count();
        let first = own.iter().chain(&buddy).position(|&is_empty| is_empty)?;
        (2 * SLOTS - vacant < CROWDED).then(|| Slot::new(pair[first / SLOTS], first % SLOTS))
    }

    /// Adds a connection, unless its flow has one. `worker` tells tentative words of different workers apart,
    /// which may be equal otherwise.
    #[inline(never)]
    pub fn insert(&self, hash: Hash, word: Word, worker: u8, judge: &impl Judge) -> Inserted {
        let tentative = word.tentative(worker);
        for round in 0.. {
            let (slot, old) = match self.survey(hash, word.client(), judge) {
                Survey::Existing(slot, word) => return Inserted::Existing(slot, word),
                Survey::Full => return Inserted::Full,
                Survey::Room(slot, old) => (slot, old),
            };
            if self.replace(slot, old, tentative).is_err() {
                continue;
            }
            if !old.is_empty() {
                judge.removed(old);
            }
            match self.scan_rivals(hash, slot, tentative, round >= PATIENCE, judge) {
                Rivals::Confirmed(at, rival) => {
                    let _ = self.replace(slot, tentative, Word::EMPTY);
                    return Inserted::Existing(at, rival);
                }
                Rivals::Earlier => {
                    let _ = self.replace(slot, tentative, Word::EMPTY);
                    pause();
                }
                Rivals::None => {
                    if self.replace(slot, tentative, word).is_ok() {
                        return Inserted::New(slot);
                    }
                }
            }
        }
        unreachable!("the rounds are counted in u32 and each waits for another worker's progress")
    }

    /// Puts a connection into a slot, if that is empty and there is no other word of the client: what [`Self::insert`] comes to mostly, for
    /// whoever knows a [`Self::vacancy`], and without judging anybody.
    #[inline(always)]
    pub fn occupy(&self, hash: Hash, slot: Slot, word: Word, worker: u8) -> bool {
        let tentative = word.tentative(worker);
        if self.replace(slot, Word::EMPTY, tentative).is_err() {
            return false;
        }
        // A bit for each of the client's words, of which the tentative one is the first.
        let mut known = 0;
        for (position, bucket) in self.candidates(hash).into_iter().enumerate() {
            let words = self.buckets[bucket].read(Ordering::SeqCst);
            known |= matches(&words, word.client()) << (position * SLOTS);
        }
        let is_alone = known.is_power_of_two();
        let outcome = if is_alone { word } else { Word::EMPTY };
        self.replace(slot, tentative, outcome).is_ok() && is_alone
    }

    /// Changes a word, or removes it with [`Word::EMPTY`], if it is still what it was; else tells what it is.
    #[inline(always)]
    pub fn replace(&self, slot: Slot, old: Word, new: Word) -> Result<(), Word> {
        // AcqRel/Acquire: the confirm protocol above needs a total order of insertions and scans, which
        // x86-64 gives to every locked instruction; the orderings keep the compiler from moving loads
        // of the scan above the insertion. SeqCst says it for other machines too.
        self.word(slot)
            .compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| ())
            .map_err(Word)
    }

    /// Visits every connection in some buckets.
    ///
    /// `decide` says what becomes of each; `removed` is told of those that this call removed.
    pub fn sweep(
        &self,
        buckets: Range<usize>,
        decide: impl Fn(Slot, Word) -> Fate,
        mut removed: impl FnMut(Word),
    ) {
        for slot in buckets.flat_map(|bucket| (0..SLOTS).map(move |index| Slot::new(bucket, index))) {
            let word = Word(self.word(slot).load(Ordering::Relaxed));
            if word.is_empty() || is_tentative(word) {
                continue;
            }
            match decide(slot, word) {
                Fate::Keep => {}
                Fate::Become(new) => drop(self.replace(slot, word, new)),
                Fate::Remove => {
                    if self.replace(slot, word, Word::EMPTY).is_ok() {
                        removed(word);
                    }
                }
            }
        }
    }

    /// The connections in some buckets, for listings. Each is read atomically, the whole is not.
    pub fn words(&self, buckets: Range<usize>) -> impl Iterator<Item = Word> + '_ {
        self.entries(buckets).map(|(_, word)| word)
    }

    /// The same, and where they are.
    pub fn entries(&self, buckets: Range<usize>) -> impl Iterator<Item = (Slot, Word)> + '_ {
        buckets
            .flat_map(|bucket| (0..SLOTS).map(move |index| Slot::new(bucket, index)))
            .map(|slot| (slot, Word(self.word(slot).load(Ordering::Relaxed))))
            .filter(|(_, word)| !word.is_empty() && !is_tentative(*word))
    }

    /// Looks for the flow's connection and for a slot, over all candidates. Expired connections of the
    /// same client go on the way: another worker, whose clock is a tick behind, must not renew them after
    /// this one has decided that they are dead.
    fn survey(&self, hash: Hash, client: Client, judge: &impl Judge) -> Survey {
        let mut pairs = [Pair::default(), Pair::default()];
        for (position, bucket) in self.candidates(hash).into_iter().enumerate() {
            let pair = &mut pairs[position / 2];
            for (index, mut word) in self.load(bucket).into_iter().enumerate() {
                let slot = Slot::new(bucket, index);
                if is_tentative(word) {
                    pair.occupied += 1;
                    continue;
                }
                if word.is_empty() {
                    pair.offer(Room { worth: None, slot, word });
                    continue;
                }
                let same_client = word.client() == client;
                if same_client && judge.is_mine(word) {
                    return Survey::Existing(slot, word);
                }
                let worth = judge.worth(word);
                if same_client && worth == Worth::Free {
                    if self.replace(slot, word, Word::EMPTY).is_err() {
                        continue;
                    }
                    judge.removed(word);
                    word = Word::EMPTY;
                    pair.offer(Room { worth: None, slot, word });
                    continue;
                }
                pair.occupied += 1;
                if worth != Worth::Keep {
                    pair.offer(Room { worth: Some(worth), slot, word });
                }
            }
        }
        let [home, second] = pairs;
        let crowded = home.occupied >= CROWDED && home.occupied > second.occupied;
        let room = match (home.best, second.best) {
            (Some(home), Some(second)) => {
                // An empty slot before a stale one, a stale one before one that has to be sacrificed.
                let prefer_second = second.worth < home.worth || second.worth == home.worth && crowded;
                Some(if prefer_second { second } else { home })
            }
            (home, second) => home.or(second),
        };
        room.map_or(Survey::Full, |room| Survey::Room(room.slot, room.word))
    }

    /// Looks for other words of the flow after a tentative insertion; kills the tentative ones that it may.
    fn scan_rivals(&self, hash: Hash, mine: Slot, word: Word, impatient: bool, judge: &impl Judge) -> Rivals {
        let mut earlier = false;
        for bucket in self.candidates(hash) {
            let words = self.buckets[bucket].read(Ordering::SeqCst);
            for (index, rival) in words.into_iter().enumerate() {
                let slot = Slot::new(bucket, index);
                if slot == mine || rival.client() != word.client() || !judge.is_mine(rival) {
                    continue;
                }
                if !is_tentative(rival) {
                    return Rivals::Confirmed(slot, rival);
                }
                if slot < mine && !impatient {
                    earlier = true;
                } else if let Err(now) = self.replace(slot, rival, Word::EMPTY)
                    && now.client() == word.client()
                    && judge.is_mine(now)
                {
                    // It was confirmed, or replaced by another attempt, between the load and the kill.
                    return if is_tentative(now) { Rivals::Earlier } else { Rivals::Confirmed(slot, now) };
                }
            }
        }
        if earlier { Rivals::Earlier } else { Rivals::None }
    }

    // A call would be read back from memory sooner than it is there: 15 cycles of each new connection.
    #[inline(always)]
    fn candidates(&self, hash: Hash) -> [usize; 4] {
        let (home, second) = (hash.home(self.pairs), hash.second(self.pairs));
        [home, home ^ 1, second, second ^ 1]
    }

    #[inline]
    fn load(&self, bucket: usize) -> [Word; SLOTS] {
        // Acquire costs nothing on x86-64. A word carries all of its connection, so there is nothing else
        // that it would have to be ordered with.
        self.buckets[bucket].read(Ordering::Acquire)
    }

    #[inline]
    fn word(&self, slot: Slot) -> &AtomicU128 {
        &self.buckets[slot.bucket()].0[slot.index()]
    }
}

/// Pairs of buckets for so many connections at half load.
fn pairs(connections: usize) -> usize {
    let pairs = connections.div_ceil(SLOTS).max(2);
    assert!(2 * pairs * SLOTS <= u32::MAX as usize, "slots are counted in 32 bits: two billion connections");
    pairs
}

/// What a survey found in a pair of buckets.
#[derive(Default)]
struct Pair {
    occupied: usize,
    best: Option<Room>,
}

impl Pair {
    fn offer(&mut self, room: Room) {
        if self.best.as_ref().is_none_or(|best| room.worth < best.worth) {
            self.best = Some(room);
        }
    }
}

/// A slot for a new connection.
struct Room {
    /// What it would cost; `None` if the slot is empty.
    worth: Option<Worth>,
    slot: Slot,
    word: Word,
}

enum Survey {
    Existing(Slot, Word),
    Room(Slot, Word),
    Full,
}

enum Rivals {
    None,
    /// A tentative rival is in an earlier slot (or came anew): start again.
    Earlier,
    Confirmed(Slot, Word),
}

const fn is_tentative(word: Word) -> bool {
    word.flags() & FLAG_TENTATIVE != 0
}

fn pause() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
