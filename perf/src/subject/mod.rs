//! Routers that are measured from outside: programs of their own, on a core of their own.
//!
//! ```text
//!   bench     a namespace, a state directory, two cores, hugepages       (removed afterwards, or by the next run)
//!     rvs       the built program, as it is released
//!     crowd     the same with many services and servers
//!     testpmd   DPDK's own forwarding program, the peer
//!       thread    CPU time of the one thread that polls
//!     asking    somebody who asks the program all the time
//! ```
//!
//! Namespaces and processes are those of the end-to-end tests (`tests/harness`), used as a library: they are
//! written down with their start time before they do anything, so that what a killed run leaves is ended by the
//! next one, and nothing else ever is. A copy of that would be the part of this program that is hardest to get right.

pub mod asking;
pub mod bench;
pub mod crowd;
pub mod rvs;
pub mod testpmd;
pub mod thread;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::process::Daemon;
use harness::wait;

use thread::{Thread, Times};

/// A program with one polling thread.
pub trait Subject {
    /// The thread that polls.
    fn thread(&self) -> &Thread;

    /// What it has done with packets since its start.
    fn counts(&mut self) -> Result<Counts>;

    /// Ends it, and says if it did not end well.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// What a program has done with packets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Packets received.
    pub received: u64,
    /// Packets sent on.
    pub forwarded: u64,
    /// Looks at a queue that found something, if the program tells.
    pub bursts: Option<u64>,
    /// What became of the others, by name, if the program tells.
    pub others: BTreeMap<String, u64>,
}

/// What a subject did in some interval.
#[derive(Clone, Debug)]
pub struct Work {
    /// Of its polling thread.
    pub times: Times,
    /// Of its packets.
    pub counts: Counts,
}

/// Asks `probe` until it answers, or the program has ended, whose last words are the error then.
pub fn until<T>(what: &str, daemon: &mut Daemon, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    wait::until(what, wait::PATIENCE, || match daemon.check_running() {
        Ok(()) => probe().map(Ok),
        Err(error) => Ok(Err(error)),
    })?
}

/// How long it may take from the reading of the times to that of the counts, or it is done again.
const AT_ONCE: Duration = Duration::from_micros(300);
/// How often it is done again.
const READINGS: usize = 10;

/// Watches a subject for a while.
pub fn watch(subject: &mut dyn Subject, duration: Duration) -> Result<Work> {
    let before = read(subject)?;
    std::thread::sleep(duration);
    let after = read(subject)?;
    Ok(Work { times: after.0 - before.0, counts: after.1 - before.1 })
}

/// Times and counts of the same moment, as nearly as can be: the counts come from another thread, which has to get
/// its turn on a core that may be shared.
fn read(subject: &mut dyn Subject) -> Result<(Times, Counts)> {
    let mut best: Option<(Duration, Times, Counts)> = None;
    for _ in 0..READINGS {
        let times = subject.thread().fresh_times()?;
        let counts = subject.counts()?;
        let took = times.at.elapsed();
        if best.as_ref().is_none_or(|(shortest, ..)| took < *shortest) {
            best = Some((took, times, counts));
        }
        if took < AT_ONCE {
            break;
        }
    }
    let (_, times, counts) = best.expect("there was a reading");
    Ok((times, counts))
}

impl Work {
    /// TSC cycles of CPU time a received packet.
    pub fn cycles(&self, tsc_hz: f64) -> Result<f64> {
        ensure!(self.counts.received > 0, "no packet came in: {:?}", self.counts);
        Ok(self.times.on_cpu.as_secs_f64() * tsc_hz / self.counts.received as f64)
    }
}

impl Counts {
    /// Packets a look that found some.
    pub fn burst(&self) -> Option<f64> {
        self.bursts.map(|bursts| self.received as f64 / bursts.max(1) as f64)
    }

    /// Fails unless all but one in a thousand packets met one of these fates: it measured something else.
    pub fn mostly(&self, fates: &[&str]) -> Result<()> {
        let of = |fate: &&str| match *fate {
            "forwarded" => self.forwarded,
            name => self.others.get(name).copied().unwrap_or_default(),
        };
        let count: u64 = fates.iter().map(of).sum();
        ensure!(
            count as f64 >= self.received as f64 * 0.999,
            "only {count} of {} packets were {}: {} forwarded, others {:?}",
            self.received,
            fates.join(" or "),
            self.forwarded,
            self.others
        );
        Ok(())
    }
}

impl std::ops::Sub for Counts {
    type Output = Counts;

    fn sub(self, before: Counts) -> Counts {
        let others = self.others.iter().map(|(name, count)| {
            let count = count - before.others.get(name).copied().unwrap_or_default().min(*count);
            (name.clone(), count)
        });
        Counts {
            received: self.received - before.received,
            forwarded: self.forwarded - before.forwarded,
            bursts: self.bursts.zip(before.bursts).map(|(after, before)| after - before),
            others: others.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_only_what_happened() {
        let counts = |received, dropped| Counts {
            received,
            forwarded: received - dropped,
            bursts: Some(received / 10),
            others: BTreeMap::from([("ttl_expired".into(), dropped), ("runt".into(), 3)]),
        };
        let difference = counts(2_000, 51) - counts(1_000, 50);
        assert_eq!(difference.others, BTreeMap::from([("ttl_expired".into(), 1)]));
        assert_eq!(difference.burst(), Some(10.0));
        difference.mostly(&["forwarded"]).unwrap();
        let error = difference.mostly(&["ttl_expired"]).unwrap_err().to_string();
        assert!(error.contains("only 1 of 1000 packets were ttl_expired"), "{error}");
    }
}
