//! The walk through the table by which others hear again of connections that have not changed.
//!
//! Whoever is told of a connection forgets it when its timeout has passed since it was last seen, as far as is known
//! there. So one that stays as it is and goes on has to be told again before that. The table is passed in *rounds*; an
//! entry's turn comes in each so many of them, which are a third of its timeout. Those that nothing has come for since
//! their last turn are left out: there is nothing new to say of them. Once in [`HEAL`] all are told, which heals what
//! nobody has noticed.
//!
//! How many rounds there are depends on the shortest timeout: with those of IPVS six in a minute, for LAST_ACK. What it
//! costs is a look at each bucket in each round, and some ten bytes a third of its timeout for a connection that is busy.

use std::time::Duration;

use dataplane::clock::{TICKS_PER_SECOND, Timeout};

/// How long it takes until everything has been told again.
pub const HEAL: Duration = Duration::from_secs(60);
/// Rounds in that time, at the most, for the sake of large tables: enough for timeouts from two seconds on.
const MOST: u32 = 120;
/// A connection is told so many times within its timeout. Once would do if nothing was ever late.
const TIMES: u32 = 3;

/// Where a walk has come to.
#[derive(Debug)]
pub struct Walk {
    /// The next bucket.
    next: usize,
    /// The round that it is of, and when that began.
    round: u64,
    began: Duration,
}

/// How fast the table is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Rounds in [`HEAL`].
    rounds: u32,
}

/// A bucket in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The bucket.
    pub bucket: usize,
    /// The round's number.
    round: u64,
}

impl Walk {
    /// One that begins now.
    pub fn new(now: Duration) -> Walk {
        Walk { next: 0, round: 0, began: now }
    }

    /// Begins anew: all has just been told.
    pub fn begin_anew(&mut self, now: Duration) {
        *self = Walk { round: self.round + 1, ..Walk::new(now) };
    }

    /// The next bucket, if it is time for it. Within a round the pace is steady.
    pub fn step(&mut self, now: Duration, buckets: usize, pace: Pace) -> Option<Turn> {
        let period = pace.period();
        let elapsed = now.saturating_sub(self.began).min(period);
        let due = (buckets as u128 * elapsed.as_micros() / period.as_micros()) as usize;
        if self.next >= due {
            return None;
        }
        let turn = Turn { bucket: self.next, round: self.round };
        self.next += 1;
        if self.next >= buckets {
            self.begin_anew(now);
        }
        Some(turn)
    }
}

impl Pace {
    /// One that is fast enough for all of these timeouts.
    pub fn for_all(timeouts: impl Iterator<Item = Timeout>) -> Pace {
        let seconds = timeouts.map(|timeout| timeout.remaining(0)).min().unwrap_or(u32::MAX);
        let rounds = (HEAL.as_secs() as u32 * TIMES).div_ceil(seconds.max(1));
        Pace { rounds: rounds.clamp(1, MOST) }
    }

    /// How long a round takes.
    fn period(self) -> Duration {
        HEAL / self.rounds
    }

    /// Whether it is the turn of a connection with this timeout that was last seen so many ticks ago. `None`: it is over,
    /// and need not be kept.
    pub fn has_come(self, turn: Turn, timeout: Option<Timeout>, age: u32) -> bool {
        // The buckets take turns, so that all rounds are alike.
        let number = turn.round + turn.bucket as u64;
        if number.is_multiple_of(self.rounds.into()) {
            return true;
        }
        let Some(timeout) = timeout else { return false };
        let third =
            u64::from(timeout.remaining(0)) * u64::from(self.rounds) / u64::from(TIMES) / HEAL.as_secs();
        let every = third.clamp(1, self.rounds.into()) as u32;
        // A tick more, since both ends are rounded.
        let since_last = self.period().as_millis() as u32 * every * TICKS_PER_SECOND / 1000 + 1;
        number.is_multiple_of(every.into()) && age <= since_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: usize = 60;

    /// Somewhat more than two times [`HEAL`].
    const LONG: Duration = Duration::from_secs(130);

    /// When the turn of a connection in this bucket has come, if its age is always this.
    fn turns(pace: Pace, bucket: usize, timeout: Option<Timeout>, age: u32) -> Vec<Duration> {
        let mut walk = Walk::new(Duration::ZERO);
        let (mut turns, mut now) = (Vec::new(), Duration::ZERO);
        while now < LONG {
            now += Duration::from_millis(5);
            while let Some(turn) = walk.step(now, BUCKETS, pace) {
                if turn.bucket == bucket && pace.has_come(turn, timeout, age) {
                    turns.push(now);
                }
            }
        }
        turns
    }

    fn longest_gap(turns: &[Duration]) -> Duration {
        turns.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }

    fn seconds(seconds: u32) -> Timeout {
        Timeout::from_seconds(seconds)
    }

    #[test]
    fn the_turn_of_what_is_busy_comes_within_its_timeout() {
        for (shortest, timeout) in [(2, 2), (5, 5), (5, 30), (5, 100), (30, 30), (30, 60), (30, 120), (7, 61)]
        {
            let pace = Pace::for_all([seconds(900), seconds(shortest)].into_iter());
            for bucket in [0, 7, 59] {
                let turns = turns(pace, bucket, Some(seconds(timeout)), 0);
                let third = Duration::from_secs(timeout.into()) / 3;
                let longest = longest_gap(&turns);
                assert!(longest <= third + third / 10, "timeout {timeout} s: {longest:?}");
                let most = 2 * LONG.as_secs() as usize * 3 / timeout as usize + 4;
                assert!(turns.len() <= most, "timeout {timeout} s: {} times", turns.len());
            }
        }
    }

    #[test]
    fn everything_has_its_turn_once_a_minute_and_what_is_silent_no_more_often() {
        let pace = Pace::for_all([seconds(5)].into_iter());
        for bucket in 0..BUCKETS {
            for (timeout, age) in [(Some(seconds(5)), 1000), (Some(seconds(900)), 0), (None, 0)] {
                let turns = turns(pace, bucket, timeout, age);
                assert!(longest_gap(&turns) < HEAL + HEAL / 20, "bucket {bucket}, {timeout:?}: {turns:?}");
                assert!(turns.len() <= 3, "bucket {bucket}, {timeout:?}: {turns:?}");
            }
        }
    }

    #[test]
    fn long_timeouts_need_no_more_than_one_round_and_the_shortest_no_more_than_the_most() {
        assert_eq!(Pace::for_all([seconds(900), seconds(180)].into_iter()), Pace { rounds: 1 });
        assert_eq!(Pace::for_all([seconds(900), seconds(30)].into_iter()), Pace { rounds: 6 });
        assert_eq!(Pace::for_all([seconds(1)].into_iter()), Pace { rounds: MOST });
        assert_eq!(Pace::for_all([].into_iter()), Pace { rounds: 1 });
    }
}
