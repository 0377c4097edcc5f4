//! How many connections may begin in a second: a token bucket that all workers share, one word, without a lock.
//!
//! The engine's clock ticks four times a second, so the bucket gets a quarter of its rate with each tick, and what it gets in whole is exact: a
//! connection costs four units, and a tick brings as many as the rate has connections. A bucket of no more than a tick's connections could
//! not pass the rate, so a burst is that at the least.
//!
//! What is kept is what has been spent, not what is left. So a word of zeros is a full bucket of whatever rate, and a rate that is changed by a reload
//! finds what has been spent under the old one.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{TICKS_PER_SECOND, Tick};

/// How many connections may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In a second, on the average.
    pub per_second: u32,
    /// At once, after a time in which few have begun.
    pub burst: u32,
}

impl Rate {
    /// The largest rate and the largest burst.
    pub const MOST: u32 = u32::MAX / COST;

    /// So many connections a second, and so many at once: what comes in a tick at the least.
    pub fn new(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst: burst.max(per_second.div_ceil(TICKS_PER_SECOND)) }
    }

    const fn room(self) -> u64 {
        self.burst as u64 * COST as u64
    }
}

/// What a connection costs, in units of which each tick brings [`Rate::per_second`].
const COST: u32 = TICKS_PER_SECOND;

/// A bucket: what has been spent (32 bits below), and the tick of that (32 bits above).
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

impl Bucket {
    /// Whether another connection fits now. No more than that: somebody else may take the place.
    pub fn has_room(&self, rate: Rate, now: Tick) -> bool {
        let (_, spent) = at(self.0.load(Ordering::Relaxed), rate, now);
        spent + u64::from(COST) <= rate.room()
    }

    /// Takes a connection's place, if there is one.
    pub fn take(&self, rate: Rate, now: Tick) -> bool {
        self.spend(rate, now, |spent| (spent <= rate.room()).then_some(spent))
    }

    /// The same, and if there is none the bucket is empty afterwards: for one of several, of which another may have had a place.
    pub fn take_or_empty(&self, rate: Rate, now: Tick) -> bool {
        let mut fits = false;
        self.spend(rate, now, |spent| {
            fits = spent <= rate.room();
            Some(spent.min(rate.room().max(spent - u64::from(COST))))
        });
        fits
    }

    /// Brings a connection's place back.
    pub fn give_back(&self, rate: Rate, now: Tick) {
        self.spend(rate, now, |spent| Some(spent.saturating_sub(2 * u64::from(COST))));
    }

    /// Whether no more than half of it is spent.
    pub fn is_half_full(&self, rate: Rate, now: Tick) -> bool {
        at(self.0.load(Ordering::Relaxed), rate, now).1 <= rate.room() / 2
    }

    /// Replaces what will have been spent with another connection by what `judge` makes of it, if anything; whether it did.
    fn spend(&self, rate: Rate, now: Tick, mut judge: impl FnMut(u64) -> Option<u64>) -> bool {
        // Relaxed: the word stands for itself.
        let spend = |word| {
            let (tick, spent) = at(word, rate, now);
            Some(tick << 32 | judge(spent + u64::from(COST))?.min(u64::from(u32::MAX)))
        };
        self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }

    /// Another bucket that is as full.
    pub fn copy(&self) -> Bucket {
        Bucket(self.0.load(Ordering::Relaxed).into())
    }
}

/// The tick of a bucket and what is spent then. A worker whose clock is a tick behind brings nothing and takes nothing back.
fn at(word: u64, rate: Rate, now: Tick) -> (u64, u64) {
    let (then, spent) = (word >> 32, word & u64::from(u32::MAX));
    let now = now.0 & u64::from(u32::MAX);
    let brought = now.saturating_sub(then).saturating_mul(rate.per_second.into());
    (then.max(now), spent.saturating_sub(brought))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    fn taken(bucket: &Bucket, rate: Rate, now: u64) -> usize {
        (0..1000).filter(|_| bucket.take(rate, Tick(now))).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let bucket = Bucket::default();
        assert_eq!(taken(&bucket, RATE, 0), 5);
        assert!(!bucket.has_room(RATE, Tick(0)));
        let each: Vec<usize> = (1..=4).map(|now| taken(&bucket, RATE, now)).collect();
        assert_eq!(each, [2, 3, 2, 3], "ten in a second, and no half is lost");
        assert_eq!(taken(&bucket, RATE, 100), 5, "no more than the burst");
        assert_eq!(taken(&bucket, RATE, 99), 0, "a worker whose clock is behind");
        assert_eq!(taken(&bucket, Rate { burst: 7, ..RATE }, 100), 2, "the burst was raised");
        assert_eq!(taken(&bucket, Rate { burst: 4, ..RATE }, 101), 0, "and lowered: 4.5 are still spent");
    }

    #[test]
    fn slow_rates_and_the_largest() {
        let slow = Rate { per_second: 1, burst: 1 };
        let bucket = Bucket::default();
        let begun: Vec<u64> = (0..20).filter(|&now| taken(&bucket, slow, now) == 1).collect();
        assert_eq!(begun, [0, 4, 8, 12, 16]);
        let most = Rate { per_second: Rate::MOST, burst: Rate::MOST };
        let bucket = Bucket::default();
        assert!((0..1000).all(|_| bucket.take(most, Tick(u64::MAX))));
        assert_eq!([1, 4, 5, 40].map(|per_second| Rate::new(per_second, 3).burst), [3, 3, 3, 10]);
    }

    #[test]
    fn workers_that_take_at_the_same_time_take_no_more() {
        let rate = Rate { per_second: 100, burst: 3000 };
        let bucket = Bucket::default();
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&bucket, rate, 7))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 3000);
    }

    proptest! {
        /// The plain way: what is left, in connections, as a fraction.
        #[test]
        fn agrees_with_the_plain_way(
            per_second in 1_u32..1000,
            burst in 1_u32..500,
            steps in prop::collection::vec((0_u64..3, 0_usize..50), 1..60),
        ) {
            let rate = Rate { per_second, burst };
            let bucket = Bucket::default();
            let (mut now, mut left) = (0, f64::from(burst));
            for (ticks, wanted) in steps {
                now += ticks;
                left = (left + f64::from(per_second) * ticks as f64 / 4.0).min(f64::from(burst));
                for _ in 0..wanted {
                    let fits = left >= 1.0;
                    left -= f64::from(u8::from(fits));
                    prop_assert_eq!(bucket.take(rate, Tick(now)), fits);
                }
            }
        }
    }
}
