//! What keeps a flood of SYNs out of the table: a gate that is shut while more handshakes are left half done than a service is meant to have.
//!
//! A SYN costs a place in a bucket, and a handshake that is completed brings it back. So clients that mean it cost nothing however many they
//! are, but for the time of a round trip, and what empties the bucket is who never answers. When it is empty the gate is *shut*: SYNs go on to servers, which a hash chooses, and
//! leave no word in the table; a connection's word is made by the client's acknowledgement ([`crate::engine`], `gate.rs`). SYNs go on to cost while it is shut, so it
//! stays so as long as the flood lasts, and *opens* when the bucket is half full again: half the burst apart, it does not flutter.
//!
//! An acknowledgement can be made up as a SYN can, and the sequence number that would prove it is the server's. So at most as many begin connections by
//! that in a second as SYNs might be left half done, by a bucket of their own that nothing is brought back to. Whatever is sent, a service gets no more than twice the rate
//! of embryonic words, and these are the first to go when room is wanted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::bucket::{Bucket, Rate};
use crate::clock::{TICKS_PER_SECOND, Tick};

/// How long after the last SYN that left no word acknowledgements are taken for the ends of such handshakes, in ticks: a server repeats what it answers
/// after 1, 3 and 7 seconds.
const LATE: u64 = 16 * TICKS_PER_SECOND as u64;

/// The gate of a service. Ordering is relaxed throughout: each word stands for itself, and workers that see it a moment late insert, or do not, a moment longer.
#[derive(Debug, Default)]
pub(super) struct Gate {
    half_open: Bucket,
    late: Bucket,
    shut: AtomicBool,
    /// The tick of the last SYN that left no word, and one; 0 before the first.
    last: AtomicU64,
    passed: AtomicU64,
}

/// What there is to say of a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flood {
    /// Whether it is shut.
    pub shut: bool,
    /// How many SYNs have met it shut.
    pub syns: u64,
}

impl Gate {
    /// A SYN that would begin a connection; whether the gate is shut to it.
    pub fn knock(&self, rate: Rate, now: Tick) -> bool {
        let fits = self.half_open.take_or_empty(rate, now);
        let was_shut = self.shut.load(Ordering::Relaxed);
        let shut = !fits || was_shut && !self.half_open.is_half_full(rate, now);
        if shut != was_shut {
            self.shut.store(shut, Ordering::Relaxed);
        }
        if shut {
            self.passed.fetch_add(1, Ordering::Relaxed);
            if self.last.load(Ordering::Relaxed) != now.0 + 1 {
                self.last.store(now.0 + 1, Ordering::Relaxed);
            }
        }
        shut
    }

    /// A handshake has been completed.
    pub fn completed(&self, rate: Rate, now: Tick) {
        self.half_open.give_back(rate, now);
    }

    /// Whether a packet that belongs to no connection may be of one that began while it was shut.
    pub fn was_shut(&self, now: Tick) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        last != 0 && now.0.saturating_sub(last - 1) <= LATE
    }

    /// Whether a connection may begin by an acknowledgement.
    pub fn take_late(&self, rate: Rate, now: Tick) -> bool {
        self.late.take(rate, now)
    }

    pub fn flood(&self, rate: Rate, now: Tick) -> Flood {
        // Nobody opens it when nobody knocks.
        let shut = self.shut.load(Ordering::Relaxed) && !self.half_open.is_half_full(rate, now);
        Flood { shut, syns: self.passed.load(Ordering::Relaxed) }
    }

    /// Another gate in the same state.
    pub fn copy(&self) -> Gate {
        Gate {
            half_open: self.half_open.copy(),
            late: self.late.copy(),
            shut: self.shut.load(Ordering::Relaxed).into(),
            last: self.last.load(Ordering::Relaxed).into(),
            passed: self.passed.load(Ordering::Relaxed).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 40, burst: 40 };

    #[test]
    fn clients_that_answer_cost_nothing_and_those_who_do_not_shut_it() {
        let gate = Gate::default();
        for n in 0..1000 {
            assert!(!gate.knock(RATE, Tick(0)), "{n}");
            gate.completed(RATE, Tick(0));
        }
        let hashed = (0..100).filter(|_| gate.knock(RATE, Tick(0))).count();
        assert_eq!((hashed, gate.flood(RATE, Tick(0))), (60, Flood { shut: true, syns: 60 }));
    }

    #[test]
    fn it_is_shut_as_long_as_the_flood_lasts_and_opens_when_half_is_back() {
        let gate = Gate::default();
        // Fifteen a tick, of which it bears ten.
        let shut: Vec<usize> =
            (0..40).map(|now| (0..15).filter(|_| gate.knock(RATE, Tick(now))).count()).collect();
        assert_eq!(shut[..7], [0, 0, 0, 0, 0, 0, 5], "a burst of forty, and ten a tick");
        assert!(shut[7..].iter().all(|&shut| shut == 15), "it does not flutter: {shut:?}");
        assert!(gate.knock(RATE, Tick(40)));
        assert!(gate.flood(RATE, Tick(40)).shut && !gate.flood(RATE, Tick(43)).shut);
        assert!(!gate.knock(RATE, Tick(43)));
        assert!(gate.was_shut(Tick(40 + LATE)) && !gate.was_shut(Tick(41 + LATE)));
        assert!(!Gate::default().was_shut(Tick(0)));
    }

    #[test]
    fn acknowledgements_that_are_made_up_are_limited_and_bring_nothing_back() {
        let gate = Gate::default();
        let taken = (0..1000)
            .filter(|_| {
                gate.completed(RATE, Tick(0));
                gate.take_late(RATE, Tick(0))
            })
            .count();
        assert_eq!(taken, 40);
    }
}
