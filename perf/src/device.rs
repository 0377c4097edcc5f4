//! `rvs-perf device`: the built `rvs` and `dpdk-testpmd` in turn on the same device.
//!
//! `rvs-perf path` measures the worker loop inside this program. This measures the program that is released, with
//! its configuration, twin and control thread, and puts beside it the least that a packet can cost on that device.
//! No device here has hardware behind it, so each is a part of the truth:
//!
//! | device | what comes in | what RVS does | its peer |
//! |---|---|---|---|
//! | `pcap` | the packets of N flows, again and again (`net_pcap`, `infinite_rx=1`), copied out of the pool | forwards all, by NAT (requests and as many replies) or direct routing (requests); what is sent is freed | `5tswap` or `macswap`, `io` |
//! | `null` | frames of zeros (`net_null`) | drops all under one name, `other_host`: zeros are nobody's MAC | `rxonly`, which frees them |
//! | `ring` | what was sent (`net_ring`) | forwards to a real server with the router's own MAC, so that a packet comes again until its TTL is used up | `macswap`, `io` on one burst that goes round |
//!
//! Flows are of UDP: a datagram opens its connection, where TCP would want a handshake that a file which is repeated
//! for ever can hold only for ever, and so would measure connections being opened again and again.
//!
//! The packets of `pcap` lie in the router's own pool, of which RVS makes the size by its descriptors: at most 65 536
//! queued packets, so there is room for 100 000 packets: as many flows by direct routing, half as many by NAT. On `ring` the control thread puts in new packets while old ones expire;
//! the column `burst` says how many a look found (testpmd: always a full burst), since a look costs the more a packet
//! the less it finds.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::service::{Mode, Protocol};
use dataplane::wire::checksum;
use harness::packet::Mac;
use harness::raw::RawSender;
use harness::wait;
use itertools::iproduct;

use crate::cpu;
use crate::frame::{Flags, Frames};
use crate::path::{Common, parse_mode};
use crate::report::{Figure, Report, progress};
use crate::source::Way;
use crate::subject::bench::Bench;
use crate::subject::rvs::{self, Rvs};
use crate::subject::testpmd::{self, Forward, Testpmd};
use crate::subject::{Subject, Work, watch};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Devices.
    #[arg(long, value_delimiter = ',', default_values = ["pcap", "null", "ring"])]
    devices: Vec<Device>,
    /// Forwarding modes of RVS on `pcap`.
    #[arg(long, value_delimiter = ',', default_values = ["nat", "dr"], value_parser = parse_mode)]
    modes: Vec<Mode>,
    /// Numbers of flows on `pcap`.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 50_000],
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_FLOWS)))]
    flows: Vec<u32>,
    /// Bytes of a packet on the wire.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1518))]
    size: u16,
    /// The program rvs; the one beside this program if it is not named.
    #[arg(long, value_name = "PATH")]
    rvs: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Device {
    Pcap,
    Null,
    Ring,
}

const MOST_FLOWS: u32 = 50_000;
const FCS: u16 = 4;
/// The first device of net_pcap in a process has this MAC.
const PCAP_MAC: Mac = [0x02, b'p', b'c', b'a', b'p', 0];
/// Real server and gateway, where packets leave for good.
const NEIGHBOUR_MAC: Mac = [2, 0, 0, 0, 0, 0xBB];
/// Flows whose packets go round on `ring`.
const RING_FLOWS: u32 = 1_000;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Rvs(Mode),
    Testpmd(Forward),
}

/// Programs on one device, measured in turn.
struct Case {
    device: Device,
    mode: Mode,
    flows: u32,
    /// RVS first, then its peers.
    programs: Vec<Program>,
}

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    measure(arguments)?.publish(&arguments.common.outputs)
}

