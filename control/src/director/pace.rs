//! When the next snapshot is made.
//!
//! A change that comes alone is put in force at once. When they come in streams (a failed switch takes ten thousand
//! servers down, or a router learns as many neighbours), a snapshot takes in all that has come since the last one, and
//! no more than a quarter of the time goes into snapshots: the rest is for whoever asks, and for the checks.

use std::time::Duration;

use tokio::time::Instant;

/// A snapshot may take one part in so many of the time.
const SHARE: u32 = 4;

/// From one snapshot to the next at least: a worker that takes up a new one meets it cold.
const SHORTEST: Duration = Duration::from_millis(20);

/// What has to be put in force, and when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When a snapshot is to be made, if there is something for it.
    due: Option<Instant>,
    /// None may be made before.
    free: Option<Instant>,
}

impl Pace {
    /// Something has changed.
    pub(super) fn ask(&mut self, now: Instant) {
        self.due.get_or_insert(self.free.map_or(now, |free| free.max(now)));
    }

    /// When to make the next snapshot, if there is something for it.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A snapshot has been made of all that was known when it began.
    pub(super) fn made(&mut self, began: Instant, ended: Instant) {
        self.due = None;
        self.free = Some(began + SHORTEST.max((ended - began) * SHARE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes at these milliseconds, and snapshots that take `cost` each: when they begin.
    fn play(changes: &[u64], cost: u64) -> Vec<u64> {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut pace = Pace::default();
        let mut snapshots = Vec::new();
        let mut make = |pace: &mut Pace, until: Option<Instant>| {
            while let Some(due) = pace.due().filter(|due| until.is_none_or(|until| *due < until)) {
                pace.made(due, due + Duration::from_millis(cost));
                snapshots.push((due - start).as_millis() as u64);
            }
        };
        for &change in changes {
            make(&mut pace, Some(at(change)));
            pace.ask(at(change));
        }
        make(&mut pace, None);
        snapshots
    }

    #[test]
    fn what_comes_alone_does_not_wait() {
        assert_eq!(play(&[5, 500, 520, 2_000], 3), [5, 500, 520, 2_000]);
    }

    #[test]
    fn what_comes_in_streams_is_put_together() {
        let stream: Vec<u64> = (0..100).collect();
        assert_eq!(play(&stream, 1), [0, 20, 40, 60, 80, 100], "the last change has its snapshot, too");
        assert_eq!(play(&stream, 10), [0, 40, 80, 120], "a quarter of the time");
    }

    #[test]
    fn without_a_change_there_is_nothing_to_do() {
        assert_eq!(play(&[], 1), [0; 0]);
    }
}
