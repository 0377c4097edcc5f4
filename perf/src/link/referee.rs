//! Which trials count, on a machine that does other things as well.
//!
//! A trial is disturbed when the machine took a core away: Linux let the router's thread wait for so long that half of
//! its ring could fill, or the hypervisor took time; for latency also when the generator looked at nothing for a tenth
//! of a millisecond, or packets were lost. (For loss a generator that pauses is no matter: it does not send meanwhile
//! either.) A disturbed trial that did not pass in spite of it is repeated, until a number of repetitions is used up, and
//! the report says how often that was done and how often not. Short trials are the more likely to be undisturbed.
//!
//! A hypervisor also moves cores: side by side a cache line takes 20 ns from one to the other, far apart 200, and a link
//! half as many packets. So single packets are timed before and after a trial, and one with a trip that takes half as
//! long again as the shortest so far is disturbed, too.
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

use super::generator::{Generator, Plan, Trial};
use super::search::Outcome;
use super::traffic::Traffic;
use super::wire::DESCRIPTORS;
use crate::subject::thread::Thread;

/// Has trials run, judges them, and counts what it judges.
pub struct Referee<'r> {
    generator: &'r mut Generator,
    traffic: &'r mut Traffic,
    router: &'r Thread,
    /// Repetitions that are left.
    repeat: usize,
    /// Rests that are left for when the cores are far apart.
    rests: usize,
    /// Cycles of the shortest trip so far, there and back.
    shortest: u64,
    /// What it has judged.
    pub judged: Judged,
}

/// How often trials were what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Trials that were wanted.
    pub wanted: usize,
    /// Rests before a trial, since the cores were far apart.
    pub rests: usize,
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
/// Trips that are timed, and at which rate.
const TRIPS: Plan = Plan { rate: 100_000.0, duration: Duration::from_millis(2) };
/// How long and how often to look for the shortest trip, at first.
const LOOK: (Duration, usize) = (Duration::from_millis(20), 50);

impl<'r> Referee<'r> {
    /// A referee who watches the router's thread and has so many disturbed trials repeated. Takes a second, in which
    /// whatever else runs on this machine moves to the core that is idle, the generator's, and stays there.
    pub fn new(
        generator: &'r mut Generator,
        traffic: &'r mut Traffic,
        router: &'r Thread,
        repeat: usize,
    ) -> Result<Self> {
        let judged = Judged::default();
        let mut referee =
            Referee { generator, traffic, router, repeat, rests: 2 * repeat, shortest: u64::MAX, judged };
        for _ in 0..LOOK.1 {
            thread::sleep(LOOK.0);
            referee.is_near()?;
        }
        Ok(referee)
    }

    /// What the majority of three trials comes to: whether this share of loss is exceeded, and by the worst of those
    /// that agree.
    pub fn vote(&mut self, plan: Plan, tolerance: f64) -> Result<Outcome> {
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        loop {
            let trial =
                self.trial(plan, |trial, disturbed| trial.loss() <= tolerance || !disturbed.for_rate(trial))?;
            let outcome = Outcome { offered: trial.offered(), loss: trial.loss() };
            let side = if outcome.loss <= tolerance { &mut passed } else { &mut failed };
            if let Some(other) = side.pop() {
                return Ok(both(outcome, other));
            }
            side.push(outcome);
        }
    }

    /// A trial for the sake of its rates.
    pub fn rate(&mut self, plan: Plan) -> Result<Trial> {
        self.trial(plan, |trial, disturbed| !disturbed.for_rate(trial))
    }

    /// A trial for the sake of its latencies, which are those of a router that keeps up.
    pub fn latency(&mut self, plan: Plan, tolerance: f64) -> Result<Trial> {
        self.trial(plan, |trial, disturbed| trial.loss() <= tolerance && !disturbed.for_latency(trial))
    }

    /// Runs a trial until it is good.
    fn trial(&mut self, plan: Plan, is_good: impl Fn(&Trial, &Disturbance) -> bool) -> Result<Trial> {
        self.judged.wanted += 1;
        loop {
            let near = self.wait_until_near()?;
            let (before, stolen) = (self.router.times()?, stolen());
            let trial = self.generator.run(self.traffic, plan)?;
            let waited = (self.router.times()? - before).waited;
            let stolen = self::stolen() > stolen;
            let disturbance = Disturbance { waited, stolen, far: !near || !self.is_near()? };
            if is_good(&trial, &disturbance) {
                return Ok(trial);
            }
            if self.repeat == 0 {
                self.judged.undecided += 1;
                return Ok(trial);
            }
            self.repeat -= 1;
            self.judged.repeated += 1;
            thread::sleep(REST);
        }
    }

    /// Rests while the cores are far apart, as long as there are rests left; whether they are near then.
    fn wait_until_near(&mut self) -> Result<bool> {
        while !self.is_near()? {
            if self.rests == 0 {
                return Ok(false);
            }
            self.rests -= 1;
            self.judged.rests += 1;
            thread::sleep(REST);
        }
        Ok(true)
    }

    /// Whether the cores are as near to each other as they have ever been.
    fn is_near(&mut self) -> Result<bool> {
        let trip = self.generator.run(self.traffic, TRIPS)?.latency.value_at_quantile(0.5);
        self.shortest = self.shortest.min(trip);
        Ok(trip <= self.shortest + self.shortest / 2)
    }
}

/// What happened to the machine in a trial.
struct Disturbance {
    /// How long the router's thread waited for its core.
    waited: Duration,
    /// Whether the hypervisor took time.
    stolen: bool,
    /// Whether the cores were far apart.
    far: bool,
}

impl Disturbance {
    fn for_rate(&self, trial: &Trial) -> bool {
        self.stolen || self.far || self.waited > half_a_ring(trial)
    }

    fn for_latency(&self, trial: &Trial) -> bool {
        self.stolen || self.far || self.waited > PAUSE || trial.gap > PAUSE
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
        self.rests += other.rests;
        self.repeated += other.repeated;
        self.undecided += other.undecided;
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Judged { wanted, rests, repeated, undecided } = self;
        let waited = REST.as_secs_f64() * *rests as f64;
        write!(
            f,
            "{wanted} trials; disturbed and repeated {repeated} times; {undecided} taken as they came, when \
             no repetition was left; waited {waited:.1} s for the cores to be near"
        )
    }
}

/// Time that the hypervisor took from this machine's cores, in ticks; 0 if it does not tell.
fn stolen() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    all.split_ascii_whitespace().nth(8).and_then(|ticks| ticks.parse().ok()).unwrap_or_default()
}