/// Measures.
pub fn measure(arguments: &Arguments) -> Result<Report> {
    let common = &arguments.common;
    let rvs = rvs::program(arguments.rvs.as_deref())?;
    let linked = rvs::linked(&rvs)?;
    let cases = cases(arguments);
    let pools = cases.iter().map(|case| rvs::pool(descriptors(case.packets())));
    // Descriptions and data of a packet are 2.4 kB.
    let megabytes = u64::from(pools.max().unwrap_or_default()) * 5 / 2 / 1024 + 32;
    let bench = Bench::new(common.core, megabytes)?;
    let tsc_hz = cpu::tsc_hz();

    let mut figures: Vec<Vec<Figure>> = cases.iter().map(Case::figures).collect();
    let bar = progress(common.rounds.max(1) * cases.iter().map(|case| case.programs.len()).sum::<usize>());
    for _ in 0..common.rounds.max(1) {
        for (case, figures) in cases.iter().zip(&mut figures) {
            let mut costs = Vec::new();
            for (program, figure) in case.programs.iter().zip(figures.iter_mut()) {
                bar.set_message(figure.name());
                let work = case
                    .measure(*program, &bench, arguments, &rvs)
                    .with_context(|| format!("{} on {}", program.name(), case.device.name()))?;
                let cost = work.cycles(tsc_hz)?;
                figure.samples.push(cost);
                note_burst(figure, &work);
                costs.push(cost);
                bar.inc(1);
            }
            for (figure, peer) in figures[costs.len()..].iter_mut().zip(&costs[1..]) {
                figure.samples.push(costs[0] / peer);
            }
        }
    }
    bar.finish_and_clear();
    let about = format!(
        "rvs ({linked}) and dpdk-testpmd (shared, as Debian links it) in turn on the same device; one polling \
         thread, its CPU time in TSC cycles; UDP, {} bytes, bursts of {}; {}",
        arguments.size,
        dataplane::engine::BURST,
        bench.memory()
    );
    drop(bench);
    Ok(Report::new(about, figures.into_iter().flatten().collect()))
}

/// What is measured on every device.
fn cases(arguments: &Arguments) -> Vec<Case> {
    use Forward::{FiveTupleSwap, Io, Macswap, Rxonly};
    let case = |device, mode, flows, peers: &[Forward]| {
        let peers = peers.iter().map(|&peer| Program::Testpmd(peer));
        Case { device, mode, flows, programs: std::iter::once(Program::Rvs(mode)).chain(peers).collect() }
    };
    let of_device = |&device: &Device| match device {
        Device::Pcap => iproduct!(&arguments.flows, &arguments.modes)
            .map(|(&flows, &mode)| {
                // The peer that writes the same parts of a packet.
                let peer = if mode == Mode::Nat { FiveTupleSwap } else { Macswap };
                case(device, mode, flows, &[peer, Io])
            })
            .collect(),
        Device::Null => vec![case(device, Mode::Nat, 1, &[Rxonly])],
        Device::Ring => vec![case(device, Mode::Dr, RING_FLOWS, &[Macswap, Io])],
    };
    arguments.devices.iter().flat_map(of_device).collect()
}

impl Case {
    /// One for every program, then one for every ratio.
    fn figures(&self) -> Vec<Figure> {
        let figure = |unit, what: String| {
            let flows = if self.device == Device::Null { String::new() } else { self.flows.to_string() };
            Figure::new(unit, vec![("device", self.device.name().into()), ("flows", flows), ("what", what)])
        };
        let name = |program: &Program| match (program, self.device) {
            (Program::Rvs(_), Device::Null) => "rvs, dropped as other_host".to_owned(),
            _ => program.name(),
        };
        let costs = self.programs.iter().map(|program| figure("cycles/packet", name(program)));
        let ratios = self.programs[1..]
            .iter()
            .map(|peer| figure("ratio", format!("{} / {}", self.programs[0].name(), peer.name())));
        costs.chain(ratios).collect()
    }

    /// Packets in the file.
    fn packets(&self) -> u32 {
        if self.mode == Mode::Nat { 2 * self.flows } else { self.flows }
    }

