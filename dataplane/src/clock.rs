//! Coarse time: ticks of a quarter of a second since an arbitrary start.
//!
//! A connection word has sixteen bits for "last seen". Ticks of a quarter second give them a range of
//! 4.5 hours, plenty for the timeouts of IPVS; for the longer ones that LVS allows (31 days) a flag in
//! the word says that its unit is 256 ticks (64 s), which gives 48 days.

/// Ticks in a second.
pub const TICKS_PER_SECOND: u32 = 4;

/// Ticks in the coarse unit of long timeouts, as a shift: 256 ticks are 64 seconds.
pub const COARSE_SHIFT: u32 = 8;

/// The longest timeout, in ticks, kept in the fine unit. Half of the sixteen-bit range: the other half
/// is what the sweeper has to find the entry before its age wraps (more than two hours).
pub const FINE_LIMIT: u32 = 1 << 15;

/// A moment, in ticks since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    /// This moment as a word's "last seen" keeps it.
    pub const fn stamp(self, coarse: bool) -> u16 {
        if coarse { (self.0 >> COARSE_SHIFT) as u16 } else { self.0 as u16 }
    }

    /// Ticks that have passed since a stamp.
    ///
    /// Workers read their clocks independently, so a stamp may be slightly in this worker's future:
    /// the last 256 of the 65536 possible ages are read as "just now".
    pub const fn since(self, stamp: u16, coarse: bool) -> u32 {
        let age = self.stamp(coarse).wrapping_sub(stamp) as u32;
        if age >= 0xFF00 {
            0
        } else if coarse {
            // Both ends are rounded down, so the difference may be a unit too much; never count that one.
            (age << COARSE_SHIFT).saturating_sub((1 << COARSE_SHIFT) - 1)
        } else {
            age
        }
    }
}

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    ticks: u32,
}

impl Timeout {
    /// A timeout of so many seconds.
    pub const fn from_seconds(seconds: u32) -> Self {
        Timeout { ticks: seconds.saturating_mul(TICKS_PER_SECOND) }
    }

    /// Whether words under this timeout count in the coarse unit.
    pub const fn is_coarse(self) -> bool {
        self.ticks > FINE_LIMIT
    }

    /// Age from which a packet renews the word's stamp. Not every packet: writing the line once a
    /// second keeps it shared between the cores that read it.
    pub const fn renew_after(self) -> u32 {
        if self.is_coarse() {
            1 << COARSE_SHIFT
        } else if self.ticks >= 64 {
            TICKS_PER_SECOND
        } else {
            1
        }
    }

    /// The greatest age of a live connection. Never too early: what [`Self::renew_after`] may have left
    /// unwritten is added.
    pub const fn lifetime(self) -> u32 {
        self.ticks + self.renew_after()
    }

    /// Whether a connection of this age has expired.
    pub const fn has_passed(self, age: u32) -> bool {
        age > self.lifetime()
    }

    /// Whole seconds until expiry, for listings.
    pub const fn remaining(self, age: u32) -> u32 {
        self.ticks.saturating_sub(age).div_ceil(TICKS_PER_SECOND)
    }

    /// The age of a connection that expires in so many seconds; 0 if that is longer than the timeout.
    pub const fn age_with(self, remaining: u32) -> u32 {
        self.ticks.saturating_sub(remaining.saturating_mul(TICKS_PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::MAX_TIMEOUT_SECONDS;

    #[test]
    fn a_stamp_survives_the_wrap_of_sixteen_bits() {
        let seen = Tick(0x1_FFFE);
        assert_eq!(Tick(0x2_0003).since(seen.stamp(false), false), 5);
    }

    #[test]
    fn a_stamp_from_another_workers_future_is_now() {
        assert_eq!(Tick(1000).since(Tick(1001).stamp(false), false), 0);
    }

    #[test]
    fn never_expires_early_and_at_most_three_units_late() {
        for seconds in [0, 1, 2, 10, 60, 900, 8192, 8193, 86_400, MAX_TIMEOUT_SECONDS] {
            let timeout = Timeout::from_seconds(seconds);
            let coarse = timeout.is_coarse();
            let seen = Tick(12_345);
            let stamp = seen.stamp(coarse);
            let due = u64::from(seconds) * u64::from(TICKS_PER_SECOND);
            let alive = Tick(seen.0 + due);
            assert!(!timeout.has_passed(alive.since(stamp, coarse)), "{seconds} s: early");
            let slack = 3 * u64::from(timeout.renew_after()) + 1;
            let dead = Tick(seen.0 + due + slack);
            assert!(timeout.has_passed(dead.since(stamp, coarse)), "{seconds} s: late");
        }
    }
}
