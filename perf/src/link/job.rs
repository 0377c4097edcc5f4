//! The generator's part of a measurement, in a process of its own.
//!
//! A process can be memif's client once ([`Generator::connect`]), and what a link has left in EAL cannot spoil the next
//! one. So `rvs-perf link` gives the job to `rvs-perf generate`, which nobody else calls: the job comes in as JSON, and
//! the findings go out as JSON.

use std::io;
use std::path::PathBuf;
use std::process;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::service::Mode;
use harness::packet::Mac;
use harness::wait;
use itertools::Itertools;
use serde::{Deserialize, Serialize};

use super::generator::{Generator, Plan, Trial};
use super::referee::{Judged, Referee};
use super::search::Search;
use super::traffic::Traffic;
use super::wire::Link;
use crate::source::Way;
use crate::subject::bench::Bench;
use crate::subject::thread::Thread;

/// How to measure.
#[derive(clap::Args, Clone, Debug, Serialize, Deserialize)]
pub struct Trials {
    /// Flows.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: u32,
    /// Bytes of a packet on the wire.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1518))]
    pub size: u16,
    /// Loss that is tolerated, in percent.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.001])]
    pub tolerances: Vec<f64>,
    /// Loads at which latency is measured, in percent of the throughput with the greatest tolerance.
    #[arg(long, value_delimiter = ',', default_values_t = [10.0, 50.0, 90.0])]
    pub loads: Vec<f64>,
    /// Seconds of a trial.
    #[arg(long, default_value_t = 0.2)]
    pub trial: f64,
    /// How close the search comes, in percent of what it finds.
    #[arg(long, default_value_t = 2.0)]
    pub resolution: f64,
    /// How many disturbed trials are repeated at the most, for each router in a round.
    #[arg(long, default_value_t = 15)]
    pub repeat: usize,
}

/// What the generator has to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The kind of link.
    pub link: Link,
    /// Where the router waits.
    pub socket: PathBuf,
    /// Forwarding mode, by name: which packets there are.
    pub mode: String,
    /// The router's MAC.
    pub mac: Mac,
    /// The router's process.
    pub router: i32,
    /// The core that this process may take.
    pub core: usize,
    /// Whether memory is in hugepages.
    pub hugepages: bool,
    /// How to measure.
    pub trials: Trials,
}

/// What was found out about a router in a round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Findings {
    /// Packets a second that pass when there are too many.
    pub overload: f64,
    /// Packets a second, by tolerance.
    pub throughput: Vec<f64>,
    /// Microseconds, by load, then by quantile.
    pub latency: Vec<[f64; QUANTILES.len()]>,
    /// What the referee had to do.
    pub judged: Judged,
}

/// What is said of latencies.
pub const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

const FCS: u16 = 4;
/// At which connections are opened: every router can do that.
const OPENING_RATE: f64 = 200_000.0;
/// Below, a trial has too few packets for a quantile.
const LEAST_RATE: f64 = 10_000.0;

/// `rvs-perf generate`: does the job that stands in the standard input.
pub fn generate() -> Result<()> {
    let job: Job = serde_json::from_reader(io::stdin().lock()).context("expected a job of rvs-perf link")?;
    end_after(job.trials.longest());
    let mode = Mode::from_name(&job.mode).with_context(|| format!("there is no mode {}", job.mode))?;
    let router = Thread::polling(job.router)?;
    let mut generator = Generator::connect(job.core, job.hugepages, job.link, &job.socket)?;
    let mut traffic = Traffic::new(mode, job.mac, job.trials.flows, job.trials.length());
    open(&mut generator, &traffic)?;
    let referee = Referee::new(&mut generator, &mut traffic, &router, job.trials.repeat)?;
    let findings = findings(&job.trials, referee)?;
    Ok(serde_json::to_writer(io::stdout().lock(), &findings)?)
}

impl Job {
    /// Has it done by another process, and waits for the findings.
    pub fn give(&self, bench: &Bench) -> Result<Findings> {
        let answer = bench.run_own(&["generate"], &serde_json::to_vec(self)?)?;
        serde_json::from_slice(&answer).context("rvs-perf generate did not answer")
    }
}

