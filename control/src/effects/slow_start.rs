//! The weight of a server that has come up grows over a time, so that one with cold caches is not flooded.

use std::time::Duration;

use tokio::time::Instant;

/// How finely a weight is divided while it grows.
const FINEST: u32 = 64;
/// Steps of a ramp, but no more than one a quarter of a second: each is a snapshot.
const STEPS: u32 = 32;
const SHORTEST_STEP: Duration = Duration::from_millis(250);

/// A weight that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ramp {
    start: Instant,
    time: Duration,
}

impl Ramp {
    pub(super) fn new(start: Instant, time: Duration) -> Ramp {
        Ramp { start, time }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.start + self.time
    }

    /// When it has grown enough to be told.
    pub(super) fn next(&self, now: Instant) -> Instant {
        (now + (self.time / STEPS).max(SHORTEST_STEP)).min(self.start + self.time)
    }

    /// How much of a weight it is now: at least 1, unless that is 0.
    pub(super) fn weight(&self, full: u32, now: Instant) -> u32 {
        let share = now.saturating_duration_since(self.start).as_secs_f64() / self.time.as_secs_f64();
        ((f64::from(full) * share) as u32).clamp(full.min(1), full)
    }
}

/// By how much weights are multiplied while one of them grows: shares stay what they are, and a weight of 1 can be
/// divided. Schedulers divide weights by what they have in common, so that other servers' flows stay where they are.
///
/// No more than it takes to divide the greatest finely. wrr serves a server of little weight so many times in a row as
/// that weight says, once a period, which is as long as all weights together: with 64 times 20 a server that grows had
/// nothing for a thousand connections and then a third of them.
pub(super) fn scale(weights: &[u32]) -> u32 {
    let greatest = weights.iter().copied().max().unwrap_or(1).max(1);
    FINEST.div_ceil(greatest)
}

#[cfg(test)]
mod tests {
    use dataplane::service::MAX_WEIGHT;

    use super::*;

    #[test]
    fn it_grows_from_one_to_all_of_it() {
        let start = Instant::now();
        let ramp = Ramp::new(start, Duration::from_secs(10));
        let at = |seconds, full| ramp.weight(full, start + Duration::from_secs(seconds));
        assert_eq!([0, 1, 5, 9, 10, 99].map(|seconds| at(seconds, 64)), [1, 6, 32, 57, 64, 64]);
        assert_eq!((at(0, 0), at(0, 1), at(5, 1)), (0, 1, 1));
        assert!(
            !ramp.is_over(start + Duration::from_secs(9)) && ramp.is_over(start + Duration::from_secs(10))
        );
        assert_eq!(ramp.next(start), start + Duration::from_secs(10) / 32);
        assert_eq!(ramp.next(start + Duration::from_millis(9900)), start + Duration::from_secs(10));
    }

    #[test]
    fn weights_are_multiplied_as_far_as_it_takes() {
        assert_eq!((scale(&[]), scale(&[1])), (FINEST, FINEST));
        assert_eq!([&[1, 2][..], &[3], &[20], &[63], &[64], &[MAX_WEIGHT]].map(scale), [32, 22, 4, 2, 1, 1]);
    }
}
