//! `rvs-perf connect`: what a new connection costs, as the table fills.
//!
//! Every packet is the first of its flow. The table is filled from empty to four fifths of its slots (it is meant to
//! be half full), and the cost of each fifth told apart. Then the flood goes on, with connections that
//! expire after a second: the sweep takes away what it finds, and new connections take the place of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use dataplane::engine::{BURST, Probe, Stage};
use dataplane::service::{Mode, Protocol, Scheduler, State, Timeouts};
use itertools::iproduct;

use crate::cpu;
use crate::eal::Environment;
use crate::path::{Common, parse_mode, parse_protocol};
use crate::report::{Figure, Promise, Report, progress};
use crate::rig::{Rig, Setting};

/// What to measure: every combination of what is listed.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Forwarding modes.
    #[arg(long, value_delimiter = ',', default_values = ["nat", "dr"], value_parser = parse_mode)]
    modes: Vec<Mode>,
    /// Protocols: a SYN or a datagram each.
    #[arg(long, value_delimiter = ',', default_values = ["tcp", "udp"], value_parser = parse_protocol)]
    protocols: Vec<Protocol>,
    /// Schedulers.
    #[arg(long, value_delimiter = ',', default_values = ["rr", "wlc", "mh"], value_parser = parse_scheduler)]
    schedulers: Vec<Scheduler>,
    /// Real servers.
    #[arg(long, default_value_t = 10)]
    servers: u32,
    /// Connections that the table is made for: half of its slots.
    #[arg(long, default_value_t = 1_000_000)]
    room: u32,
    #[command(flatten)]
    common: Common,
}

fn parse_scheduler(text: &str) -> Result<Scheduler, String> {
    let known = || Scheduler::ALL.iter().map(|scheduler| scheduler.name()).collect::<Vec<_>>().join(", ");
    Scheduler::from_name(text).ok_or_else(|| format!("expected one of {}", known()))
}

/// How full the table is, in the order in which a run comes through.
const PHASES: [&str; 5] = ["0-20 %", "20-40 %", "40-60 %", "60-80 %", "expiring"];

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let about = format!(
        "new connections, one worker, {} servers, a table for {} connections; by the share of its slots in use; {}",
        arguments.servers,
        arguments.room,
        environment.memory()
    );
    Report::new(about, measure(&environment, arguments)?).publish(&arguments.common.outputs)
}

/// Measures.
pub fn measure(environment: &Environment, arguments: &Arguments) -> Result<Vec<Figure>> {
    let Arguments { modes, protocols, schedulers, common, .. } = arguments;
    let cases: Vec<_> = iproduct!(modes, protocols, schedulers).collect();
    let mut figures: Vec<Figure> =
        cases.iter().flat_map(|&case| PHASES.map(|phase| figure(case, phase))).collect();
    let bar = progress(common.rounds * cases.len());
    for _ in 0..common.rounds.max(1) {
        for (&case, figures) in cases.iter().zip(figures.chunks_mut(PHASES.len())) {
            bar.set_message(figures[0].name());
            for (figure, cycles) in figures.iter_mut().zip(fill(arguments, environment, case)?) {
                figure.samples.push(cycles);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(figures)
}

fn figure((mode, protocol, scheduler): (&Mode, &Protocol, &Scheduler), phase: &str) -> Figure {
    let labels = vec![
        ("mode", mode.to_string()),
        ("protocol", protocol.to_string()),
        ("scheduler", scheduler.to_string()),
        ("slots in use", phase.to_owned()),
    ];
    let mut figure = Figure::new("cycles/connection", labels);
    figure.promise = match (mode, scheduler) {
        // The table is made to be half full.
        _ if !PHASES[..3].contains(&phase) => None,
        (Mode::Nat, _) => Some(Promise::AtMost(300.0)),
        (Mode::Dr, Scheduler::Mh) => Some(Promise::AtMost(230.0)),
        (Mode::Dr | Mode::Tunnel | Mode::Fullnat, _) => None,
    };
    figure.peer = (phase == PHASES[0]).then(|| match mode {
        Mode::Nat => "VPP lb 520, IPVS 1630, VPP nat44-ed 2400, DPVS 2500".to_owned(),
        Mode::Dr => "Katran 250 (tunnel), IPVS 1510, DPVS 2200".to_owned(),
        Mode::Tunnel => "Katran 250".to_owned(),
        Mode::Fullnat => "DPVS 2500".to_owned(),
    });
    figure
}

/// Cycles a connection in each phase of one run.
fn fill(
    arguments: &Arguments,
    environment: &Environment,
    (&mode, &protocol, &scheduler): (&Mode, &Protocol, &Scheduler),
) -> Result<Vec<f64>> {
    let mut timeouts = Timeouts::default();
    timeouts.0[State::SynRecv as usize] = 1;
    timeouts.0[State::Udp as usize] = 1;
    let plain = Setting::plain(mode, protocol, 0);
    let Arguments { servers, room, .. } = *arguments;
    let rig = Rig::new(&Setting { scheduler, servers, room, timeouts, ..plain })?;
    let bursts = rig.table.slots() / 5 / BURST;
    let flows = (bursts * BURST) as u32 * PHASES.len() as u32 * 2;
    let milestones = |stop: &Arc<AtomicBool>| Milestones {
        every: bursts,
        left: bursts,
        began: None,
        spent: Vec::new(),
        stop: stop.clone(),
    };
    let source = |_| rig.openings(flows);
    let until_the_last = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let cores = [arguments.common.core];
    let runs = rig.run(environment.pool, &cores, source, milestones, until_the_last)?;
    let (run, spent) = (&runs[0], &runs[0].probe.spent);
    ensure!(
        run.forwarded as f64 >= 0.999 * run.packets as f64,
        "only {} of {} first packets were forwarded",
        run.forwarded,
        run.packets
    );
    ensure!(spent.len() == PHASES.len(), "the run ended early");
    let hz = dpdk::clock::tsc_hz() as f64;
    Ok(spent.iter().map(|spent| spent.as_secs_f64() * hz / (bursts * BURST) as f64).collect())
}

/// Notes the CPU time that each phase has taken, and stops the worker after the last.
struct Milestones {
    every: usize,
    left: usize,
    began: Option<Duration>,
    spent: Vec<Duration>,
    stop: Arc<AtomicBool>,
}

impl Probe for Milestones {
    fn done(&mut self, stage: Stage) {
        if stage == Stage::Receive && self.began.is_none() {
            self.began = Some(cpu::time());
        }
        if stage != Stage::Transmit {
            return;
        }
        self.left -= 1;
        if self.left == 0 {
            let now = cpu::time();
            self.spent.extend(self.began.map(|began| now - began));
            self.began = Some(now);
            self.left = self.every;
        }
        if self.spent.len() >= PHASES.len() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}
