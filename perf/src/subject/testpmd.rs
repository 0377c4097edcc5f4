//! `dpdk-testpmd`, DPDK's own forwarding program: the least that a packet can cost on a device.
//!
//! Debian's package links it with DPDK's shared libraries, which costs an eighth (a call for every access to a
//! thread's own data); a static one would have to be built from DPDK's sources. A report says how both are linked.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::process::Daemon;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

use super::bench::Bench;
use super::thread::Thread;
use super::{Counts, Subject, until};

/// Packets a burst: as many as RVS takes.
const BURST: usize = dataplane::engine::BURST;
/// Packets in each core's cache of the pool, as with RVS.
const POOL_CACHE: u32 = 512;
const PREFIX: &str = "testpmd";

/// A running `dpdk-testpmd`.
pub struct Testpmd {
    daemon: Daemon,
    telemetry: OwnedFd,
    thread: Thread,
}

/// What it does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Forward {
    /// Sends it back as it is.
    Io,
    /// Swaps MACs.
    Macswap,
    /// Swaps MACs, IP addresses and ports.
    #[value(name = "5tswap")]
    FiveTupleSwap,
    /// Frees it.
    Rxonly,
}

/// What it is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// DPDK's name and arguments of the device.
    pub device: String,
    /// What to do with packets.
    pub forward: Forward,
    /// Packets in its pool.
    pub pool: u32,
    /// Descriptors of a queue.
    pub descriptors: u16,
    /// More arguments of EAL.
    pub eal: Vec<String>,
    /// More arguments of its own.
    pub own: Vec<String>,
}

impl Forward {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Forward::Io => "io",
            Forward::Macswap => "macswap",
            Forward::FiveTupleSwap => "5tswap",
            Forward::Rxonly => "rxonly",
        }
    }
}

impl Testpmd {
    /// Starts it and waits until its port is up; whether it forwards yet, only packets tell.
    pub fn start(bench: &Bench, settings: &Settings) -> Result<Testpmd> {
        let Settings { device, forward, pool, descriptors, eal, own } = settings;
        let cores = bench.cores;
        let mut command =
            bench.command("dpdk-testpmd").args(["-l", &format!("{},{}", cores.other, cores.worker)]);
        command =
            command.args([&format!("--main-lcore={}", cores.other), &format!("--file-prefix={PREFIX}")]);
        command = command.args(["--no-pci", "--log-level=*:warning", &format!("--vdev={device}")]).args(eal);
        let megabytes = (pool * 3 / 1024 + 64).to_string();
        command = match bench.hugepages {
            true => command.arg("--in-memory"),
            false => command.args(["--no-huge", "--no-shconf", "-m", &megabytes]),
        };
        command = command.args([
            "--",
            "--nb-cores=1",
            "--rxq=1",
            "--txq=1",
            "--no-lsc-interrupt",
            "--disable-link-check",
        ]);
        command = command.args([format!("--forward-mode={}", forward.name()), format!("--burst={BURST}")]);
        command = command.args([format!("--rxd={descriptors}"), format!("--txd={descriptors}")]);
        command = command.args([format!("--mbcache={POOL_CACHE}"), format!("--total-num-mbufs={pool}")]);
        // Without a terminal it would end at once; so it prints statistics, every ten hours: it counts to 65535.
        let mut daemon = command
            .arg("--stats-period=36000")
            .args(own)
            .spawn("testpmd")
            .context("cannot start dpdk-testpmd; it is in Debian's package dpdk-dev")?;
        let pid = daemon.pid();
        let thread = until("testpmd has a worker", &mut daemon, || Thread::polling(pid))?;
        let path = bench.file(&format!("dpdk/{PREFIX}/dpdk_telemetry.v2"));
        let telemetry = until("testpmd answers", &mut daemon, || telemetry(&path))?;
        // A peer that comes earlier finds half a device; memif on this side does not get over that.
        until("testpmd starts its port", &mut daemon, || {
            let answer = ask(&telemetry, "/ethdev/info,0")?;
            ensure!(answer["/ethdev/info"]["dev_started"] == 1, "testpmd answers {answer}");
            Ok(())
        })?;
        Ok(Testpmd { daemon, telemetry, thread })
    }
}

impl Subject for Testpmd {
    fn thread(&self) -> &Thread {
        &self.thread
    }

    fn counts(&mut self) -> Result<Counts> {
        self.daemon.check_running()?;
        let answer = ask(&self.telemetry, "/ethdev/stats,0")?;
        let stats = &answer["/ethdev/stats"];
        let count = |name: &str| stats[name].as_u64().with_context(|| format!("testpmd answers {answer}"));
        let others = ["imissed", "ierrors", "rx_nombuf", "oerrors"];
        let others = others.iter().map(|name| Ok(((*name).to_owned(), count(name)?)));
        Ok(Counts {
            received: count("ipackets")?,
            forwarded: count("opackets")?,
            bursts: None,
            others: others.collect::<Result<_>>()?,
        })
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        // It takes everything down and then ends by the same signal.
        self.daemon.signal(Signal::SIGTERM)?;
        match self.daemon.wait(Duration::from_secs(5)) {
            Ok(_) => Ok(()),
            Err(_) => self.daemon.kill(),
        }
    }
}

/// Opens its telemetry socket, one packet a question and one an answer.
fn telemetry(path: &Path) -> Result<OwnedFd> {
    let shown = path.display();
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
        .with_context(|| format!("cannot connect to {shown}"))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    let greeting = receive(&socket).with_context(|| format!("{shown} does not greet"))?;
    ensure!(greeting["version"].is_string(), "{shown} greets with {greeting}");
    Ok(socket)
}

fn ask(socket: &OwnedFd, question: &str) -> Result<Value> {
    send(socket.as_raw_fd(), question.as_bytes(), MsgFlags::empty())
        .with_context(|| format!("cannot ask testpmd for {question}"))?;
    receive(socket).with_context(|| format!("testpmd does not answer {question}"))
}

fn receive(socket: &OwnedFd) -> Result<Value> {
    let mut buffer = vec![0; 16384];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    Ok(serde_json::from_slice(&buffer[..length])?)
}