impl Trials {
    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.tolerances.is_empty(), "--tolerances is empty; expected e.g. 0,0.001");
        let percent = |value: &f64| (0.0..=100.0).contains(value);
        ensure!(self.tolerances.iter().all(percent), "--tolerances are percent, from 0 to 100");
        ensure!(self.loads.iter().all(percent), "--loads are percent, from 0 to 100");
        ensure!((0.01..=600.0).contains(&self.trial), "--trial takes 0.01 to 600 seconds");
        ensure!((0.1..=50.0).contains(&self.resolution), "--resolution takes 0.1 to 50 percent");
        Ok(())
    }

    /// Bytes of a frame in memory.
    pub fn length(&self) -> u16 {
        self.size - FCS
    }

    /// More than all of it can take.
    fn longest(&self) -> Duration {
        let trials = self.tolerances.len() * 3 * 24 + self.loads.len() + 1;
        Duration::from_secs_f64(120.0 + (trials + self.repeat) as f64 * (self.trial + 0.5))
    }
}

/// A process that polls for ever would do so for ever.
fn end_after(time: Duration) {
    thread::spawn(move || {
        thread::sleep(time);
        eprintln!("rvs-perf: the generator was not done after {time:?}");
        process::exit(1);
    });
}

/// Measures a router whose connections are open.
fn findings(trials: &Trials, mut referee: Referee<'_>) -> Result<Findings> {
    let Trials { tolerances, loads, .. } = trials;
    let plan = |rate| Plan { rate, duration: Duration::from_secs_f64(trials.trial) };
    let overload = referee.rate(plan(f64::INFINITY))?;
    // What the generator can send is the rate of the line; far above what passes under overload nothing will.
    let ceiling = overload.offered().min(2.0 * overload.passed());
    let mut search = Search::new(ceiling, trials.resolution / 100.0);
    let mut throughput = vec![0.0; tolerances.len()];
    // The greatest tolerance first: the others need look only below what it finds.
    let by_tolerance = (0..throughput.len()).sorted_by(|&a, &b| tolerances[b].total_cmp(&tolerances[a]));
    for (index, tolerance) in by_tolerance.map(|index| (index, tolerances[index] / 100.0)) {
        throughput[index] = search.highest(tolerance, |rate| referee.vote(plan(rate), tolerance))?;
    }
    let greatest = tolerances.iter().copied().fold(0.0, f64::max) / 100.0;
    let best = throughput.iter().copied().fold(0.0, f64::max);
    let hz = dpdk::clock::tsc_hz() as f64;
    let latency = loads.iter().map(|load| {
        let rate = (best * load / 100.0).max(LEAST_RATE);
        let trial = referee.latency(plan(rate), greatest)?;
        ensure!(!trial.latency.is_empty(), "no marked packet came back at {rate:.0} packets a second");
        Ok(QUANTILES.map(|(_, quantile)| trial.latency.value_at_quantile(quantile) as f64 / hz * 1e6))
    });
    let latency = latency.collect::<Result<_>>()?;
    Ok(Findings { overload: overload.passed(), throughput, latency, judged: referee.judged })
}

/// Opens the connections, at a rate that every router can do, until every packet comes back.
fn open(generator: &mut Generator, traffic: &Traffic) -> Result<()> {
    let duration =
        Duration::from_secs_f64(f64::from(traffic.flows()) / OPENING_RATE) + Duration::from_millis(10);
    let mut ways: Vec<Traffic> = traffic.ways().iter().map(|&way: &Way| traffic.only(way)).collect();
    wait::until("every packet comes back", wait::PATIENCE, || {
        for traffic in &mut ways {
            let Trial { sent, received, .. } =
                generator.run(traffic, Plan { rate: OPENING_RATE, duration })?;
            ensure!(sent == received, "{received} of {sent} packets came back");
        }
        Ok(())
    })
}
