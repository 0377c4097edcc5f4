//! `rvs-demo`: a router, three real servers and a client in network namespaces, shown at work step by step.
//!
//! ```text
//! rvs-demo          shows everything, then removes all it made
//! rvs-demo --keep   leaves the clusters up, and says how to play with them
//! rvs-demo --down   removes clusters that were kept
//! ```
//!
//! A signal at any moment removes everything too.  The exit status is 0 only if all that was shown was as it
//! should be.

use std::{
    io::Write,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, vip},
    config::Config,
    nginx::{self, Nginx},
    process,
    router::{self, Router},
    state::State,
    wait,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// The names of the two clusters: their namespaces are `rvs-demo-client` and so on.
const NAT: &str = "demo";
const DR: &str = "demo-dr";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        ["--down"] => return report(down()),
        _ => {
            eprintln!("usage: rvs-demo [--keep | --down]");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("the demo makes network namespaces: run it as root");
        return ExitCode::FAILURE;
    }
    if let Err(error) = clean_up_on_signal() {
        return report(Err(error));
    }
    let result = demo(keep);
    // If a signal has come, what failed is its consequence, and the cleaning is under way.
    process::stop_here_if_stopping();
    report(result)
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n  ✗ {error:#}\n");
            ExitCode::FAILURE
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP are taken by a thread that removes everything and ends the process.
///
/// By handlers, which the programs that are started do not inherit; blocked signals they would.
fn clean_up_on_signal() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        process::start_no_more();
        eprintln!("\n  signal {signal}: removing everything");
        let code = match remove_own() {
            Ok(()) => 128 + signal,
            Err(error) => {
                eprintln!("{error:#}");
                1
            }
        };
        std::process::exit(code);
    });
    Ok(())
}

/// Removes what this process has made; a cluster that an earlier one was told to keep is not ours.
fn remove_own() -> Result<()> {
    [NAT, DR]
        .into_iter()
        .filter_map(State::existing)
        .filter(State::is_own)
        .try_for_each(|state| state.remove())
}

fn down() -> Result<()> {
    for state in [NAT, DR].into_iter().filter_map(State::existing) {
        state.remove()?;
        println!("removed the cluster {}", state.id());
    }
    Ok(())
}

fn demo(keep: bool) -> Result<()> {
    let start = Instant::now();
    let program = router::program()?;
    if [NAT, DR].into_iter().filter_map(State::existing).any(|state| state.is_kept()) {
        bail!("a demo is still up from --keep; remove it with --down (make demo ARGS=--down)");
    }
    title("Network address translation: client - router - real servers")?;
    let nat = Stage::build(NAT, Layout::TwoArmed)?;
    let nat = show_nat(nat)?;
    title("Direct routing: all on one segment, answers bypass the router")?;
    let dr = Stage::build(DR, Layout::OneArmed)?;
    let dr = show_dr(dr)?;
    if keep {
        for stage in [nat, dr] {
            stage.keep()?;
        }
        println!("\nAll as it should be, in {:.0} s.\n", start.elapsed().as_secs_f64());
        return how_to_play(&program.display().to_string());
    }
    title("And away with it")?;
    for stage in [nat, dr] {
        stage.end()?;
    }
    println!("\nAll as it should be, in {:.0} s.\n", start.elapsed().as_secs_f64());
    Ok(())
}

/// A cluster with everything running in it.
struct Stage {
    // The order matters: the router and the servers end before the namespaces are taken away.
    router: Router,
    web: Vec<Nginx>,
    config: Config,
    cluster: Cluster,
}

impl Stage {
    fn build(name: &str, layout: Layout) -> Result<Stage> {
        let start = Instant::now();
        let cluster = Cluster::build_in(State::named(name)?, layout)?;
        let web = cluster.start_web()?;
        step("client, router and three real servers with nginx are up", &seconds(start))?;
        let start = Instant::now();
        let config = cluster.config().service(cluster.web().scheduler("wrr").checked());
        let router = cluster.start_router(&config)?;
        step("rvs runs: one worker, no hugepages, no NIC", &seconds(start))?;
        Ok(Stage { router, web, config, cluster })
    }