    /// Starts a program, watches it at work and ends it.
    fn measure(&self, program: Program, bench: &Bench, arguments: &Arguments, rvs: &Path) -> Result<Work> {
        let (mut subject, injector) = match program {
            Program::Rvs(_) => self.start_rvs(bench, arguments, rvs)?,
            Program::Testpmd(forward) => (self.start_testpmd(forward, bench, arguments)?, None),
        };
        // Every connection open and every packet met. Counted by what was forwarded: RVS polls before it knows where
        // its real server is, and connections open after that.
        let warm = 2 * u64::from(self.packets()).max(100_000);
        wait::until(&format!("{warm} packets have passed"), wait::PATIENCE, || {
            let counts = subject.counts()?;
            let passed = if self.device == Device::Null { counts.received } else { counts.forwarded };
            ensure!(passed >= warm, "{passed} have: {counts:?}");
            Ok(())
        })?;
        let work = watch(subject.as_mut(), arguments.common.duration())?;
        if let Some(injector) = injector {
            injector.stop()?;
        }
        subject.stop()?;
        match (program, self.device) {
            (Program::Rvs(_), Device::Null) => work.counts.mostly(&["other_host"])?,
            (Program::Testpmd(Forward::Rxonly), _) => (),
            (Program::Rvs(_), Device::Ring) => {
                work.counts.mostly(&["forwarded", "ttl_expired", "tx_full"])?;
                let burst = work.counts.burst().unwrap_or_default();
                ensure!(burst >= 1.5, "only {burst:.1} packets a burst went round: nothing was loaded");
            }
            _ => work.counts.mostly(&["forwarded"])?,
        }
        Ok(work)
    }

    fn start_rvs(
        &self,
        bench: &Bench,
        arguments: &Arguments,
        program: &Path,
    ) -> Result<(Box<dyn Subject>, Option<Injector>)> {
        let frames = self.frames(arguments);
        let settings = rvs::Settings {
            program: program.to_owned(),
            device: self.device(&frames, bench, arguments.size)?,
            mode: self.mode,
            protocol: Protocol::Udp,
            service: frames.service(0),
            server: frames.server(0, 0),
            neighbour: (self.device != Device::Ring).then_some(NEIGHBOUR_MAC),
            connections: self.flows,
            descriptors: descriptors(self.packets()),
            eal: Vec::new(),
        };
        let rvs = Rvs::start(bench, &settings)?;
        ensure!(
            self.device != Device::Pcap || rvs.mac() == PCAP_MAC,
            "DPDK has given its first net_pcap the MAC {:02x?}, not {PCAP_MAC:02x?}: the packets are for nobody",
            rvs.mac()
        );
        let injector = match self.device {
            Device::Ring => Some(Injector::start(bench, &frames, rvs.mac())?),
            Device::Pcap | Device::Null => None,
        };
        Ok((Box::new(rvs), injector))
    }

    fn start_testpmd(
        &self,
        forward: Forward,
        bench: &Bench,
        arguments: &Arguments,
    ) -> Result<Box<dyn Subject>> {
        let frames = self.frames(arguments);
        let own = match self.device {
            Device::Ring => vec!["--tx-first".to_owned(), format!("--txpkts={}", arguments.size - FCS)],
            Device::Pcap | Device::Null => Vec::new(),
        };
        let settings = testpmd::Settings {
            device: self.device(&frames, bench, arguments.size)?,
            forward,
            pool: rvs::pool(descriptors(self.packets())),
            descriptors: 1024,
            eal: Vec::new(),
            own,
        };
        Ok(Box::new(Testpmd::start(bench, &settings)?))
    }

    fn frames(&self, arguments: &Arguments) -> Frames {
        Frames::new(self.mode, Protocol::Udp, Flags::Ack, 1, 1, arguments.size - FCS)
    }

