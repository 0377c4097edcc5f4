//! `rvs-perf sync`: what it costs that a peer router knows all connections.
//!
//! Two routers in this process, each with a table of its own, speak over UDP on loopback by the very threads that do it
//! in `rvs`. One of them has a worker, which has a core to itself; both threads share the other one, which is
//! control's, so that "% of a core" of the two may not be more than a hundred together.
//!
//! * **Path**: packets of established connections, with nobody to tell and while a peer is told.
//! * **Storm**: a worker opens connections at a steady rate, each by a client's SYN and ACK and a server's packet, so each is told
//!   of once. *Lag* is how long the oldest news has been waiting to be confirmed, looked at every few milliseconds.
//! * **Idle, trickle**: nothing, and few connections, so that hardly any two go in one datagram. Below some fifty a second it is what is
//!   said anyway that costs most; so the promise is of what is said more. Once, since these are counts and take seconds.
//! * **Bulk**: a router that has just started hears of all connections.
//! * **Forged calls**: somebody without the key calls in the name of the peer.
//!
//! Bytes are those of IP packets both ways: acknowledgements, and what is told again to heal, included.

mod pace;
mod pair;
mod trickle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use dataplane::service::{Mode, Protocol};

use self::pair::{Pair, forged_call, known};
use crate::cpu;
use crate::eal::Environment;
use crate::frame::SHORTEST;
use crate::path::{Common, checked};
use crate::report::{Figure, Promise, Report, progress};
use crate::rig::{Rig, Setting};
use crate::source::{Order, Way, Ways};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Established connections of the path.
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
    /// Storms: new connections a second.
    #[arg(long, value_delimiter = ',', default_values_t = [200_000])]
    storms: Vec<u32>,
    /// Connections of a storm.
    #[arg(long, default_value_t = 1_000_000)]
    connections: u32,
    /// Trickles: new connections a second, for one to ten seconds.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 50, 200, 550, 5_000])]
    trickles: Vec<u32>,
    /// Bulks: connections of which a peer has to hear.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000])]
    bulks: Vec<u32>,
    #[command(flatten)]
    common: Common,
}

/// Real servers.
const SERVERS: u32 = 10;
/// How often the lag is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let about = format!(
        "NAT, {SERVERS} servers, one worker, a peer over UDP on loopback whose thread shares a core with the router's; {}",
        environment.memory()
    );
    Report::new(about, measure(&environment, arguments)?).publish(&arguments.common.outputs)
}