    /// 90 requests, and what they must come to.
    fn requests(&self, what: &str, count: u64, expected: [u64; 3]) -> Result<()> {
        let counts = client::get(&self.cluster.client, vip(80), count)?.counts()?;
        ensure!(
            counts == expected,
            "{what}: rs1 {} rs2 {} rs3 {}, expected {expected:?}",
            counts[0],
            counts[1],
            counts[2]
        );
        step(what, &format!("rs1 {}, rs2 {}, rs3 {}", counts[0], counts[1], counts[2]))
    }

    /// The address in the servers' logs.
    fn client_in_logs(&self, count: usize) -> Result<()> {
        let seen = wait::until("all requests are logged", wait::PATIENCE, || {
            let logs: Vec<_> = self.web.iter().map(Nginx::clients).collect::<Result<_>>()?;
            let seen: Vec<String> = logs.into_iter().flatten().collect();
            ensure!(seen.len() == count, "{} of {count}", seen.len());
            Ok(seen)
        })?;
        ensure!(seen.iter().all(|address| *address == CLIENT.to_string()), "the servers saw {seen:?}");
        step("the servers' logs show the client's own address", &format!("{CLIENT} ({count} of {count})"))
    }

    fn counts_add_up(&self) -> Result<()> {
        let counters = self.router.quiet()?;
        let fates = counters.fates();
        let sum = |kind: &str| {
            fates.iter().filter(|(name, _)| name.starts_with(kind)).map(|(_, count)| count).sum::<u64>()
        };
        let (forwarded, punted, dropped) = (sum("forwarded"), sum("punted"), sum("dropped"));
        ensure!(counters.received() == forwarded + punted + dropped, "{counters:?}");
        step(
            "every packet is accounted for",
            &format!(
                "{} received = {forwarded} forwarded + {punted} to Linux + {dropped} dropped",
                counters.received()
            ),
        )
    }

    /// Shows what a command of the program prints, up to so many lines.
    fn table(&self, words: &str, lines: usize) -> Result<()> {
        let text = self.router.rvs(words).run()?;
        ensure!(text.lines().count() > 1, "`rvs {words}` shows nothing: {text}");
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n      $ rvs {words}")?;
        for line in text.lines().take(lines) {
            writeln!(out, "      {}", line.trim_end())?;
        }
        if text.lines().count() > lines {
            writeln!(out, "      ... {} more lines", text.lines().count() - lines)?;
        }
        Ok(())
    }

    fn keep(mut self) -> Result<()> {
        self.cluster.keep()?;
        // Not dropped: dropping would end them.
        std::mem::forget((self.router, self.web));
        Ok(())
    }

    fn end(self) -> Result<()> {
        let name = self.cluster.state().id().to_owned();
        let namespace = self.cluster.router.name().to_owned();
        self.router.finish()?;
        step("SIGTERM: rvs ends cleanly and takes its interfaces and addresses away", "")?;
        drop(self.web);
        drop(self.cluster);
        ensure!(State::existing(&name).is_none(), "cluster {name} is still there");
        ensure!(
            !std::path::Path::new("/run/netns").join(namespace).exists(),
            "cluster {name} is still there"
        );
        step("namespaces, servers and files removed", "")
    }
}