    /// The device in DPDK's words, with what it needs.
    fn device(&self, frames: &Frames, bench: &Bench, size: u16) -> Result<String> {
        match self.device {
            Device::Pcap => {
                let path = bench.file("flows.pcap");
                self.write_pcap(&path, frames, size - FCS)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(format!("net_pcap0,rx_pcap={},infinite_rx=1", path.display()))
            }
            Device::Null => Ok(format!("net_null0,size={}", size - FCS)),
            Device::Ring => Ok("net_ring0".to_owned()),
        }
    }

    /// A request of every flow, then a reply of every flow if replies come this way, as a file of libpcap.
    fn write_pcap(&self, path: &Path, frames: &Frames, length: u16) -> Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        // Magic, version 2.4, no time zone, no accuracy, longest packet, Ethernet.
        file.write_all(&words(&[0xA1B2_C3D4, 2 | 4 << 16, 0, 0, 65_535, 1]))?;
        for number in 0..self.packets() {
            let way = if number < self.flows { Way::In } else { Way::Out };
            let mut frame = frames.frame(way, frames.flow(number % self.flows));
            frame[..6].copy_from_slice(&PCAP_MAC);
            file.write_all(&words(&[0, 0, u32::from(length), u32::from(length)]))?;
            file.write_all(&frame)?;
        }
        Ok(file.flush()?)
    }
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Device::Pcap => "pcap",
            Device::Null => "null",
            Device::Ring => "ring",
        }
    }
}

impl Program {
    fn name(self) -> String {
        match self {
            Program::Rvs(mode) => format!("rvs {mode}"),
            Program::Testpmd(forward) => format!("testpmd {}", forward.name()),
        }
    }
}

/// Descriptors with which RVS makes a pool that has room for so many packets of its own, too.
fn descriptors(packets: u32) -> u16 {
    if packets > 8_000 { 32_768 } else { 1_024 }
}

/// The last of the rounds speaks for all: it says whether looks were full.
fn note_burst(figure: &mut Figure, work: &Work) {
    let Some(burst) = work.counts.burst() else { return };
    figure.labels.retain(|(name, _)| *name != "burst");
    figure.labels.push(("burst", format!("{burst:.1}")));
}

/// Puts packets into a looped device through the router's twin, as fast as Linux takes them.
struct Injector {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Injector {
    fn start(bench: &Bench, frames: &Frames, mac: Mac) -> Result<Injector> {
        let sender = RawSender::open(bench.namespace(), rvs::PORT)?;
        let frames: Vec<Vec<u8>> = (0..RING_FLOWS).map(|n| long_lived(frames, n, mac)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let inject = move || -> Result<()> {
            while !stopped.load(Ordering::Relaxed) {
                for frame in &frames {
                    if sender.send(frame).is_err() {
                        // Linux' queue is full.
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            }
            // The last word: whether sending works at all.
            let frame = frames.first().context("there are no flows")?;
            wait::until("Linux takes a packet", Duration::from_secs(1), || sender.send(frame))
        };
        Ok(Injector { stop, thread: thread::spawn(inject) })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic").context("cannot send on the router's twin")
    }
}

/// A packet that passes as many routers as IP allows.
fn long_lived(frames: &Frames, n: u32, mac: Mac) -> Vec<u8> {
    const TTL: usize = 22;
    let mut frame = frames.frame(Way::In, frames.flow(n));
    frame[..6].copy_from_slice(&mac);
    let old = u16::from_be_bytes([frame[TTL], frame[TTL + 1]]);
    frame[TTL] = 255;
    let new = u16::from_be_bytes([frame[TTL], frame[TTL + 1]]);
    let header = u16::from_be_bytes([frame[24], frame[25]]);
    let header = checksum::Delta::word(old, new).apply(header);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_life_keeps_the_checksum() {
        let frames = Frames::new(Mode::Dr, Protocol::Udp, Flags::Ack, 1, 1, 60);
        let frame = long_lived(&frames, 4711, [2, 0, 0, 0, 0, 9]);
        assert_eq!((frame[22], frame[5]), (255, 9));
        assert_eq!(checksum::sum(&frame[14..34]), 0xFFFF);
    }
}
