//! `rvs-perf reload`: what a worker notices of a reload.
//!
//! A worker forwards packets of flows of all services while the same configuration is compiled and published again
//! and again, as a reload does. After each burst the worker reads its CPU time; the differences are how long bursts
//! took. (Wall-clock time would count what Linux and a hypervisor take away as well.) A reload's own pause is the
//! longest of the first bursts on the new snapshot, all of which is in another core's cache then.
//!
//! Beside it the longest burst from the moment in which the compilation begins until well after the publication,
//! and in as long a time without a reload: the machine has pauses of its own, which it counts as the thread's CPU time
//! (an interrupt of Linux' timer takes about 20 us on a virtual machine, 250 times a second).

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
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

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let environment = Environment::start()?;
    let Arguments { services, servers, flows, reloads, common } = arguments;
    let about = format!(
        "{reloads} reloads a round of {services} services x {servers} servers, {flows} flows, NAT, every packet \
         forwarded; CPU time; {}",
        environment.memory()
    );
    Report::new(about, measure(&environment, arguments)?).publish(&common.outputs)
}

/// Measures; each reload is a sample.
pub fn measure(environment: &Environment, arguments: &Arguments) -> Result<Vec<Figure>> {
    let Arguments { services, servers, flows, reloads, common } = arguments;
    // As in the router: what compiles has a core of its own.
    cpu::pin(usize::from(common.core == 0))?;
    let plain = Setting::plain(Mode::Nat, Protocol::Tcp, *flows);
    let rig = Rig::new(&Setting { services: *services, servers: *servers, ..plain })?;
    let figure = |what: &str, unit| Figure::new(unit, vec![("reload", what.to_owned())]);
    let mut quiet = figure("longest burst in 5 ms, no reload", "us");
    let mut busy = figure("longest burst in 5 ms, reload", "us");
    let mut pause = figure("longest of the first 20 on the new snapshot", "us");
    let mut compile = figure("compiling the snapshot", "ms");
    let mut publish = figure("from publishing to use", "us");
    pause.promise = Some(Promise::AtMost(20.0));
    let bar = progress(common.rounds);
    for _ in 0..common.rounds.max(1) {
        let without = round(environment, common, &rig, *reloads, false)?;
        quiet.samples.extend(without.iter().map(|reload| reload.longest));
        let with = round(environment, common, &rig, *reloads, true)?;
        busy.samples.extend(with.iter().map(|reload| reload.longest));
        pause.samples.extend(with.iter().map(|reload| reload.pause));
        compile.samples.extend(with.iter().map(|reload| reload.compile));
        publish.samples.extend(with.iter().map(|reload| reload.publish));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(vec![quiet, busy, pause, compile, publish])
}

/// A reload, or as much time without one.
struct Reload {
    /// The longest burst around it, microseconds.
    longest: f64,
    /// The longest of the first bursts after it, microseconds.
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
        let received = &rig.counters[0].received;
        // Until the worker has got on, whoever else wants its core; one that cannot says so itself.
        let wait = |before: u64| {
            for _ in 0..10_000 {
                if received.get() > before {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait(received.get());
        std::thread::sleep(pause);
        for _ in 0..reloads {
            let began = dpdk::clock::tsc();
            let (compile, publish) = if really { reload(rig) } else { (Duration::ZERO, Duration::ZERO) };
            times.push((began, compile, publish));
            wait(received.get());
            std::thread::sleep(AROUND + pause);
        }
    };
    let runs = rig.run(environment.pool, &[common.core], source, |_| Bursts::new(), meanwhile)?;
    let bursts = &checked(&runs[0])?.probe.bursts;
    let cycles = |time: Duration| (time.as_secs_f64() * dpdk::clock::tsc_hz() as f64) as u64;
    let mut measured = Vec::new();
    for (began, compile, publish) in times {
        // The first in any case, if the worker had to wait for its core.
        let around = bursts.iter().skip_while(|(end, _)| *end < began).enumerate();
        let around = around.take_while(|(n, (end, _))| *n == 0 || *end < began + cycles(AROUND));
        let longest = around.map(|(_, (_, took))| *took).max();
        let published = began + cycles(compile);
        let first = bursts.iter().skip_while(|(end, _)| *end < published).take(FIRST);
        let pause = first.map(|(_, took)| *took).max();
        let (Some(longest), Some(pause)) = (longest, pause) else {
            bail!("no burst during a reload: did the worker get its core?");
        };
        let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
        measured.push(Reload {
            longest: microseconds(longest),
            pause: microseconds(pause),
            compile: microseconds(compile) / 1e3,
            publish: microseconds(publish),
        });
    }
    Ok(measured)
}

/// Longer than compiling takes, by far.
const AROUND: Duration = Duration::from_millis(5);
/// Bursts that meet the new snapshot cold.
const FIRST: usize = 20;

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
