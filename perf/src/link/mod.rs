//! `rvs-perf link`: throughput and latency over a link between two processes, of RVS beside testpmd.
//!
//! ```text
//!   core A: this program                          core B: the router
//!   ┌───────────────────────────┐                 ┌──────────────────────────┐
//!   │ virtio_user, memif client ├── shared memory ┤ net_vhost, memif server  │
//!   │ sends at a rate, counts   │                 │ rvs or testpmd, in turn  │
//!   └───────────────────────────┘                 └──────────────────────────┘
//! ```
//!
//! * Throughput as RFC 2544 defines it, 26.1: the highest rate at which no more than a tolerated share of the packets
//!   is lost, found by halving. A trial here is a fifth of a second and not a minute, unless `--trial` says so.
//! * Latency at shares of that rate, from before the generator's ring to behind it, so both ends of the link are in it.
//!
//! Two cores are all that this takes, and so the generator polls on the core where RVS has its control thread
//! (`control_cores`). That thread sleeps but for a few timers a second; when one of them goes off, the generator waits
//! some ten microseconds, as the greatest latencies show.
//!
//! What a link costs both ends is copying: about 130 cycles a packet. So a rate says what a router with such a link can
//! do, and not what RVS costs; `rvs-perf path` says that. And a router whose ring is full is slower than one whose ring is
//! nearly empty, since a thousand packets do not stay in the nearest cache: it may pass a trial at a rate at which it
//! would not recover from a pause, and under overload less may pass than the throughput.
//!
//! On a machine that is shared, trials are judged by a [`referee`].

mod figures;
mod generator;
mod job;
mod referee;
mod search;
mod traffic;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use dataplane::service::{Mode, Protocol};
use harness::packet::Mac;
use itertools::iproduct;

use crate::cpu;
use crate::path::parse_mode;
use crate::report::{Figure, Outputs, Report, progress};
use crate::subject::Subject;
use crate::subject::bench::Bench;
use crate::subject::rvs::{self, Rvs};
use crate::subject::testpmd::{self, Forward, Testpmd};
use figures::{figures, latencies};
use job::{Findings, Job, Trials};
use referee::Judged;
use wire::{DESCRIPTORS, Link};

pub use job::generate;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Links.
    #[arg(long, value_delimiter = ',', default_values = ["vhost", "memif"])]
    links: Vec<Link>,
    /// Forwarding modes of RVS; its peer is testpmd, which swaps addresses and ports (nat) or MACs (dr).
    #[arg(long, value_delimiter = ',', default_values = ["nat", "dr"], value_parser = parse_mode)]
    modes: Vec<Mode>,
    #[command(flatten)]
    trials: Trials,
    /// Rounds; all routers take turns in each, so that what disturbs the machine disturbs all.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The core of the router's polling thread; the generator takes another.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// The program rvs; the one beside this program if it is not named.
    #[arg(long, value_name = "PATH")]
    rvs: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
}

/// Of the real server and the gateway, which both are the generator.
const NEIGHBOUR_MAC: Mac = [2, 0, 0, 0, 0, 0xBB];
/// testpmd asks for none.
const ANY_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// Memory of a router and the generator, in megabytes.
const MEMORY: u64 = 256;

