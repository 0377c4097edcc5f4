//! Where the first fragments have gone.
//!
//! ```text
//!  bits  field                 note
//!    48  fingerprint           a keyed hash of addresses, protocol and identification
//!    24  dest id               the connection's; 0: see below
//!    16  client port           to tell another datagram from this one; with dest id 0 what has become of the first
//!    16  virtual port          of a packet to a service of all ports; else 0
//!     1  source NAT            whether the ports before are the datagram's own two
//!    23  last seen             ticks of 1/4 s; comes round after 24 days
//! ```
//!
//! A fingerprint, not the addresses themselves: with them no more than six bits would be left for the time, and addresses of IPv6 would
//! not fit at all. Two datagrams on their way at the same time are taken for each other if 56 bits of a hash agree whose key
//! nobody knows, those of the bucket among them. Then, and if an id has been given to another server meanwhile, the packet's addresses still have to be the dest's.

use crate::clock::{TICKS_PER_SECOND, Tick};
use crate::sync::{AtomicU128, Ordering};
use crate::table::{DestId, HashKey};

use super::Datagram;

/// Notes in a bucket: a cache line.
const SLOTS: usize = if cfg!(loom) { 1 } else { 4 };
/// Buckets of a region: what one pair of hosts can fill.
const BUCKETS: usize = if cfg!(loom) { 1 } else { 256 };
/// Regions.
const REGIONS: usize = if cfg!(loom) { 1 } else { 64 };

/// Ticks for which a note counts: 30 s, as long as Linux waits for the rest of a datagram.
const LIFETIME: u32 = 30 * TICKS_PER_SECOND;
/// Ticks for which a first fragment with other ports is no other datagram: a quarter of a second, or two.
const YOUNG: u32 = 1;

/// Bits of the time that are kept.
const SEEN: u32 = (1 << 23) - 1;

/// Where a datagram's note may be, and how it is known there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Never 0.
    fingerprint: u64,
    /// Region and bucket.
    place: u32,
}

impl Tag {
    /// That of no datagram.
    pub(crate) const NONE: Tag = Tag { fingerprint: 0, place: 0 };

    /// Which of so many parts its pair of hosts has.
    pub(super) fn part(self, parts: usize) -> usize {
        self.place as usize / BUCKETS % parts
    }
}

/// What has become of a first fragment, and becomes of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes with a connection.
    With(Flow),
    /// Source NAT has given it other ends.
    Translated(Ports),
    /// It has been handed to Linux.
    Linux,
    /// It has been dropped.
    Nowhere,
}

/// A connection, as a note knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its real server in a service.
    pub dest: DestId,
    /// The client's port.
    pub client_port: u16,
    /// The virtual port of a packet to a service of all ports, which may have other connections of the client's port; else 0.
    pub virtual_port: u16,
}

/// The ports that a datagram came with, by which source NAT finds its mappings again; of ICMP the identifier, in the place of whoever
/// asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Its sender's.
    pub source: u16,
    /// Its receiver's.
    pub destination: u16,
}

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// What has become of the first fragment.
    pub fate: Fate,
    /// Whether it has come so short a time ago that another first fragment would be one of the same datagram.
    pub is_young: bool,
}

/// All notes of a router.
pub struct Notes {
    /// A power of two.
    buckets: Box<[Bucket]>,
    key: HashKey,
}

#[derive(Default)]
#[repr(align(64))]
struct Bucket([AtomicU128; SLOTS]);

impl Notes {
    /// Room for 65 536 notes: 1 MiB.
    pub fn new(key: HashKey) -> Notes {
        Notes::with_buckets(REGIONS * BUCKETS, key)
    }

    /// Room for those of one datagram, to try a packet on; see [`Self::copy`].
    pub fn for_one_datagram(&self) -> Notes {
        Notes::with_buckets(1, self.key)
    }

