//! The built `rvs`, with one port, one service and one real server.
//!
//! One-armed, so that a device which loops, or a link with one end, is enough: clients, service and real server are
//! all behind the port `wan`. The real server, and the gateway to the clients, are permanent neighbours on the port's
//! twin, so that nothing has to answer ARP.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dataplane::service::{Mode, Protocol};
use harness::listing::Counters;
use harness::packet::{Mac, show_mac};
use harness::process::{Daemon, tail};
use harness::wait;
use nix::sys::signal::Signal;

use super::bench::Bench;
use super::thread::Thread;
use super::{Counts, Subject, until};

/// The port's name, and its twin's.
pub const PORT: &str = "wan";

/// A running `rvs`.
pub struct Rvs {
    daemon: Daemon,
    socket: PathBuf,
    thread: Thread,
    mac: Mac,
}

/// What it is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub program: PathBuf,
    /// DPDK's name and arguments of the device.
    pub device: String,
    /// Forwarding mode of the service.
    pub mode: Mode,
    /// Protocol of the service.
    pub protocol: Protocol,
    /// Address of the service.
    pub service: SocketAddrV4,
    /// Address of its real server, in 10.0.0.0/8.
    pub server: SocketAddrV4,
    /// The MAC of the real server and of the gateway to the clients; `None`: the router's own, so that what goes out of
    /// a looped device comes in again.
    pub neighbour: Option<Mac>,
    /// Connections that the table is made for.
    pub connections: u32,
    /// Descriptors of a queue, which also decide the size of the pool.
    pub descriptors: u16,
    /// More arguments of EAL.
    pub eal: Vec<String>,
}

/// The program to measure: the one that was named, or the one beside this program.
pub fn program(named: Option<&Path>) -> Result<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("rvs"));
    let path = named.map(Path::to_owned).or_else(beside).context("cannot find out where this program is")?;
    ensure!(
        path.is_file(),
        "there is no {}; run `cargo build --release -p rvs --features static`, or name it with --rvs",
        path.display()
    );
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

/// How a program is linked with DPDK: `static` or `shared`, which makes a difference of an eighth.
pub fn linked(program: &Path) -> Result<&'static str> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // The names of shared libraries stand in the program as they are.
    let needle = b"librte_ethdev.so";
    let shared = bytes.windows(needle.len()).any(|window| window == needle);
    Ok(if shared { "shared" } else { "static" })
}

/// Packets in RVS's pool for one worker and one port with so many descriptors (`pool` in `control/src/ports.rs`).
pub fn pool(descriptors: u16) -> u32 {
    (2 * u32::from(descriptors) + 5 * 1024 + 4 * 512).next_power_of_two() - 1
}

impl Rvs {
    /// Starts it and waits until it forwards to the real server.
    pub fn start(bench: &Bench, settings: &Settings) -> Result<Rvs> {
        let (file, socket) = (bench.file("rvs.toml"), bench.file("rvs.sock"));
        fs::write(&file, settings.text(bench, &socket))?;
        let command = bench.command(&settings.program).args(["run", "--log=warn", "-c"]).arg(&file);
        let mut daemon = command.spawn("rvs")?;
        let pid = daemon.pid();
        let mac = until("rvs makes its twin", &mut daemon, || mac_of_twin(bench))?;
        until("the twin has its address", &mut daemon, || {
            ensure!(!bench.namespace().addresses(PORT)?.is_empty(), "there is none yet");
            Ok(())
        })?;
        let (server, neighbour) = (settings.server.ip(), show_mac(settings.neighbour.unwrap_or(mac)));
        bench.namespace().ip(&format!(
            "neigh replace {server} lladdr {neighbour} dev {PORT} nud permanent\n\
             neigh replace {GATEWAY} lladdr {neighbour} dev {PORT} nud permanent\n\
             route replace default via {GATEWAY} dev {PORT}"
        ))?;
        let thread = until("rvs has a worker", &mut daemon, || Thread::polling(pid))?;
        until("rvs is ready", &mut daemon, || ask(&socket))?;
        Ok(Rvs { daemon, socket, thread, mac })
    }

