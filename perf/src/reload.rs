//! `rvs-perf reload`: what a worker notices of a reload.
//!
//! A worker forwards packets of flows of all services while the same configuration is compiled and published again
//! and again, as a reload does. After each burst the worker reads its CPU time; the differences are how long bursts
//! took. (Wall-clock time would count what Linux and a hypervisor take away as well.) A reload's pause is the longest
//! burst from the moment in which its compilation begins until a millisecond after its publication. Beside it, the
//! longest burst in as long a time without a reload, since the machine has pauses of its own.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dataplane::engine::{Probe, Stage};
use dataplane::service::{Mode, Protocol};

use crate::cpu;
use crate::eal::Environment;
use crate::path::{Common, checked};
use crate::report::{Figure, Promise, Report, progress};
use crate::rig::{Rig, Setting};
use crate::source::{Order, Ways};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Services.
    #[arg(long, default_value_t = 1_000)]
    services: u32,
    /// Real servers of each.
    #[arg(long, default_value_t = 10)]
    servers: u32,
    /// Connections, spread over all of them.
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
    /// Reloads in each round.
    #[arg(long, default_value_t = 20)]
    reloads: usize,
    #[command(flatten)]
    common: Common,
}

/// Measures and reports; each reload is a sample.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let Arguments { services, servers, flows, reloads, common } = arguments;
    let plain = Setting::plain(Mode::Nat, Protocol::Tcp, *flows);
    let rig = Rig::new(&Setting { services: *services, servers: *servers, ..plain })?;
    let figure = |what: &str, unit| Figure::new(unit, vec![("what", what.to_owned())]);
    let mut quiet = figure("longest burst, no reload", "us");
    let mut pause = figure("longest burst, reload", "us");
    let mut compile = figure("compiling the snapshot", "ms");
    let mut publish = figure("from publishing to use", "us");
    pause.promise = Some(Promise::AtMost(20.0));
    let bar = progress(common.rounds);
    for _ in 0..common.rounds.max(1) {
        let without = round(&environment, common, &rig, *reloads, false)?;
        quiet.samples.extend(without.iter().map(|reload| reload.pause));
        let with = round(&environment, common, &rig, *reloads, true)?;
        pause.samples.extend(with.iter().map(|reload| reload.pause));
        compile.samples.extend(with.iter().map(|reload| reload.compile));
        publish.samples.extend(with.iter().map(|reload| reload.publish));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let about = format!(
        "{reloads} reloads a round of {services} services x {servers} servers, {flows} flows, NAT, every packet \
         forwarded; CPU time; {}",
        environment.memory()
    );
    Report::new(about, vec![quiet, pause, compile, publish]).publish(&common.outputs)
}

/// A reload, or as much time without one.
struct Reload {
    /// The longest burst, microseconds.
    pause: f64,
    /// Milliseconds.
    compile: f64,
    /// Microseconds.
    publish: f64,
}

fn round(
    environment: &Environment,
    common: &Common,
    rig: &Rig,
    reloads: usize,
    really: bool,
) -> Result<Vec<Reload>> {
    let source = |_| rig.packets(Ways::Both, Order::Random, crate::frame::SHORTEST, 1);
    let mut times = Vec::new();
    let meanwhile = |_: &_| {
        let pause = Duration::from_millis(common.time) / (reloads as u32 + 1);
        std::thread::sleep(pause);
        for _ in 0..reloads {
            let began = dpdk::clock::tsc();
            let (compile, publish) = if really { reload(rig) } else { (Duration::ZERO, Duration::ZERO) };
            std::thread::sleep(Duration::from_millis(1));
            times.push((began..dpdk::clock::tsc(), compile, publish));
            std::thread::sleep(pause);
        }
    };
    let runs = rig.run(environment.pool, &[common.core], source, |_| Bursts::new(), meanwhile)?;
    let bursts = &checked(&runs[0])?.probe.bursts;
    let mut measured = Vec::new();
    for (time, compile, publish) in times {
        let longest = bursts.iter().filter(|(end, _)| time.contains(end)).map(|(_, took)| *took).max();
        ensure!(longest.is_some(), "no burst during a reload: did the worker get its core?");
        measured.push(Reload {
            pause: longest.unwrap_or_default().as_secs_f64() * 1e6,
            compile: compile.as_secs_f64() * 1e3,
            publish: publish.as_secs_f64() * 1e6,
        });
    }
    Ok(measured)
}

/// How long compiling took, and the worker to take up the result.
fn reload(rig: &Rig) -> (Duration, Duration) {
    let (generation, compile) = rig.reload();
    let published = Instant::now();
    while rig.counters[0].generation.get() < generation {
        std::hint::spin_loop();
    }
    (compile, published.elapsed())
}

/// When each burst ended, and the CPU time since the one before.
struct Bursts {
    last: Duration,
    bursts: Vec<(u64, Duration)>,
}

impl Bursts {
    fn new() -> Self {
        // Room for a second's worth of short bursts, and memory that is there: a page fault would be a pause.
        let mut bursts = vec![(1, Duration::MAX); 1_000_000];
        bursts.clear();
        Bursts { last: Duration::ZERO, bursts }
    }
}

impl Probe for Bursts {
    fn done(&mut self, stage: Stage) {
        if stage == Stage::Transmit {
            let now = cpu::time();
            self.bursts.push((dpdk::clock::tsc(), now - self.last));
            self.last = now;
        }
    }
}
