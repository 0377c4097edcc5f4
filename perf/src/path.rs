//! `rvs-perf path`: cycles a packet of the worker loop, over mode, direction, protocol, flows, order and size.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::Table;
use dataplane::capture::{Filter, Session, Switch};
use dataplane::engine::{BURST, Probe, Stage};
use dataplane::service::{Mode, Protocol};
use itertools::iproduct;

use crate::ceiling::{self, Touch};
use crate::eal::Environment;
use crate::report::{Figure, Outputs, Promise, Report, progress};
use crate::rig::{Rig, Run, Setting};
use crate::source::{Order, Way, Ways};

/// What to measure: every combination of what is listed.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Forwarding modes.
    #[arg(long, value_delimiter = ',', default_values = ["nat", "dr"], value_parser = parse_mode)]
    modes: Vec<Mode>,
    /// Directions; only replies of mode nat come this way.
    #[arg(long, value_delimiter = ',', default_values = ["in", "out"])]
    ways: Vec<Way>,
    /// Protocols.
    #[arg(long, value_delimiter = ',', default_values = ["tcp"], value_parser = parse_protocol)]
    protocols: Vec<Protocol>,
    /// Numbers of flows.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000])]
    flows: Vec<u32>,
    /// Orders of flows.
    #[arg(long, value_delimiter = ',', default_values = ["random"])]
    orders: Vec<Order>,
    /// Bytes of a packet on the wire.
    #[arg(long, value_delimiter = ',', default_values_t = [64], value_parser = clap::value_parser!(u16).range(64..=1518))]
    sizes: Vec<u16>,
    /// Numbers of services, each at its own address.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    services: Vec<u32>,
    /// Real servers of each service.
    #[arg(long, default_value_t = 1)]
    servers: u32,
    /// Also show where the cycles go.
    #[arg(long)]
    stages: bool,
    /// Also while one packet in so many is captured, as `rvs capture --one-in` does it; and how much more that is.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    capture: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// How to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Rounds; all figures take turns in each, so that what disturbs the machine disturbs all.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Milliseconds that each figure takes in a round.
    #[arg(long, default_value_t = 300)]
    pub time: u64,
    /// The core of the first worker; the others follow.
    #[arg(long, default_value_t = 1)]
    pub core: usize,
    #[command(flatten)]
    pub outputs: Outputs,
}

impl Common {
    /// How long a figure takes in a round.
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.time.max(1))
    }

    /// Waits as long.
    pub fn a_while(&self) -> impl FnOnce(&AtomicBool) {
        let time = self.duration();
        move |_| std::thread::sleep(time)
    }
}

struct Case {
    rig: usize,
    kind: Kind,
    way: Way,
    order: Order,
    size: u16,
    /// Of how many packets one is captured, if any is.
    capture: Option<u32>,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Kind {
    Router,
    Ceiling(Touch),
}

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let (figures, stages) = measure(&environment, arguments)?;
    let about = format!("worker loop on made-up packets, one worker; {}", environment.memory());
    let report = Report::new(about, figures);
    report.publish(&arguments.common.outputs)?;
    if arguments.stages {
        print_stages(&report, &stages);
    }
    Ok(())
}