    /// The MAC of its port.
    pub fn mac(&self) -> Mac {
        self.mac
    }
}

impl Subject for Rvs {
    fn thread(&self) -> &Thread {
        &self.thread
    }

    fn counts(&mut self) -> Result<Counts> {
        self.daemon.check_running()?;
        let counters = ask(&self.socket)?;
        let worker = counters.workers.into_iter().next().context("rvs has no worker")?;
        let others = worker.punted.into_iter().chain(worker.dropped).collect();
        let bursts = Some(worker.bursts);
        Ok(Counts { received: worker.received, forwarded: worker.forwarded, bursts, others })
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM)?;
        let status = self.daemon.wait(wait::PATIENCE)?;
        ensure!(status.success(), "rvs ended with {status}\n{}", tail(&self.daemon.log(), 20));
        Ok(())
    }
}

/// The workers' counters.
pub fn ask(socket: &Path) -> Result<Counters> {
    let body = get(socket, "/v1/counters")?;
    serde_json::from_str(&body).with_context(|| format!("{} answers {body}", socket.display()))
}

/// By the admin socket and not by `rvs list`: starting a program takes longer than the answer.
pub fn get(socket: &Path, path: &str) -> Result<String> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot ask {shown}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // HTTP/1.0: one answer, in one piece, and the end.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: rvs\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{shown} does not answer"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.lines().next().is_some_and(|status| status.contains(" 200 ")) => {
            Ok(body.to_owned())
        }
        _ => bail!("{shown} answers {answer}"),
    }
}

impl Settings {
    fn text(&self, bench: &Bench, socket: &Path) -> String {
        let mut eal = self.eal.clone();
        eal.push("--file-prefix=rvs".into());
        eal.push(if bench.hugepages { "--in-memory" } else { "--no-shconf" }.into());
        // The pool, and what else DPDK wants; hugepages are taken as needed.
        let megabytes = pool(self.descriptors) * 3 / 1024 + 64;
        let memory = if bench.hugepages { String::new() } else { format!("memory = {megabytes}\n") };
        let server = match self.mode {
            Mode::Nat | Mode::Fullnat => self.server.to_string(),
            Mode::Dr | Mode::Tunnel => self.server.ip().to_string(),
        };
        let mut text = format!("[eal]\nhugepages = {}\n{memory}args = {eal:?}\n", bench.hugepages);
        let cores = bench.cores;
        let _ = write!(
            text,
            "[workers]\ncores = [{}]\ncontrol_cores = [{}]\nidle = \"busy\"\n\
             [table]\nconnections = {}\n[admin]\nsocket = {:?}\n\
             [[port]]\nname = \"{PORT}\"\ndevice = {:?}\ndescriptors = {}\naddresses = [\"{ROUTER}/8\"]\n\
             [[service]]\naddress = \"{}\"\nprotocol = \"{}\"\nmode = \"{}\"\nscheduler = \"rr\"\n\
             [[service.server]]\naddress = \"{server}\"\n",
            cores.worker,
            cores.other,
            self.connections.max(1024),
            socket,
            self.device,
            self.descriptors,
            self.service,
            self.protocol,
            self.mode,
        );
        text
    }
}

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 254);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 253);

fn mac_of_twin(bench: &Bench) -> Result<Mac> {
    let links = bench.namespace().ip_json("link show up")?;
    let of_twin = links.as_array().into_iter().flatten().find(|link| link["ifname"] == PORT);
    let text = of_twin.and_then(|link| link["address"].as_str()).context("there is no twin yet")?;
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next().with_context(|| format!("{text} is no MAC"))??;
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_the_command_that_makes_it() {
        let error = program(Some(Path::new("/nonexistent/rvs"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/rvs") && error.contains("--features static"), "{error}");
    }

    #[test]
    fn the_pool_is_that_of_rvs() {
        assert_eq!(pool(1024), 16_383);
        assert_eq!(pool(32_768), 131_071);
    }
}
