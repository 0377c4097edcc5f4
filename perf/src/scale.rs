//! `rvs-perf scale`: what more workers bring, well steered and badly.
//!
//! Well steered, both directions of a flow come to the same worker. Badly steered, half of the workers get all
//! requests and the others all replies: every connection is shared by two cores, as it is on a NIC whose hash does
//! not bring the two directions together. Rates are packets per CPU-second, summed over the workers, as a multiple of
//! what one worker does with the same packets in the same round. A worker that sees one direction only predicts its branches
//! better than one that sees both in turn, which is in the figures of bad steering.

use anyhow::Result;
use dataplane::service::{Mode, Protocol};
use itertools::iproduct;

use crate::eal::Environment;
use crate::path::{Common, checked};
use crate::report::{Figure, Promise, Report, progress};
use crate::rig::{Rig, Run, Setting};
use crate::source::{Order, Way, Ways};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The most workers; two to so many are measured.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    workers: usize,
    /// Numbers of flows.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 1_000_000])]
    flows: Vec<u32>,
    #[command(flatten)]
    common: Common,
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Steering {
    /// Both directions of a flow to one worker.
    Steered,
    /// Requests and replies to different workers.
    MisSteered,
}

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let about = format!("NAT, both directions in turn, random flows; {}", environment.memory());
    Report::new(about, measure(&environment, arguments)?).publish(&arguments.common.outputs)
}

/// Measures.
pub fn measure(environment: &Environment, arguments: &Arguments) -> Result<Vec<Figure>> {
    let common = &arguments.common;
    let counts: Vec<usize> = (2..=arguments.workers.max(2)).collect();
    let cases: Vec<_> =
        iproduct!(&arguments.flows, &counts, [Steering::Steered, Steering::MisSteered]).collect();
    let mut figures: Vec<Figure> =
        cases.iter().map(|&(flows, workers, steering)| figure(*flows, *workers, steering)).collect();
    let mut rigs = Vec::new();
    for &flows in &arguments.flows {
        let rig = |workers| Rig::new(&Setting { workers, ..Setting::plain(Mode::Nat, Protocol::Tcp, flows) });
        rigs.push((flows, (1..=arguments.workers.max(2)).map(rig).collect::<Result<Vec<Rig>>>()?));
    }
    let bar = progress(common.rounds * cases.len());
    for round in 0..common.rounds.max(1) as u64 {
        for (&(flows, &workers, steering), figure) in cases.iter().zip(&mut figures) {
            bar.set_message(figure.name());
            let rigs = rigs.iter().find(|(of, _)| of == flows).map(|(_, rigs)| rigs).expect("made above");
            let one = rate(environment, common, &rigs[0], Steering::Steered, round)?;
            let all = rate(environment, common, &rigs[workers - 1], steering, round)?;
            figure.samples.push(all / one);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(figures)
}

fn figure(flows: u32, workers: usize, steering: Steering) -> Figure {
    let labels = vec![
        ("workers", workers.to_string()),
        ("steering", if steering == Steering::Steered { "steered" } else { "mis-steered" }.to_owned()),
        ("flows", flows.to_string()),
    ];
    let mut figure = Figure::new("x one worker", labels);
    figure.promise = (workers == 2).then_some(Promise::AtLeast(1.9));
    figure
}

/// Packets per CPU-second, summed over the workers.
fn rate(environment: &Environment, common: &Common, rig: &Rig, steering: Steering, seed: u64) -> Result<f64> {
    let workers = rig.setting.workers;
    let source = |index: usize| {
        let packets = |ways| rig.packets(ways, Order::Random, crate::frame::SHORTEST, seed + index as u64);
        match steering {
            Steering::Steered => packets(Ways::Both).share(index as u32, workers as u32),
            Steering::MisSteered => {
                packets(Ways::All(if index.is_multiple_of(2) { Way::In } else { Way::Out }))
            }
        }
    };
    let cores: Vec<usize> =
        (0..workers).map(|index| (common.core + index) % workers.max(common.core + 1)).collect();
    let runs = rig.run(environment.pool, &cores, source, |_| (), common.a_while())?;
    let rate = |run: &Run<()>| checked(run).map(|run| run.packets as f64 / run.spent.as_secs_f64());
    runs.iter().map(rate).sum()
}
