//! What each source has begun, and what it has open: for any number of sources in a memory that does not grow.
//!
//! A source has one cell in each of two rows, found by a keyed hash, and shares it with whoever hashes to the same. All that it does is noted in
//! both, so either says too much and never too little; what is true is the lesser of the two at the most (a count-min sketch: Cormode and
//! Muthukrishnan 2005). So
//!
//! * **no source ever gets more than its limit**, however many workers and whatever else is in its cells;
//! * a source may be refused although it has done nothing, if in both rows it meets one that is at its limit: with `n` such
//!   sources with a probability of (n / 131072)^2 about, one of 17 000 with a thousand. Which sources meet depends on a key that nobody outside knows.
//!
//! A flood from sources that are made up fills all cells alike. From as many connections a second as a source may begin, times 131072, everybody is
//! refused: what is left of a flood below that is for the service's own rate.

use std::hash::Hasher;
use std::sync::atomic::{AtomicU32, Ordering};

use siphasher::sip::SipHasher13;

use super::bucket::{Bucket, Rate};
use crate::clock::Tick;

/// Cells in a row.
const CELLS: usize = 1 << 17;

/// The cells of a source: one of each row, which follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cells([usize; 2]);

/// The secret by which sources find their cells.
pub type Key = [u64; 2];

impl Cells {
    /// Those of a source.
    pub fn of(key: Key, source: u128) -> Cells {
        let mut hasher = SipHasher13::new_with_keys(key[0], key[1]);
        hasher.write_u128(source);
        let hash = hasher.finish() as usize;
        Cells([hash % CELLS, CELLS + (hash >> 32) % CELLS])
    }
}

/// The rate at which each source begins connections.
#[derive(Debug)]
pub(super) struct Rates(Box<[Bucket]>);

impl Default for Rates {
    fn default() -> Self {
        Rates((0..2 * CELLS).map(|_| Bucket::default()).collect())
    }
}

impl Rates {
    /// Whether a source may begin another connection, which is noted then.
    pub fn take(&self, Cells(cells): Cells, rate: Rate, now: Tick) -> bool {
        let rows = cells.map(|cell| &self.0[cell]);
        // Who is refused spends nothing, and writes nothing.
        if !rows.iter().any(|bucket| bucket.has_room(rate, now)) {
            return false;
        }
        // A bucket that another has emptied says too much already; it must not say less than what this source has spent.
        let [first, second] = rows.map(|bucket| bucket.take_or_empty(rate, now));
        first || second
    }

    pub fn copy(&self) -> Rates {
        Rates(self.0.iter().map(Bucket::copy).collect())
    }
}

/// The connections that each source has.
#[derive(Debug)]
pub(super) struct Open(Box<[AtomicU32]>);

impl Default for Open {
    fn default() -> Self {
        Open((0..2 * CELLS).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Open {
    /// One more, if there are fewer than so many.
    pub fn enter(&self, cells: Cells, most: u32) -> bool {
        // Counted first: of workers that come at the same moment each sees those before it. Relaxed: a count stands for itself.
        let before = cells.0.map(|cell| self.0[cell].fetch_add(1, Ordering::Relaxed));
        let fits = before.into_iter().min().is_some_and(|least| least < most);
        if !fits {
            self.leave(cells);
        }
        fits
    }

    /// One less.
    pub fn leave(&self, Cells(cells): Cells) {
        for cell in cells {
            self.0[cell].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many there are at the most.
    #[cfg(test)]
    pub fn count(&self, Cells(cells): Cells) -> u32 {
        cells.map(|cell| self.0[cell].load(Ordering::Relaxed)).into_iter().min().unwrap_or(0)
    }

    pub fn copy(&self) -> Open {
        Open(self.0.iter().map(|count| count.load(Ordering::Relaxed).into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: Key = [1, 2];

    /// Rows of eight cells, in which everybody meets somebody.
    fn crowded(source: u8) -> Cells {
        let Cells([first, second]) = Cells::of(KEY, source.into());
        Cells([first % 8, CELLS + second % 8])
    }

    #[test]
    fn sources_have_cells_of_their_own_by_the_key() {
        let cells: Vec<Cells> = (0..1000).map(|source| Cells::of(KEY, source)).collect();
        let shared =
            (0..1000).filter(|&n| cells.iter().filter(|other| **other == cells[n]).count() > 1).count();
        assert_eq!(shared, 0, "in both rows");
        assert!((0..1000).all(|source| Cells::of([2, 1], source as u128) != cells[source]));
        assert!(
            cells.iter().all(|Cells([first, second])| *first < CELLS && (CELLS..2 * CELLS).contains(second))
        );
    }

    #[test]
    fn of_workers_at_the_same_moment_no_more_get_in() {
        let (open, cells) = (Open::default(), Cells::of(KEY, 7));
        let entered: usize = std::thread::scope(|scope| {
            let enter = || (0..10_000).filter(|_| open.enter(cells, 100)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(enter)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(entered <= 100 && open.count(cells) == entered as u32, "{entered}");
        (0..entered).for_each(|_| open.leave(cells));
        assert_eq!((0..200).filter(|_| open.enter(cells, 100)).count(), 100);
    }

    proptest! {
        /// Against a bucket for each source: nobody gets more, and whoever is alone gets all.
        #[test]
        fn nobody_gets_more_than_the_rate(
            per_second in 1_u32..20,
            burst in 5_u32..20,
            steps in prop::collection::vec((0_u64..2, any::<u8>()), 1..500),
        ) {
            let rate = Rate { per_second, burst };
            let (shared, alone, one) = (Rates::default(), Rates::default(), Bucket::default());
            let mut own: HashMap<u8, Bucket> = HashMap::new();
            let mut now = 0;
            for (ticks, source) in steps {
                let source = source % 32;
                now += ticks;
                let bucket = own.entry(source).or_default();
                if shared.take(crowded(source), rate, Tick(now)) {
                    prop_assert!(bucket.take(rate, Tick(now)), "more than its rate");
                }
                let got = alone.take(Cells::of(KEY, 0), rate, Tick(now));
                prop_assert_eq!(got, one.take(rate, Tick(now)));
            }
        }

        /// Against a count for each source.
        #[test]
        fn nobody_has_more_than_the_limit(
            most in 1_u32..6,
            steps in prop::collection::vec((any::<bool>(), any::<u8>()), 1..500),
        ) {
            let open = Open::default();
            let mut own: HashMap<u8, u32> = HashMap::new();
            for (enters, source) in steps {
                let source = source % 32;
                let count = own.entry(source).or_default();
                if enters {
                    let entered = open.enter(crowded(source), most);
                    prop_assert!(!entered || *count < most);
                    *count += u32::from(entered);
                } else if *count > 0 {
                    open.leave(crowded(source));
                    *count -= 1;
                }
                prop_assert!(open.count(crowded(source)) >= own[&source]);
            }
            for (source, count) in own {
                (0..count).for_each(|_| open.leave(crowded(source)));
            }
            prop_assert!(open.0.iter().all(|count| count.load(Ordering::Relaxed) == 0), "nothing is left");
        }
    }
}