/// Measures.
pub fn measure(environment: &Environment, arguments: &Arguments) -> Result<Vec<Figure>> {
    let Arguments { flows, storms, trickles, bulks, common, .. } = arguments;
    // What tells peers runs where it is started: beside the worker.
    cpu::pin(usize::from(common.core == 0))?;
    let mut path = Path { rig: rig(*flows, *flows)?, peer: rig(0, *flows)? };
    let full: Vec<Rig> =
        bulks.iter().map(|&connections| rig(connections, connections)).collect::<Result<_>>()?;
    let mut figures = Figures::default();
    let bar = progress(1 + trickles.len() + common.rounds.max(1) * (2 + storms.len() + bulks.len()));
    bar.set_message("idle");
    let idle = trickle::idle(&mut figures)?;
    bar.inc(1);
    for &a_second in trickles {
        bar.set_message(format!("trickle of {a_second}/s"));
        trickle::trickle(a_second, idle, &mut figures)?;
        bar.inc(1);
    }
    for round in 0..common.rounds.max(1) {
        bar.set_message("path");
        path.measure(environment, common, round as u64, &mut figures)?;
        bar.inc(1);
        for &a_second in storms {
            bar.set_message(format!("storm of {a_second}/s"));
            storm(environment, arguments, a_second, &mut figures)?;
            bar.inc(1);
        }
        for full in &full {
            bar.set_message(format!("bulk of {}", full.setting.flows));
            bulk(full, &mut figures)?;
            bar.inc(1);
        }
        let forged = forged_call(&path.peer)?;
        figures.add("forged calls", "refused, each", "us of CPU", forged.as_secs_f64() * 1e6, None);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(figures.0)
}

/// A router with so many connections, and room for more.
fn rig(flows: u32, room: u32) -> Result<Rig> {
    let plain = Setting::plain(Mode::Nat, Protocol::Tcp, flows);
    Rig::new(&Setting { servers: SERVERS, room, ..plain })
}

/// Established connections.
struct Path {
    rig: Rig,
    peer: Rig,
}

impl Path {
    fn measure(
        &mut self,
        environment: &Environment,
        common: &Common,
        round: u64,
        figures: &mut Figures,
    ) -> Result<()> {
        for (way, name) in [(Way::In, "in"), (Way::Out, "out")] {
            // Who comes first changes, too.
            let turns = if round.is_multiple_of(2) { [false, true] } else { [true, false] };
            let [mut alone, mut told] = [0.0; 2];
            for has_peer in turns {
                self.rig.changes = has_peer.then(Arc::default);
                let pair = has_peer.then(|| Pair::start(&self.rig, &self.peer)).transpose()?;
                let source = |_| self.rig.packets(Ways::All(way), Order::Random, SHORTEST, round);
                let runs =
                    self.rig.run(environment.pool, &[common.core], source, |_| (), common.a_while())?;
                *if has_peer { &mut told } else { &mut alone } = checked(&runs[0])?.cycles();
                drop(pair);
            }
            let of = format!("path, {name}");
            figures.add(&of, "alone", "cycles/packet", alone, None);
            figures.add(&of, "with a peer", "cycles/packet", told, None);
            figures.add(&of, "more", "cycles/packet", told - alone, Some(Promise::AtMost(3.0)));
        }
        Ok(())
    }
}

fn storm(
    environment: &Environment,
    arguments: &Arguments,
    a_second: u32,
    figures: &mut Figures,
) -> Result<()> {
    let Arguments { connections, common, .. } = arguments;
    // A little faster, so that the rate is what was asked for at least.
    let pace = a_second + a_second / 100;
    let open = |rig: &Rig, connections, meanwhile: &mut dyn FnMut(&AtomicBool)| {
        pace::open(environment, common.core, rig, pace, connections, meanwhile)
    };
    let mut patience = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
    };
    let alone = open(&rig(0, *connections)?, connections / 4, &mut patience)?;

    let mut here = rig(0, *connections)?;
    here.changes = Some(Arc::default());
    let there = rig(0, *connections)?;
    let pair = Pair::start(&here, &there)?;
    let before = pair.spent()?;
    let mut lags = vec![Duration::ZERO];
    let mut look = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            lags.extend(pair.lag());
            std::thread::sleep(LOOK);
        }
    };
    let opened = open(&here, *connections, &mut look)?;
    pair.settle()?;
    let spent = pair.spent()?;

    let of = format!("storm, {a_second}/s");
    let most = |bound| Some(Promise::AtMost(bound));
    let least = |bound| Some(Promise::AtLeast(bound));
    let all = opened.connections as f64;
    figures.add(&of, "new connections", "/s", opened.a_second, least(f64::from(a_second)));
    figures.add(&of, "a connection, alone", "cycles", alone.cycles, None);
    figures.add(&of, "a connection, with a peer", "cycles", opened.cycles, None);
    figures.add(&of, "a connection, more", "cycles", opened.cycles - alone.cycles, None);
    figures.add(
        &of,
        "on the wire",
        "bytes/connection",
        (spent.bytes - before.bytes) as f64 / all,
        most(64.0),
    );
    figures.add(&of, "overflows", "notes", pair.overflows() as f64, most(0.0));
    let milliseconds = |lag: Option<&Duration>| lag.map_or(0.0, |lag| lag.as_secs_f64() * 1e3);
    figures.add(&of, "lag at the end", "ms", milliseconds(lags.last()), None);
    figures.add(&of, "greatest lag", "ms", milliseconds(lags.iter().max()), None);
    let share = |side: usize| {
        100.0 * (spent.cpu[side] - before.cpu[side]).as_secs_f64() / opened.lasted.as_secs_f64()
    };
    figures.add(&of, "the thread that tells", "% of a core", share(0), None);
    figures.add(&of, "the thread that is told", "% of a core", share(1), None);
    figures.add(&of, "known to the peer", "%", known(&here.table, &there.table), least(99.99));
    Ok(())
}

fn bulk(full: &Rig, figures: &mut Figures) -> Result<()> {
    let connections = full.setting.flows;
    let there = rig(0, connections)?;
    let began = Instant::now();
    let pair = Pair::start(full, &there)?;
    let took = began.elapsed();
    let spent = pair.spent()?;
    let of = format!("bulk, {connections}");
    let bound = (connections == 1_000_000).then_some(Promise::AtMost(3.0));
    figures.add(&of, "until all are known", "s", took.as_secs_f64(), bound);
    figures.add(&of, "on the wire", "bytes/connection", spent.bytes as f64 / f64::from(connections), None);
    figures.add(&of, "the thread that tells", "s of CPU", spent.cpu[0].as_secs_f64(), None);
    figures.add(&of, "the thread that is told", "s of CPU", spent.cpu[1].as_secs_f64(), None);
    figures.add(
        &of,
        "known to the peer",
        "%",
        known(&full.table, &there.table),
        Some(Promise::AtLeast(99.99)),
    );
    Ok(())
}

/// Figures in the order of their first samples.
#[derive(Default)]
struct Figures(Vec<Figure>);

impl Figures {
    fn add(&mut self, of: &str, what: &str, unit: &'static str, sample: f64, promise: Option<Promise>) {
        let labels = vec![("sync", of.to_owned()), ("figure", what.to_owned())];
        let known = self.0.iter().position(|figure| figure.labels == labels);
        let index = known.unwrap_or_else(|| {
            let mut figure = Figure::new(unit, labels);
            figure.promise = promise;
            self.0.push(figure);
            self.0.len() - 1
        });
        self.0[index].samples.push(sample);
    }
}
