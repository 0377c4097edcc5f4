//! `rvs-perf control`: the control thread while very many servers answer, go down together and come back.
//!
//! The built program checks its servers by TCP. All of them are this machine, in a namespace of its own, and change
//! together, which is the worst that can happen to whoever checks them:
//!
//! ```text
//!   at rest   somebody accepts at all addresses
//!   refuse    nobody does, and Linux refuses at once
//!   return    somebody does again
//!   silence   a rule of nftables drops what is sent to them: each check waits until its time is up
//!   return
//! ```
//!
//! Meanwhile somebody asks the admin socket (`subject/asking.rs`). A follower of the events tells when all are down, or
//! up. The worker has a device that never runs out of packets, so that whatever disturbs it
//! costs packets.
//!
//! All but the worker run on one core, the asking, the accepting and the following too: what is seen is what a machine
//! whose control core has other work sees.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use harness::wait;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen};

use crate::report::{Figure, Outputs, Promise, Report, progress};
use crate::subject::asking::{self, Answers};
use crate::subject::bench::Bench;
use crate::subject::crowd::{Crowd, Running};
use crate::subject::rvs;
use crate::subject::thread::Thread;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Services.
    #[arg(long, default_value_t = 1_000)]
    services: u32,
    /// Real servers of each.
    #[arg(long, default_value_t = 10)]
    servers: u32,
    /// Seconds from a check to the next.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    interval: f64,
    /// Seconds at rest, once without questions and once with them.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    time: f64,
    /// How often they go down and come back.
    #[arg(long, default_value_t = 1)]
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

fn seconds(typed: &str) -> Result<f64, String> {
    let expected = "expected seconds, from 0.1 to 60";
    let value: f64 = typed.parse().map_err(|_| expected.to_owned())?;
    if (0.1..=60.0).contains(&value) { Ok(value) } else { Err(expected.to_owned()) }
}

/// Drops what is sent to the servers.
const SILENCE: &str =
    "table inet rvs {\nchain input {\ntype filter hook input priority 0\ntcp dport 80 drop\n}\n}\n";

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { services, servers, interval, .. } = *arguments;
    let about = format!(
        "the built program with {services} services x {servers} servers, each checked by TCP every {interval} s; \
         a question every {} ms",
        asking::EVERY.as_millis()
    );
    Report::new(about, measure(arguments)?).publish(&arguments.outputs)
}

/// Measures.
fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let Arguments { services, servers, interval, rounds, core, .. } = *arguments;
    let program = rvs::program(arguments.rvs.as_deref())?;
    let bench = Bench::new(core, 128)?;
    bench.namespace().ip("route add local 10.0.0.0/12 dev lo")?;
    let millis = (interval * 1e3) as u64;
    let crowd = Crowd {
        connections: 100_000,
        services,
        servers,
        check: Some(format!(
            "interval = \"{millis}ms\", timeout = \"{}ms\", rise = 2, fall = 2",
            (millis / 2).min(1000)
        )),
        device: "net_null0",
        ..Crowd::default()
    };
    let mut accepting = Accepting::start(&bench)?;
    let running = crowd.start(&bench, &program)?;
    running.know_servers(&bench, &crowd)?;
    let watch = Watch::start(&running, arguments)?;
    // All have been checked.
    thread::sleep(Duration::from_secs_f64(interval * 1.2));

    let mut figures = Figures::default();
    let bar = progress(rounds.max(1) * 5);
    for _ in 0..rounds.max(1) {
        let rest = watch.rest(Duration::from_secs_f64(arguments.time))?;
        figures.add("at rest", rest, None);
        bar.inc(1);
        drop(accepting);
        figures.add("refuse", watch.until(Turn::Down)?, Some(rest.pace));
        bar.inc(1);
        accepting = Accepting::start(&bench)?;
        figures.add("return", watch.until(Turn::Up)?, Some(rest.pace));
        bar.inc(1);
        bench.namespace().nft(SILENCE)?;
        figures.add("silence", watch.until(Turn::Down)?, Some(rest.pace));
        bar.inc(1);
        bench.namespace().nft("delete table inet rvs")?;
        figures.add("return from silence", watch.until(Turn::Up)?, Some(rest.pace));
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(accepting);
    running.stop()?;
    watch.follower.join().map_err(|_| anyhow!("the follower panicked"))??;
    Ok(figures.0.into_values().collect())
}

/// Which way all servers go.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Down,
    Up,
}

/// Those who look on.
struct Watch {
    socket: PathBuf,
    control: Thread,
    worker: Thread,
    seen: Arc<Seen>,
    follower: JoinHandle<Result<()>>,
    /// All servers.
    count: u64,
    /// After which something is wrong.
    limit: Duration,
}

/// Servers that have turned, by the events.
#[derive(Default)]
struct Seen {
    down: AtomicU64,
    up: AtomicU64,
}

/// What was seen.
#[derive(Clone, Copy)]
struct Sight {
    /// Of a core, in percent.
    control: f64,
    /// The worker's packets a second of its CPU time.
    pace: f64,
    answers: Answers,
    /// Seconds until all had turned, if they were to.
    took: Option<f64>,
}

impl Watch {
    fn start(running: &Running, arguments: &Arguments) -> Result<Watch> {
        let (socket, pid, seen) = (running.socket.clone(), running.daemon.pid(), Arc::<Seen>::default());
        Ok(Watch {
            control: Thread::main(pid)?,
            worker: Thread::polling(pid)?,
            follower: follow(&socket, seen.clone())?,
            seen,
            socket,
            count: u64::from(arguments.services * arguments.servers),
            limit: Duration::from_secs_f64(30.0 + 6.0 * arguments.interval),
        })
    }