/// Measures; with the figures, where the cycles of each went if that was asked for.
pub fn measure(
    environment: &Environment,
    arguments: &Arguments,
) -> Result<(Vec<Figure>, HashMap<usize, Stages>)> {
    let (rigs, cases, mut figures) = cases(arguments)?;
    let common = &arguments.common;
    let mut stages: HashMap<usize, Stages> = HashMap::new();
    let bar = progress(common.rounds * cases.len());
    for round in 0..common.rounds.max(1) {
        for (index, case) in cases.iter().enumerate() {
            bar.set_message(figures[index].name());
            let (rig, cores) = (&rigs[case.rig], [common.core]);
            let source = |_| rig.packets(Ways::All(case.way), case.order, case.size - FCS, round as u64);
            if let Kind::Ceiling(touch) = case.kind {
                let duration = common.duration();
                let cycles = ceiling::cycles(environment.pool, common.core, source(0), touch, duration)?;
                figures[index].samples.push(cycles);
            } else {
                let capture = case.capture.map(|one_in| Capture::begin(&rig.capture, one_in));
                let meanwhile = |_: &AtomicBool| match &capture {
                    None => std::thread::sleep(common.duration()),
                    Some(capture) => capture.take(common.duration()),
                };
                let runs = rig.run(environment.pool, &cores, source, |_| (), meanwhile)?;
                figures[index].samples.push(checked(&runs[0])?.cycles());
                if let Some(capture) = capture {
                    capture.end(runs[0].packets)?;
                }
                if arguments.stages {
                    let probe = |_: &_| Stages::default();
                    let runs = rig.run(environment.pool, &cores, source, probe, common.a_while())?;
                    stages.entry(index).or_default().add(&runs[0].probe);
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    figures.extend(costs_of_captures(&cases, &figures));
    Ok((figures, stages))
}

const FCS: u16 = 4;

/// How often control takes samples.
const TAKE: Duration = Duration::from_millis(10);

/// A capture whose samples somebody takes, as control does.
struct Capture {
    switch: Arc<Switch>,
    session: Arc<Session>,
    one_in: u32,
    taken: Cell<u64>,
}

impl Capture {
    fn begin(switch: &Arc<Switch>, one_in: u32) -> Capture {
        let session = Arc::new(Session::new(one_in, Filter::default()));
        switch.begin(session.clone());
        Capture { switch: switch.clone(), session, one_in, taken: Cell::new(0) }
    }

    /// Takes samples for so long.
    fn take(&self, duration: Duration) {
        let began = Instant::now();
        while began.elapsed() < duration {
            self.take_what_is_there();
            std::thread::sleep(TAKE);
        }
    }

    fn take_what_is_there(&self) {
        while let Some(sample) = self.session.pop() {
            std::hint::black_box(&sample);
            self.taken.set(self.taken.get() + 1);
        }
    }

    /// Fails unless it has seen of so many packets what it should.
    fn end(self, packets: u64) -> Result<()> {
        self.take_what_is_there();
        self.switch.end();
        let (seen, expected) = (self.taken.get() + self.session.missed(), packets / u64::from(self.one_in));
        ensure!(seen.abs_diff(expected) <= 1, "{seen} packets were captured; expected {expected}");
        // What is missed costs less.
        let missed = self.session.missed();
        ensure!(
            missed * 100 <= seen,
            "{missed} of {seen} packets were caught in vain: nobody took them in time"
        );
        Ok(())
    }
}

/// A run in which every packet was forwarded, but for the one flow in millions that has no room in the table: else it
/// measured something else.
pub fn checked<P>(run: &Run<P>) -> Result<&Run<P>> {
    ensure!(run.packets > 0, "no packet came in");
    let lost = run.packets.saturating_sub(run.forwarded);
    ensure!(
        lost <= run.packets / 1_000_000,
        "only {} of {} packets were forwarded",
        run.forwarded,
        run.packets
    );
    Ok(run)
}

fn cases(arguments: &Arguments) -> Result<(Vec<Rig>, Vec<Case>, Vec<Figure>)> {
    let Arguments { modes, ways, protocols, flows, orders, sizes, services, servers, .. } = arguments;
    let (mut rigs, mut cases, mut figures) = (Vec::new(), Vec::new(), Vec::new());
    for (&flows, &mode, &protocol, &services) in iproduct!(flows, modes, protocols, services) {
        let plain = Setting::plain(mode, protocol, flows);
        rigs.push(Rig::new(&Setting { services, servers: *servers, ..plain })?);
        let rig = rigs.len() - 1;
        if rigs.iter().filter(|rig| rig.setting.flows == flows).count() == 1 {
            for (name, touch) in [("io", Touch::Nothing), ("5tswap", Touch::Swap)] {
                cases.push(Case {
                    rig,
                    kind: Kind::Ceiling(touch),
                    way: Way::In,
                    order: Order::Random,
                    size: sizes[0],
                    capture: None,
                });
                let labels = vec![("path", name.to_owned()), ("flows", flows.to_string())];
                figures.push(Figure::new("cycles/packet", labels));
            }
        }
        let captures = [None].into_iter().chain(arguments.capture.map(Some));
        for (&way, &order, &size, capture) in iproduct!(ways, orders, sizes, captures) {
            if mode.is_one_way() && way == Way::Out {
                continue;
            }
            cases.push(Case { rig, kind: Kind::Router, way, order, size, capture });
            let mut labels = vec![("path", format!("{mode} {}", name(way))), ("flows", flows.to_string())];
            // What is the same for all needs no column.
            let mut label = |name, value: String, choices: usize| {
                if choices > 1 {
                    labels.push((name, value))
                }
            };
            label("protocol", protocol.to_string(), protocols.len());
            label("order", name(order), orders.len());
            label("size", size.to_string(), sizes.len());
            label("services", services.to_string(), arguments.services.len());
            if let Some(one_in) = capture {
                label("capture", format!("1/{one_in}"), usize::MAX);
            }
            let mut figure = Figure::new("cycles/packet", labels);
            if size == 64 && services == 1 && capture.is_none() {
                (figure.promise, figure.peer) = (promise(mode, flows), peer(mode, flows));
            }
            figures.push(figure);
        }
    }
    Ok((rigs, cases, figures))
}

/// How much more each capture takes than the same without, which stands before it; in percent, round by round.
fn costs_of_captures(cases: &[Case], figures: &[Figure]) -> Vec<Figure> {
    let pairs = cases.iter().zip(figures).zip(figures.iter().skip(1)).zip(cases.iter().skip(1));
    let captured = pairs.filter_map(|(((_, plain), with), case)| Some((plain, with, case.capture?)));
    let cost = |(plain, with, one_in): (&Figure, &Figure, u32)| {
        let mut labels = with.labels.clone();
        for (name, value) in &mut labels {
            if *name == "capture" {
                *value = format!("1/{one_in}, costs");
            }
        }
        let mut cost = Figure::new("%", labels);
        cost.samples = with
            .samples
            .iter()
            .zip(&plain.samples)
            .map(|(with, plain)| (with / plain - 1.0) * 100.0)
            .collect();
        cost.promise = (one_in >= 1000).then_some(Promise::AtMost(1.0));
        cost
    };
    captured.map(cost).collect()
}

fn promise(mode: Mode, flows: u32) -> Option<Promise> {
    let bounds = match mode {
        Mode::Nat => [90.0, 110.0, 130.0, 170.0],
        Mode::Dr => [75.0, 95.0, 115.0, 155.0],
        Mode::Tunnel | Mode::Fullnat => return None,
    };
    let bound = [1_000, 100_000, 1_000_000, 10_000_000].iter().position(|&known| known == flows)?;
    Some(Promise::AtMost(bounds[bound]))
}

/// What peers take, as near to so many flows as it is known.
fn peer(mode: Mode, flows: u32) -> Option<String> {
    let figures = match mode {
        Mode::Nat => [
            "VPP lb 141 (10 k, no TCP states), nat44-ed 221 (10 k), DPVS 270",
            "VPP nat44-ed 242 (64 k), DPVS 1264",
            "VPP lb 299 (no TCP states), nat44-ed 505, DPVS 2229",
        ],
        Mode::Dr => ["DPVS 267, IPVS 898", "DPVS 1724, IPVS 1408", "DPVS 3190"],
        Mode::Tunnel | Mode::Fullnat => return None,
    };
    let index = [1_000, 100_000, 1_000_000].iter().position(|&known| known == flows)?;
    Some(figures[index].to_owned())
}

fn name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

/// Reads a forwarding mode.
pub fn parse_mode(text: &str) -> Result<Mode, String> {
    let measured = |mode: &Mode| *mode != Mode::Fullnat;
    Mode::from_name(text).filter(measured).ok_or_else(|| "expected nat, dr or tunnel".into())
}

/// Reads a protocol.
pub fn parse_protocol(text: &str) -> Result<Protocol, String> {
    Protocol::from_name(text).ok_or_else(|| "expected tcp or udp".into())
}

/// Cycles of each stage, summed over bursts. A burst during which Linux took the core away is left out.
#[derive(Clone, Copy)]
pub struct Stages {
    last: u64,
    burst: [u64; STAGES],
    sums: [u64; STAGES],
    bursts: u64,
}

const STAGES: usize = Stage::ALL.len();
/// Longer than any burst takes by itself.
const INTERRUPTED: u64 = 50_000;

impl Default for Stages {
    fn default() -> Self {
        Stages { last: dpdk::clock::tsc(), burst: [0; STAGES], sums: [0; STAGES], bursts: 0 }
    }
}

impl Probe for Stages {
    #[inline(always)]
    fn done(&mut self, stage: Stage) {
        let now = dpdk::clock::tsc();
        self.burst[stage as usize] = now - self.last;
        self.last = now;
        if stage == Stage::Transmit && self.burst.iter().sum::<u64>() < INTERRUPTED {
            for (sum, cycles) in self.sums.iter_mut().zip(self.burst) {
                *sum += cycles;
            }
            self.bursts += 1;
        }
    }
}

impl Stages {
    fn add(&mut self, other: &Stages) {
        for (sum, cycles) in self.sums.iter_mut().zip(other.sums) {
            *sum += cycles;
        }
        self.bursts += other.bursts;
    }
}

fn print_stages(report: &Report, stages: &HashMap<usize, Stages>) {
    println!("\nstages, cycles/packet; with what reading the clock between them costs");
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["".to_owned()].into_iter().chain(Stage::ALL.iter().map(|stage| stage.to_string())));
    for (index, figure) in report.figures.iter().enumerate() {
        let Some(stages) = stages.get(&index) else { continue };
        let packets = (stages.bursts.max(1) * BURST as u64) as f64;
        let cells = stages.sums.iter().map(|&sum| format!("{:.1}", sum as f64 / packets));
        table.add_row([figure.name()].into_iter().chain(cells));
    }
    println!("{table}");
}
