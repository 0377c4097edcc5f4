//! `rvs-perf program`: the built program as a whole: the memory it takes, and a reload from the command to the workers.
//!
//! Memory is what Linux counts as resident besides hugepages, which hold DPDK's packets and nothing of the
//! connections; the table's memory is there from the start, whether connections use it or not. A reload is
//! timed as an operator would: from starting `rvs reload` until it has ended, which it does when the new configuration
//! is published; every reload changes a weight of each service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::report::{Figure, Outputs, Promise, Report, progress};
use crate::subject::asking;
use crate::subject::bench::Bench;
use crate::subject::crowd::Crowd;
use crate::subject::rvs;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Connections that the table is made for.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(1_000_000..))]
    connections: u32,
    /// Services of the configuration that is reloaded.
    #[arg(long, default_value_t = 1_000)]
    services: u32,
    /// Real servers of each.
    #[arg(long, default_value_t = 10)]
    servers: u32,
    /// Reloads.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// The program rvs; the one beside this program if it is not named.
    #[arg(long, value_name = "PATH")]
    rvs: Option<PathBuf>,
    /// The core of the worker.
    #[arg(long, default_value_t = 1)]
    core: usize,
    #[command(flatten)]
    outputs: Outputs,
}

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let figures = measure(arguments)?;
    let about = "the built program, one worker on a device without packets".to_owned();
    Report::new(about, figures).publish(&arguments.outputs)
}

/// Measures.
pub fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let Arguments { connections, services, servers, rounds, core, .. } = *arguments;
    let program = rvs::program(arguments.rvs.as_deref())?;
    let bench = Bench::new(core, 128)?;
    let bar = progress(rounds + 2);

    let mut memory = figure(format!("resident, {connections} connections"), "MB");
    let mut a_connection = figure("table, a connection at half load".to_owned(), "bytes");
    if connections == 10_000_000 {
        memory.promise = Some(Promise::AtMost(450.0));
    }
    a_connection.promise = Some(Promise::AtMost(32.0));
    let (few, many) = (resident(&bench, &program, 1024)?, resident(&bench, &program, connections)?);
    bar.inc(2);
    memory.samples.push(many / 1e6);
    // To a tenth of a byte: the two programs differ by some pages besides.
    a_connection.samples.push(((many - few) / f64::from(connections - 1024) * 10.0).round() / 10.0);

    let mut reload = figure(format!("reload, {services} services x {servers} servers"), "ms");
    if (services, servers) == (1_000, 10) {
        reload.promise = Some(Promise::AtMost(50.0));
    }
    let mut crowd = Crowd { connections: 100_000, services, servers, ..Crowd::default() };
    let running = crowd.start(&bench, &program)?;
    running.know_servers(&bench, &crowd)?;
    for round in 0..rounds {
        crowd.weight = 2 + round as u32 % 2;
        fs::write(&running.config, crowd.config(&bench))?;
        let began = Instant::now();
        // As from a shell: the namespace does not matter, and entering it would take longer than the reload.
        let status = Command::new(&program).args(["reload", "--socket"]).arg(&running.socket).output()?;
        ensure!(status.status.success(), "the reload failed: {}", String::from_utf8_lossy(&status.stderr));
        reload.samples.push(began.elapsed().as_secs_f64() * 1e3);
        bar.inc(1);
    }
    // In rounds of their own: who asks takes time on the same core.
    let mut answer = figure(format!("an answer during one, {services} x {servers}, longest"), "ms");
    for round in 0..rounds.min(5) {
        crowd.weight = 4 + round as u32 % 2;
        fs::write(&running.config, crowd.config(&bench))?;
        let reload =
            || Ok(Command::new(&program).args(["reload", "--socket"]).arg(&running.socket).output()?);
        let (answers, output) = asking::meanwhile(&running.socket, reload)?;
        ensure!(output.status.success(), "the reload failed: {}", String::from_utf8_lossy(&output.stderr));
        answer.samples.push(answers.longest);
    }
    answer.promise = Some(Promise::AtMost(100.0));
    running.stop()?;
    bar.finish_and_clear();
    Ok(vec![memory, a_connection, reload, answer])
}

fn figure(what: String, unit: &'static str) -> Figure {
    Figure::new(unit, vec![("program", what)])
}

/// Bytes of memory, hugepages aside, of a program with room for so many connections.
fn resident(bench: &Bench, program: &Path, connections: u32) -> Result<f64> {
    let running = Crowd { connections, ..Crowd::default() }.start(bench, program)?;
    let status = fs::read_to_string(format!("/proc/{}/status", running.daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("Linux tells no VmRSS")?;
    let kilobytes: f64 = line.trim_end_matches("kB").trim().parse()?;
    running.stop()?;
    Ok(kilobytes * 1024.0)
}