    /// Nothing happens. The CPU time is that without questions.
    fn rest(&self, time: Duration) -> Result<Sight> {
        let quiet = self.look(|| {
            thread::sleep(time);
            Ok(())
        })?;
        let (answers, ()) = asking::meanwhile(&self.socket, || {
            thread::sleep(time);
            Ok(())
        })?;
        Ok(Sight { answers, ..quiet })
    }

    /// All servers turn.
    fn until(&self, turn: Turn) -> Result<Sight> {
        let began = Instant::now();
        let (count, what) = match turn {
            Turn::Down => (&self.seen.down, "down"),
            Turn::Up => (&self.seen.up, "up"),
        };
        let mut took = 0.0;
        let mut answers = None;
        let sight = self.look(|| {
            let turned = || {
                wait::until(&format!("all servers are {what}"), self.limit, || {
                    let turned = count.load(Relaxed);
                    ensure!(turned >= self.count, "{turned} of {} are", self.count);
                    Ok(())
                })?;
                took = began.elapsed().as_secs_f64();
                // What follows from the last of them.
                thread::sleep(Duration::from_millis(200));
                Ok(())
            };
            answers = Some(asking::meanwhile(&self.socket, turned)?.0);
            Ok(())
        })?;
        // For the next time.
        self.seen.down.store(0, Relaxed);
        self.seen.up.store(0, Relaxed);
        Ok(Sight { took: Some(took), answers: answers.context("nobody was asked")?, ..sight })
    }

    /// Who has worked how much meanwhile.
    fn look(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<Sight> {
        let received = || -> Result<u64> {
            Ok(rvs::ask(&self.socket)?.workers.first().context("rvs has no worker")?.received)
        };
        let before = (self.control.times()?, self.worker.fresh_times()?, received()?);
        meanwhile()?;
        let control = self.control.times()? - before.0;
        let worker = self.worker.fresh_times()? - before.1;
        let packets = received()? - before.2;
        let elapsed = control.at - before.0.at;
        Ok(Sight {
            control: control.on_cpu.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
            pace: packets as f64 / worker.on_cpu.as_secs_f64(),
            answers: Answers::default(),
            took: None,
        })
    }
}

/// Follows the events until rvs ends.
fn follow(socket: &Path, seen: Arc<Seen>) -> Result<JoinHandle<Result<()>>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /v1/events?follow=true HTTP/1.0\r\nHost: rvs\r\n\r\n")?;
    Ok(thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let line = line.context("the events break off")?;
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            match event["event"].as_str() {
                Some("server_down") => {
                    seen.down.fetch_add(1, Relaxed);
                }
                Some("server_up") => {
                    seen.up.fetch_add(1, Relaxed);
                }
                Some("missed") => {
                    let missed = event["events"].as_u64().unwrap_or_default();
                    seen.down.fetch_add(missed, Relaxed);
                    seen.up.fetch_add(missed, Relaxed);
                }
                _ => {}
            }
        }
        Ok(())
    }))
}

/// Somebody who accepts connections to all servers, and closes them.
struct Accepting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Accepting {
    fn start(bench: &Bench) -> Result<Accepting> {
        let listener = bench.namespace().enter(|| {
            let listener = TcpListener::bind(("0.0.0.0", 80)).context("cannot listen in the namespace")?;
            listener.set_nonblocking(true)?;
            // Checks come in flocks, and the core has other work.
            listen(&listener, Backlog::new(4096)?)?;
            Ok(listener)
        })?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let accept = move || {
            while !stopped.load(Relaxed) {
                // One that is interrupted looks again.
                let _ =
                    poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20u8));
                while listener.accept().is_ok() {}
            }
        };
        Ok(Accepting { stop, thread: Some(thread::spawn(accept)) })
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // It ends by itself, and has nothing to say.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Figures in the order of their first samples.
#[derive(Default)]
struct Figures(BTreeMap<(usize, usize), Figure>);

impl Figures {
    /// Adds what was seen in a situation; `rest` is the worker's pace at rest.
    fn add(&mut self, situation: &str, sight: Sight, rest: Option<f64>) {
        let Sight { control, pace, answers, took } = sight;
        let order = ["at rest", "refuse", "return", "silence", "return from silence"];
        let order = order.iter().position(|known| *known == situation).unwrap_or_default();
        let bound = Some(Promise::AtMost(100.0));
        let rows = [
            ("CPU of the control thread", "% of a core", Some(control), None),
            ("until all have turned", "s", took, None),
            ("an answer, median", "ms", Some(answers.median), None),
            ("an answer, 99 of 100", "ms", Some(answers.p99), bound),
            ("an answer, longest", "ms", Some(answers.longest), bound),
            ("a packet explained, longest", "ms", Some(answers.explain), bound),
            (
                "worker's packets a CPU second, to those at rest",
                "%",
                rest.map(|rest| pace / rest * 100.0),
                None,
            ),
        ];
        for (row, (what, unit, value, promise)) in rows.into_iter().enumerate() {
            let Some(value) = value else { continue };
            let figure = self.0.entry((order, row)).or_insert_with(|| {
                let labels = vec![("servers", situation.to_owned()), ("what", what.to_owned())];
                Figure { promise, ..Figure::new(unit, labels) }
            });
            figure.samples.push(value);
        }
    }
}
