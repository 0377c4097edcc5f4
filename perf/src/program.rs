//! `rvs-perf program`: the built program as a whole: the memory it takes, and a reload from the command to the workers.
//!
//! Memory is what Linux counts as resident besides hugepages, which hold DPDK's packets and nothing of the
//! connections; the table's memory is there from the start, whether connections use it or not. A reload is
//! timed as an operator would: from starting `rvs reload` until it has ended, which it does when the new configuration
//! is published; every reload changes a weight of each service.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::process::Daemon;
use harness::wait;
use nix::sys::signal::Signal;

use crate::report::{Figure, Outputs, Promise, Report, progress};
use crate::subject::bench::Bench;
use crate::subject::{rvs, until};

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
    reload.promise = Some(Promise::AtMost(50.0));
    let running = Running::start(&bench, &program, 100_000, services, servers)?;
    running.know_servers(&bench, services, servers)?;
    for round in 0..rounds {
        fs::write(&running.config, config(&bench, 100_000, services, servers, 2 + round as u32 % 2))?;
        let began = Instant::now();
        // As from a shell: the namespace does not matter, and entering it would take longer than the reload.
        let status = Command::new(&program).args(["reload", "--socket"]).arg(&running.socket).output()?;
        ensure!(status.status.success(), "the reload failed: {}", String::from_utf8_lossy(&status.stderr));
        reload.samples.push(began.elapsed().as_secs_f64() * 1e3);
        bar.inc(1);
    }
    running.stop()?;
    bar.finish_and_clear();
    Ok(vec![memory, a_connection, reload])
}

fn figure(what: String, unit: &'static str) -> Figure {
    Figure::new(unit, vec![("program", what)])
}

/// Bytes of memory, hugepages aside, of a program with room for so many connections.
fn resident(bench: &Bench, program: &Path, connections: u32) -> Result<f64> {
    let running = Running::start(bench, program, connections, 1, 1)?;
    let status = fs::read_to_string(format!("/proc/{}/status", running.daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("Linux tells no VmRSS")?;
    let kilobytes: f64 = line.trim_end_matches("kB").trim().parse()?;
    running.stop()?;
    Ok(kilobytes * 1024.0)
}

/// A running `rvs` on a device without packets.
struct Running {
    daemon: Daemon,
    config: PathBuf,
    socket: PathBuf,
}

impl Running {
    fn start(
        bench: &Bench,
        program: &Path,
        connections: u32,
        services: u32,
        servers: u32,
    ) -> Result<Running> {
        let (file, socket) = (bench.file("rvs.toml"), bench.file("rvs.sock"));
        fs::write(&file, config(bench, connections, services, servers, 1))?;
        let mut daemon = bench.command(program).args(["run", "--log=warn", "-c"]).arg(&file).spawn("rvs")?;
        until("rvs is ready", &mut daemon, || rvs::ask(&socket))?;
        Ok(Running { daemon, config: file, socket })
    }

    /// Makes all real servers known neighbours, and waits until that has found its way to the worker.
    fn know_servers(&self, bench: &Bench, services: u32, servers: u32) -> Result<()> {
        let entry =
            |n| format!("neigh replace {} lladdr 02:00:00:00:00:bb dev wan nud permanent\n", server(n));
        bench.namespace().ip(&(0..services * servers).map(entry).collect::<String>())?;
        let mut last = (0, Instant::now());
        wait::until("rvs has heard of its servers", Duration::from_secs(60), || {
            let generation = rvs::ask(&self.socket)?.generation;
            if generation != last.0 {
                last = (generation, Instant::now());
            }
            ensure!(last.1.elapsed() > Duration::from_millis(500), "the configuration still changes");
            Ok(())
        })
    }

    fn stop(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM)?;
        let status = self.daemon.wait(wait::PATIENCE)?;
        ensure!(status.success(), "rvs ended with {status}");
        Ok(())
    }
}

fn server(n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0A00_0001 + n)
}

fn config(bench: &Bench, connections: u32, services: u32, servers: u32, weight: u32) -> String {
    let memory = if bench.hugepages { "args = [\"--in-memory\"]" } else { "memory = 128" };
    let mut text = format!(
        "[eal]\nhugepages = {}\n{memory}\n[workers]\ncores = [{}]\ncontrol_cores = [{}]\nidle = \"adaptive\"\n\
         [table]\nconnections = {connections}\n[admin]\nsocket = {:?}\n\
         [[port]]\nname = \"wan\"\ndevice = \"net_null0,no-rx=1\"\naddresses = [\"10.255.255.254/8\"]\n",
        bench.hugepages,
        bench.cores.worker,
        bench.cores.other,
        bench.file("rvs.sock"),
    );
    for service in 0..services {
        let address = std::net::Ipv4Addr::from(0xC612_0000 + service);
        let _ = write!(text, "[[service]]\naddress = \"{address}:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n");
        for n in 0..servers {
            let address = server(service * servers + n);
            let _ = write!(text, "[[service.server]]\naddress = \"{address}:80\"\nweight = {weight}\n");
        }
    }
    text
}