    fn with_buckets(count: usize, key: HashKey) -> Notes {
        Notes { buckets: (0..count).map(|_| Bucket::default()).collect(), key }
    }

    /// Copies the bucket of a datagram to where others look for it.
    pub fn copy(&self, tag: Tag, into: &Notes) {
        for (from, to) in self.bucket(tag).0.iter().zip(&into.bucket(tag).0) {
            let (old, new) = (to.load(Ordering::Relaxed), from.load(Ordering::Relaxed));
            let _ = to.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The tag of a datagram's fragments.
    pub fn tag(&self, datagram: &Datagram) -> Tag {
        let Datagram { source, destination, protocol, identification } = *datagram;
        let of = |address: u128| self.key.mix(address as u64, (address >> 64) as u64);
        let hosts = self.key.mix(of(source), of(destination));
        let rest = u64::from(protocol) << 32 | u64::from(identification);
        // All bits of `rest` are below 2^40, so no datagram has this one.
        let region = self.key.mix(hosts, u64::MAX) as usize % REGIONS;
        let hash = self.key.mix(hosts, rest);
        let bucket = (hash >> FINGERPRINT) as usize % BUCKETS;
        Tag { fingerprint: hash & ((1 << FINGERPRINT) - 1) | 1, place: (region * BUCKETS + bucket) as u32 }
    }

    /// A datagram's note, if there is one.
    pub fn find(&self, tag: Tag, now: Tick) -> Option<Note> {
        // Relaxed, here and below: a word stands for itself, and what it names is in the snapshot or it is not.
        let words = self.bucket(tag).0.iter().map(|word| Word(word.load(Ordering::Relaxed)));
        let word = words.into_iter().find(|word| word.fingerprint() == tag.fingerprint)?;
        let age = word.age(now);
        Some(Note { fate: word.fate()?, is_young: age <= YOUNG }).filter(|_| age <= LIFETIME)
    }

    /// Notes what has become of a first fragment now: in the place of the datagram's note, else of one that counts no more, else of
    /// the oldest of its bucket.
    pub fn leave(&self, tag: Tag, now: Tick, fate: Fate) {
        let slots = &self.bucket(tag).0;
        let new = Word::new(tag, fate, now);
        // Each round that fails is one in which another worker got on.
        loop {
            let words: [Word; SLOTS] =
                std::array::from_fn(|index| Word(slots[index].load(Ordering::Relaxed)));
            let rank = |word: &Word| match word {
                word if word.fingerprint() == tag.fingerprint => u32::MAX,
                word if word.0 == 0 => SEEN + 1,
                word => word.age(now),
            };
            let Some((index, old)) = words.iter().enumerate().max_by_key(|(_, word)| rank(word)) else {
                return;
            };
            if slots[index].compare_exchange(old.0, new.0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    fn bucket(&self, tag: Tag) -> &Bucket {
        &self.buckets[tag.place as usize & (self.buckets.len() - 1)]
    }
}

/// A note as it is kept.
#[derive(Clone, Copy)]
struct Word(u128);

/// Bits of a fingerprint.
const FINGERPRINT: u32 = 48;
const DEST_SHIFT: u32 = FINGERPRINT;
const PORT_SHIFT: u32 = 72;
const VIRTUAL_SHIFT: u32 = 88;
const TRANSLATED_SHIFT: u32 = 104;
const SEEN_SHIFT: u32 = 105;

/// In the place of the client's port, if there is no dest.
const LINUX: u16 = 1;
const NOWHERE: u16 = 2;

impl Word {
    fn new(tag: Tag, fate: Fate, now: Tick) -> Word {
        let is_translated = matches!(fate, Fate::Translated(_));
        let (dest, port, virtual_port) = match fate {
            Fate::With(Flow { dest, client_port, virtual_port }) => (dest.index(), client_port, virtual_port),
            Fate::Translated(Ports { source, destination }) => (0, source, destination),
            Fate::Linux => (0, LINUX, 0),
            Fate::Nowhere => (0, NOWHERE, 0),
        };
        Word(
            u128::from(tag.fingerprint)
                | (dest as u128) << DEST_SHIFT
                | u128::from(port) << PORT_SHIFT
                | u128::from(virtual_port) << VIRTUAL_SHIFT
                | u128::from(is_translated) << TRANSLATED_SHIFT
                | u128::from(now.0 as u32 & SEEN) << SEEN_SHIFT,
        )
    }

    fn fingerprint(self) -> u64 {
        self.0 as u64 & ((1 << FINGERPRINT) - 1)
    }

    fn fate(self) -> Option<Fate> {
        let (port, virtual_port) = ((self.0 >> PORT_SHIFT) as u16, (self.0 >> VIRTUAL_SHIFT) as u16);
        if self.0 >> TRANSLATED_SHIFT & 1 == 1 {
            return Some(Fate::Translated(Ports { source: port, destination: virtual_port }));
        }
        match (DestId::new((self.0 >> DEST_SHIFT) as u32 & DestId::MAX), port) {
            (Some(dest), client_port) => Some(Fate::With(Flow { dest, client_port, virtual_port })),
            (None, LINUX) => Some(Fate::Linux),
            (None, NOWHERE) => Some(Fate::Nowhere),
            (None, _) => None,
        }
    }

    /// In ticks. Workers read their clocks independently, so the last 256 of all ages are read as "just now".
    fn age(self, now: Tick) -> u32 {
        let age = (now.0 as u32).wrapping_sub((self.0 >> SEEN_SHIFT) as u32) & SEEN;
        if age > SEEN - 256 { 0 } else { age }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey = HashKey { blind: 0x243F_6A88_85A3_08D3, factor: 0x1319_8A2E_0370_7345 };
    const NOW: Tick = Tick(1 << 30);

    fn datagram(source: u128, identification: u16) -> Datagram {
        Datagram { source, destination: 0xC000_020A, protocol: 17, identification: identification.into() }
    }

    fn with(dest: u32, client_port: u16) -> Fate {
        let virtual_port = client_port.rotate_left(3);
        Fate::With(Flow { dest: DestId::new(dest).unwrap(), client_port, virtual_port })
    }

    fn after(seconds: u64) -> Tick {
        Tick(NOW.0 + seconds * u64::from(TICKS_PER_SECOND))
    }

    #[test]
    fn a_note_says_what_was_left_until_its_time_is_over() {
        let notes = Notes::new(KEY);
        let translated = |source, destination| Fate::Translated(Ports { source, destination });
        let fates = [
            with(DestId::MAX, u16::MAX),
            with(1, 0),
            Fate::Linux,
            Fate::Nowhere,
            translated(LINUX, 0),
            translated(0, u16::MAX),
        ];
        for (id, fate) in (1..).zip(fates) {
            let tag = notes.tag(&datagram(7, id));
            assert_eq!(notes.find(tag, NOW), None);
            notes.leave(tag, NOW, fate);
            assert_eq!(notes.find(tag, NOW), Some(Note { fate, is_young: true }));
            assert_eq!(notes.find(tag, after(1)), Some(Note { fate, is_young: false }));
            assert_eq!(notes.find(tag, Tick(NOW.0 - 1)), Some(Note { fate, is_young: true }), "a slow clock");
            assert!(notes.find(tag, after(30)).is_some());
            assert_eq!(notes.find(tag, after(31)), None);
        }
    }

    #[test]
    fn everything_that_names_a_datagram_counts() {
        let notes = Notes::new(KEY);
        let one = datagram(7, 7);
        notes.leave(notes.tag(&one), NOW, Fate::Linux);
        for other in [
            Datagram { source: 8, ..one },
            Datagram { destination: 8, ..one },
            Datagram { protocol: 6, ..one },
            Datagram { identification: 8, ..one },
            Datagram { source: one.destination, destination: one.source, ..one },
        ] {
            assert_eq!(notes.find(notes.tag(&other), NOW), None, "{other:?}");
        }
    }

    #[test]
    fn a_datagram_has_one_note() {
        let notes = Notes::new(KEY);
        let tag = notes.tag(&datagram(7, 7));
        notes.leave(tag, NOW, Fate::Linux);
        notes.leave(tag, after(1), with(3, 4));
        assert_eq!(notes.find(tag, after(1)), Some(Note { fate: with(3, 4), is_young: true }));
        let taken =
            |bucket: &Bucket| bucket.0.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
        assert_eq!(notes.buckets.iter().map(taken).sum::<usize>(), 1);
    }

    #[test]
    fn the_oldest_of_a_bucket_goes() {
        let notes = Notes::new(KEY);
        let home = notes.tag(&datagram(7, 0)).place;
        let tags: Vec<Tag> = (0..u16::MAX)
            .map(|id| notes.tag(&datagram(7, id)))
            .filter(|tag| tag.place == home)
            .take(SLOTS + 2)
            .collect();
        for (seconds, &tag) in tags.iter().enumerate() {
            notes.leave(tag, after(seconds as u64), Fate::Linux);
        }
        let known: Vec<bool> = tags.iter().map(|&tag| notes.find(tag, after(6)).is_some()).collect();
        assert_eq!(known, [false, false, true, true, true, true]);
    }

    #[test]
    fn a_pair_of_hosts_pushes_out_no_others() {
        let notes = Notes::new(KEY);
        let others: Vec<Tag> = (0..1000).map(|host| notes.tag(&datagram(host, 1))).collect();
        others.iter().for_each(|&tag| notes.leave(tag, NOW, Fate::Linux));
        (0..=u16::MAX)
            .for_each(|id| notes.leave(notes.tag(&datagram(0xC633_6407, id)), after(1), Fate::Linux));
        let left = others.iter().filter(|&&tag| notes.find(tag, after(1)).is_some()).count();
        // One region of 64 is lost, about sixteen of a thousand.
        assert!((960..1000).contains(&left), "{left} of 1000 are left");
    }

    /// What is found is what somebody has left, whole, however many write to a bucket at once.
    #[test]
    fn workers_that_leave_notes_at_once_find_whole_ones() {
        let notes = Notes::new(KEY);
        // Of one bucket, and more than it has room for.
        let home = notes.tag(&datagram(7, 0)).place;
        let tags = (0..u16::MAX).map(|id| (id, notes.tag(&datagram(7, id))));
        let tags: Vec<(u16, Tag)> = tags.filter(|(_, tag)| tag.place == home).take(SLOTS + 2).collect();
        std::thread::scope(|scope| {
            for worker in 1..=4u32 {
                let (notes, tags) = (&notes, &tags);
                scope.spawn(move || {
                    for round in 0..20_000u32 {
                        let (id, tag) = tags[(round * worker) as usize % tags.len()];
                        notes.leave(tag, Tick(NOW.0 + u64::from(round) / 1000), with(worker, id));
                        for &(id, tag) in tags {
                            let found = notes.find(tag, NOW);
                            let is_whole = |note: Note| {
                                matches!(note.fate, Fate::With(Flow { dest, client_port, .. }) if (1..=4).contains(&dest.index()) && client_port == id)
                            };
                            assert!(found.is_none_or(is_whole), "{found:?}");
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn datagrams_spread_over_the_buckets() {
        let notes = Notes::new(KEY);
        for id in 0..400 {
            notes.leave(notes.tag(&datagram(7, id)), NOW, Fate::Linux);
        }
        let found = (0..400).filter(|&id| notes.find(notes.tag(&datagram(7, id)), NOW).is_some()).count();
        // 400 in 256 buckets of four: Poisson has 2 % of them find their bucket full.
        assert!(found > 380, "{found} of 400");
    }
}
