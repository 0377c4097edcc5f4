//! How many checks there have been and how long they took, by kind of check.
//!
//! By kind and not by service or server: servers of several services share a check, so that a sum over services would
//! count it twice; and ten thousand servers with seventeen buckets each would be a database of their own. Which server
//! fails, and why, is in the services' listing and in the events.
//!
//! Counting is wrapped around a probe, since whoever waits for it only knows that it has not ended in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::probe::{Outcome, Probe};

/// Upper bounds of the buckets of latency, in seconds: a server in the same rack to one that is in trouble.
pub const BOUNDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What has come of the checks of a kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checks {
    /// The kind, as the configuration names it.
    pub kind: &'static str,
    /// Those that passed, by the time that they took: up to each of [`BOUNDS`], and more.
    pub passed: [u64; BOUNDS.len() + 1],
    /// The time that those took in all, in seconds.
    pub seconds: f64,
    /// Those that the server failed.
    pub failed: u64,
    /// Those that had not ended when their time was up.
    pub timed_out: u64,
    /// Those that could not be made, for a reason that lies with this machine.
    pub unknown: u64,
}

/// Counters of a kind.
#[derive(Debug, Default)]
pub(super) struct Counts {
    passed: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    unknown: AtomicU64,
}

impl Counts {
    pub(super) fn get(&self, kind: &'static str) -> Checks {
        // Relaxed, here and below: each count stands for itself.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Checks {
            kind,
            passed: self.passed.each_ref().map(get),
            seconds: get(&self.micros) as f64 / 1e6,
            failed: get(&self.failed),
            timed_out: get(&self.timed_out),
            unknown: get(&self.unknown),
        }
    }

    fn count(&self, outcome: &Outcome, took: Duration) {
        let counter = match outcome {
            Outcome::Passed { .. } => {
                self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
                let seconds = took.as_secs_f64();
                &self.passed[BOUNDS.partition_point(|bound| *bound < seconds)]
            }
            Outcome::Failed(_) => &self.failed,
            Outcome::Unknown(_) => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A probe whose checks are counted.
pub(super) struct Counted {
    pub(super) probe: Box<dyn Probe>,
    /// After which a check is dropped.
    pub(super) timeout: Duration,
    pub(super) counts: Arc<Counts>,
}

impl Probe for Counted {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        // Before whoever waits looks at the clock, so that what it drops has used up its time.
        let start = Instant::now();
        async move {
            let mut pending = Pending { start, counted: self, ended: false };
            let outcome = self.probe.probe(address).await;
            pending.ended = true;
            self.counts.count(&outcome, pending.start.elapsed());
            outcome
        }
        .boxed()
    }
}

/// A check under way.
struct Pending<'a> {
    start: Instant,
    counted: &'a Counted,
    ended: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // One that a reload breaks off before its time is nobody's failure.
        if !self.ended && self.start.elapsed() >= self.counted.timeout {
            self.counted.counts.timed_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so long, and says that.
    struct Slow(Duration, Outcome);

    impl Probe for Slow {
        fn probe(&self, _: SocketAddr) -> BoxFuture<'_, Outcome> {
            tokio::time::sleep(self.0).map(|()| self.1.clone()).boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_check_is_counted_once_under_what_came_of_it() {
        let counts = Arc::<Counts>::default();
        let timeout = Duration::from_secs(1);
        for (millis, outcome) in [
            (1, Outcome::passed("connected")),
            (2, Outcome::passed("connected")),
            (700, Outcome::passed("connected")),
            (3, Outcome::failed("connection refused")),
            (4, Outcome::Unknown("no descriptor".into())),
            (5_000, Outcome::passed("late")),
        ] {
            let probe = Box::new(Slow(Duration::from_millis(millis), outcome));
            let counted = Counted { probe, timeout, counts: Arc::clone(&counts) };
            let check = counted.probe("10.0.0.11:80".parse().unwrap());
            // Its time is up, or it has an outcome.
            let _ = tokio::time::timeout(timeout, check).await;
            // A reload breaks this one off.
            assert_eq!(counted.probe("10.0.0.11:80".parse().unwrap()).now_or_never(), None);
        }
        let checks = counts.get("tcp");
        let passed: Vec<_> = (0..).zip(checks.passed).filter(|(_, count)| *count > 0).collect();
        assert_eq!(passed, [(3, 1), (4, 1), (12, 1)], "1 ms, 2.5 ms, 1 s");
        assert!((checks.seconds - 0.703).abs() < 1e-9, "{}", checks.seconds);
        assert_eq!((checks.failed, checks.timed_out, checks.unknown), (1, 1, 1));
    }
}