fn show_nat(mut stage: Stage) -> Result<Stage> {
    stage.requests("90 requests by curl, spread round robin", 90, [30, 30, 30])?;
    stage.client_in_logs(90)?;

    let start = Instant::now();
    stage.web[1].kill()?;
    stage.router.wait_up(1, false)?;
    let reason = stage.router.server(1)?.reason.unwrap_or_default();
    step("rs2 killed, found dead by its health check", &format!("after {}: {reason}", seconds(start)))?;
    stage.requests("200 requests after that, none failed", 200, [100, 0, 100])?;
    let start = Instant::now();
    stage.web[1].start_again()?;
    stage.router.wait_up(1, true)?;
    step("rs2 started again, found alive", &format!("after {}", seconds(start)))?;

    let start = Instant::now();
    let mut download = client::start_download(&stage.cluster.client, vip(80), "2m", "download")?;
    let before = stage.router.service()?.stats.bytes_out;
    wait::until("the download runs", wait::PATIENCE, || {
        let now = stage.router.service()?.stats.bytes_out;
        ensure!(now > before + 200_000, "{} bytes so far", now - before);
        Ok(())
    })?;
    step("a long download begins", &format!("{} bytes at 2 MiB/s", nginx::BIG))?;
    for (index, weight) in [4, 3, 2].into_iter().enumerate() {
        stage.config.set_weight(index, weight);
    }
    stage.router.apply_by_signal(&stage.config)?;
    step("meanwhile the file is edited, and rvs gets SIGHUP", "weights 4:3:2")?;
    stage.requests("90 requests, by the new weights", 90, [40, 30, 20])?;
    download.check_running().context("the download was over too soon to prove anything")?;
    ensure!(download.wait(Duration::from_secs(30))?.success(), "the download broke: {}", download.log());
    let bytes = std::fs::read(stage.cluster.state().file("download"))?;
    ensure!(bytes == nginx::big_file(), "the download is not what was sent: {} bytes", bytes.len());
    step(
        "the download is unbroken",
        &format!("{} bytes in {}, each as it was sent", bytes.len(), seconds(start)),
    )?;

    step("what rvs has to say", "the tables of ipvsadm")?;
    stage.table("list", 12)?;
    stage.table("list --stats", 12)?;
    stage.table("list -c", 8)?;
    stage.table("list --counters", 24)?;
    println!();
    stage.counts_add_up()?;
    Ok(stage)
}

fn show_dr(stage: Stage) -> Result<Stage> {
    stage.requests("90 requests by curl, spread round robin", 90, [30, 30, 30])?;
    stage.client_in_logs(90)?;
    let stats = stage.router.service()?.stats;
    ensure!(stats.packets_out == 0, "answers passed the router: {stats:?}");
    step(
        "answers go straight to the client",
        &format!("{} packets in, {} out", stats.packets_in, stats.packets_out),
    )?;
    stage.table("list", 12)?;
    println!();
    stage.counts_add_up()?;
    Ok(stage)
}

fn how_to_play(program: &str) -> Result<()> {
    let state =
        |name: &str, file: &str| State::existing(name).map(|state| state.file(file).display().to_string());
    let (socket, file, log) = (
        state(NAT, "rvs.sock").context("the cluster is gone")?,
        state(NAT, "rvs.toml").context("the cluster is gone")?,
        state(NAT, "rvs.log").context("the cluster is gone")?,
    );
    println!(
        "\
The clusters stay up: rvs-demo-* (NAT) and rvs-demo-dr-* (direct routing).  To play with the first:

  ask the service          ip netns exec rvs-demo-client curl http://192.0.2.10/
  services and servers     {program} list -s {socket}
  connections              {program} list -c -s {socket}
  where packets went       {program} list --counters -s {socket}
  edit and apply           $EDITOR {file} && {program} reload -s {socket}
  the log                  tail -f {log}
  watch Linux' side        ip netns exec rvs-demo-router tcpdump -ni wan
  watch all of the wire    ip netns exec rvs-demo-client tcpdump -ni eth0
  cut a server off         ip -n rvs-demo-lan link set rs2 down
  and connect it again     ip -n rvs-demo-lan link set rs2 up
  a shell on the router    ip netns exec rvs-demo-router bash

Remove it all: make demo ARGS=--down
"
    );
    Ok(())
}

fn title(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "\n{text}\n")?)
}

/// One line: something was shown, and is as it should be.
fn step(what: &str, figure: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "  ✓ {what:<58} {figure}")?;
    Ok(out.flush()?)
}

fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}