/// A router on a link.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Case {
    link: Link,
    mode: Mode,
    /// Instead of RVS.
    peer: Option<Forward>,
}

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.trials.check()?;
    let program = rvs::program(arguments.rvs.as_deref())?;
    let linked = rvs::linked(&program)?;
    let bench = Bench::new(arguments.core, MEMORY)?;

    let cases = arguments.cases();
    let mut findings: Vec<Vec<Findings>> = cases.iter().map(|_| Vec::new()).collect();
    let (mut judged, mut hand_overs) = (Judged::default(), Vec::new());
    let bar = progress(arguments.rounds.max(1) * cases.len());
    // Its own thread would take the generator's core ten times in a trial.
    bar.disable_steady_tick();
    for _ in 0..arguments.rounds.max(1) {
        for (case, findings) in cases.iter().zip(&mut findings) {
            bar.set_message(format!("{} {}", case.link.name(), case.name()));
            let (found, hand_over) = case
                .measure(&bench, &arguments.trials, &program)
                .with_context(|| format!("{} over {}", case.name(), case.link.name()))?;
            judged += found.judged;
            hand_overs.push(hand_over);
            findings.push(found);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    hand_overs.sort();
    let nanoseconds = |time: Option<&Duration>| time.map_or(0, Duration::as_nanos);
    let about = format!(
        "rvs ({linked}) and dpdk-testpmd (shared, as Debian links it) in turn over the same link; UDP, {} flows, {} \
         bytes, trials of {} s; {}\n{judged}; a cache line took {} to {} ns from core to core",
        arguments.trials.flows,
        arguments.trials.size,
        arguments.trials.trial,
        bench.memory(),
        nanoseconds(hand_overs.first()),
        nanoseconds(hand_overs.last()),
    );
    drop(bench);
    let report = Report::new(about, figures(&arguments.trials, &cases, &findings));
    let (times, rates): (Vec<Figure>, Vec<Figure>) =
        report.figures.iter().cloned().partition(|figure| figure.unit == "us");
    let rates = Report { figures: rates, ..report.clone() }.table();
    report.publish_as(&format!("{rates}\n{}", latencies(&times)), &arguments.outputs)
}

impl Arguments {
    fn cases(&self) -> Vec<Case> {
        let of = |(&link, &mode): (&Link, &Mode)| {
            // The peer that writes the same parts of a packet.
            let peer = if mode == Mode::Nat { Forward::FiveTupleSwap } else { Forward::Macswap };
            [None, Some(peer)].map(|peer| Case { link, mode, peer })
        };
        iproduct!(&self.links, &self.modes).flat_map(of).collect()
    }
}

impl Case {
    fn name(&self) -> String {
        match self.peer {
            None => format!("rvs {}", self.mode),
            Some(forward) => format!("testpmd {}", forward.name()),
        }
    }

    /// Starts the router, has the generator measure it, and ends it.
    fn measure(&self, bench: &Bench, trials: &Trials, program: &Path) -> Result<(Findings, Duration)> {
        // While nothing else polls on the cores.
        let hand_over = cpu::hand_over([bench.cores.other, bench.cores.worker])?;
        let socket = bench.file("link");
        // A router that was killed has left it.
        let _ = fs::remove_file(&socket);
        let device = self.link.router(&socket);
        let (mut subject, mac): (Box<dyn Subject>, Mac) = match self.peer {
            None => {
                let rvs = self.start_rvs(bench, trials, program, device)?;
                let mac = rvs.mac();
                (Box::new(rvs), mac)
            }
            Some(forward) => (Box::new(start_testpmd(bench, forward, device)?), ANY_MAC),
        };
        let job = Job {
            link: self.link,
            mode: self.mode.name().to_owned(),
            socket,
            mac,
            router: subject.thread().process(),
            core: bench.cores.other,
            hugepages: bench.hugepages,
            trials: trials.clone(),
        };
        let findings = job.give(bench).with_context(|| format!("the router says {:?}", subject.counts()))?;
        subject.stop()?;
        Ok((findings, hand_over))
    }

    fn start_rvs(&self, bench: &Bench, trials: &Trials, program: &Path, device: String) -> Result<Rvs> {
        let frames = traffic::frames(self.mode, trials.length());
        let settings = rvs::Settings {
            program: program.to_owned(),
            device,
            mode: self.mode,
            protocol: Protocol::Udp,
            service: frames.service(0),
            server: frames.server(0, 0),
            neighbour: Some(NEIGHBOUR_MAC),
            connections: trials.flows,
            descriptors: DESCRIPTORS,
            eal: Vec::new(),
        };
        Rvs::start(bench, &settings)
    }
}

fn start_testpmd(bench: &Bench, forward: Forward, device: String) -> Result<Testpmd> {
    let settings = testpmd::Settings {
        device,
        forward,
        pool: rvs::pool(DESCRIPTORS),
        descriptors: DESCRIPTORS,
        eal: Vec::new(),
        own: Vec::new(),
    };
    Testpmd::start(bench, &settings)
}
