//! Which trials count, on a machine that does other things as well.
//!
//! A trial is disturbed when the machine took a core away: Linux let the router's thread wait for so long that half of
//! its ring could fill, or the hypervisor took time; for latency also when the generator looked at nothing for a tenth
//! of a millisecond, or packets were lost. (For loss a generator that pauses is no matter: it does not send meanwhile
//! either.) A disturbed trial that did not pass in spite of it is repeated, some times at most, and the report says
//! how often, and how often in vain. Short trials are the more likely to be undisturbed.
//!
//! A hypervisor that lets a core wait does not always tell. So a rate passes or fails by the majority of three trials:
//! two that agree decide.

use std::fmt;
use std::fs;
use std::ops::AddAssign;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::generator::Trial;
use super::search::Outcome;
use super::wire::DESCRIPTORS;
use crate::subject::thread::Thread;

/// Judges trials, and counts what it judges.
pub struct Referee<'r> {
    router: &'r Thread,
    repeat: usize,
    /// What it has judged.
    pub judged: Judged,
}

/// How often trials were what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Trials that were wanted.
    pub wanted: usize,
    /// Times that one was disturbed, and repeated.
    pub repeated: usize,
    /// Trials that were taken as they came after all repetitions.
    pub undecided: usize,
}

/// An interrupt that is handled is no disturbance.
const INTERRUPT: Duration = Duration::from_micros(20);
/// Nor is, for latency, what shows only in the greatest of thousands.
const PAUSE: Duration = Duration::from_micros(100);
/// Before a trial is repeated the generator rests, so that what disturbed the router moves to the generator's core.
const REST: Duration = Duration::from_millis(100);

impl<'r> Referee<'r> {
    /// A referee who watches the router's thread and has a disturbed trial repeated so often at the most.
    pub fn new(router: &'r Thread, repeat: usize) -> Self {
        Referee { router, repeat, judged: Judged::default() }
    }

    /// What the majority of three trials at some rate comes to: whether this share of loss is exceeded, and by the
    /// worst of those that agree.
    pub fn vote(&mut self, tolerance: f64, mut run: impl FnMut() -> Result<Trial>) -> Result<Outcome> {
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        loop {
            let is_good = |trial: &Trial, waited| waited <= half_a_ring(trial) || trial.loss() <= tolerance;
            let trial = self.trial(is_good, &mut run)?;
            let outcome = Outcome { offered: trial.offered(), loss: trial.loss() };
            let side = if outcome.loss <= tolerance { &mut passed } else { &mut failed };
            if let Some(other) = side.pop() {
                return Ok(both(outcome, other));
            }
            side.push(outcome);
        }
    }

    /// A trial for the sake of its rates.
    pub fn rate(&mut self, mut run: impl FnMut() -> Result<Trial>) -> Result<Trial> {
        self.trial(|trial, waited| waited <= half_a_ring(trial), &mut run)
    }

    /// A trial for the sake of its latencies, which are those of a router that keeps up.
    pub fn latency(&mut self, tolerance: f64, mut run: impl FnMut() -> Result<Trial>) -> Result<Trial> {
        let is_good =
            |trial: &Trial, waited| waited <= PAUSE && trial.gap <= PAUSE && trial.loss() <= tolerance;
        self.trial(is_good, &mut run)
    }

    /// Runs a trial until it is good, given how long the router's thread had to wait.
    fn trial(
        &mut self,
        is_good: impl Fn(&Trial, Duration) -> bool,
        run: &mut impl FnMut() -> Result<Trial>,
    ) -> Result<Trial> {
        self.judged.wanted += 1;
        for attempt in 0.. {
            let (before, stolen) = (self.router.times()?, stolen());
            let trial = run()?;
            let waited = (self.router.times()? - before).waited;
            if is_good(&trial, waited) && self::stolen() == stolen {
                return Ok(trial);
            }
            if attempt == self.repeat {
                self.judged.undecided += 1;
                return Ok(trial);
            }
            self.judged.repeated += 1;
            thread::sleep(REST);
        }
        unreachable!("it returns after the last attempt")
    }
}

/// The time in which half of the router's ring fills.
fn half_a_ring(trial: &Trial) -> Duration {
    Duration::from_secs_f64(f64::from(DESCRIPTORS / 2) / trial.offered().max(1.0)).max(INTERRUPT)
}

fn both(a: Outcome, b: Outcome) -> Outcome {
    Outcome { offered: f64::midpoint(a.offered, b.offered), loss: a.loss.max(b.loss) }
}

impl AddAssign for Judged {
    fn add_assign(&mut self, other: Judged) {
        self.wanted += other.wanted;
        self.repeated += other.repeated;
        self.undecided += other.undecided;
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Judged { wanted, repeated, undecided } = self;
        write!(
            f,
            "{wanted} trials; disturbed and repeated {repeated} times; {undecided} taken as they came, after all \
             repetitions"
        )
    }
}

/// Time that the hypervisor took from this machine's cores, in ticks; 0 if it does not tell.
fn stolen() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    all.split_ascii_whitespace().nth(8).and_then(|ticks| ticks.parse().ok()).unwrap_or_default()
}
