//! `rvs replay`: a configuration and captures in, and what the packet path makes of them out.
//!
//! ```text
//!   --in ---> input ---> merge ---> router ---> line, summary ---> stdout
//!                                     |  \
//!   config ---> network ------------- +   +---> --out, --expect
//! ```
//!
//! The packet path is that of `rvs run` ([`router`]); what a machine would give it comes from files and from rules that are written down
//! ([`network`]). Nothing depends on the machine, on the moment or on chance: the same files give the same bytes. It needs no
//! privileges and no EAL.
//!
//! Captures are read twice: first to see whether they can be read to their end, and who is there, and then packet by packet.

mod expected;
mod family;
mod fields;
mod input;
mod line;
mod merge;
pub mod network;
mod parcel;
pub mod router;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use dataplane::counters::Drop;
use dataplane::engine::Verdict;
use dataplane::fib::PortIndex;
use dataplane::vlan::{self, Vlans};
use dataplane::wire::ethernet::{Ethernet, Mac};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use self::expected::{Difference, Expected};
use self::input::{Capture, LONGEST, Packet, Way};
use self::line::{Headers, Line, Time};
use self::merge::Merged;
use self::network::{Given, Network};
use self::parcel::Parcel;
use self::router::{Down, Fate, Router};
use self::summary::{Port, Summary};
use crate::config::Config;
use crate::ports::mac_text;

/// After the last packet, fragments that wait have so long, in nanoseconds: longer than any waits.
const AFTERWARDS: u64 = 2_000_000_000;

/// A file of a port, by the port's name.
pub type PortFile = (String, PathBuf);

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// What comes in.
    pub inputs: Vec<PortFile>,
    /// What should go out.
    pub expected: Vec<PortFile>,
    /// Where to write what goes out.
    pub outputs: Vec<PortFile>,
    /// What surrounds the router.
    pub given: Given,
    /// Real servers that are dead.
    pub down: Vec<Down>,
    /// Of the connection table's hash.
    pub seed: u64,
    /// JSON instead of text.
    pub json: bool,
    /// Counters instead of a line a packet.
    pub summary: bool,
}

/// What it has come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Whether what went out is what was expected.
    pub agrees: bool,
    /// What may have gone wrong, for people.
    pub hints: Vec<String>,
}

/// Carries an order out; what there is to say of packets is written.
pub fn run(config: &Config, order: &Order, out: &mut impl Write) -> Result<End> {
    let ports: Vec<String> = config.ports.iter().map(|port| port.name.clone()).collect();
    check_outputs(order)?;
    let mut network = Network::new(config, &order.given)?;
    let mut merged = Merged::default();
    for (port, path) in &order.inputs {
        let index = index(config, "--in", port)?;
        meet(&mut network, Capture::open(path, port, &ports, Way::In)?)?;
        merged.add(index, Capture::open(path, port, &ports, Way::In)?)?;
    }
    let expected =
        by_port(config, "--expect", &order.expected, |port, path| Expected::open(path, port, &ports))?;
    let router = Router::new(config, &network, &order.down, order.seed)?;
    // Not before all else is known to be right: an old file stays as it is if this is refused.
    let outputs = by_port(config, "--out", &order.outputs, |_, path| Output::create(path))?;
    let of_port = |name: &String| Port { name: name.clone(), ..Port::default() };
    let replay = Replay {
        order,
        summary: Summary { ports: ports.iter().map(of_port).collect(), ..Summary::default() },
        strangers: vec![None; ports.len()],
        ports: &ports,
        vlans: config.vlans(),
        router,
        began: 0,
        expected,
        outputs,
        out,
    };
    replay.all(&mut merged, &network)
}

/// A replay that is going on.
struct Replay<'a, W> {
    order: &'a Order,
    ports: &'a [String],
    vlans: Vlans,
    router: Router<Parcel>,
    /// When the first packet came, in nanoseconds since 1970.
    began: u64,
    expected: BTreeMap<PortIndex, Expected>,
    outputs: BTreeMap<PortIndex, Output>,
    summary: Summary,
    /// Of each port: packets to another MAC, and one such MAC.
    strangers: Vec<Option<(u64, Mac)>>,
    out: &'a mut W,
}

impl<W: Write> Replay<'_, W> {
    fn all(mut self, merged: &mut Merged, network: &Network) -> Result<End> {
        let (mut packet, mut parcel) = (Packet::default(), Parcel::default());
        let (mut number, mut latest) = (0, 0);
        while let Some(port) = merged.next(&mut packet)? {
            number += 1;
            if number == 1 {
                self.began = packet.at;
                latest = packet.at;
            }
            self.summary.late += u64::from(packet.at < latest);
            latest = latest.max(packet.at);
            if packet.is_cut() {
                self.skip(number, port, &packet)?;
                continue;
            }
            (parcel.number, parcel.at, parcel.port) = (number, packet.at, port);
            std::mem::swap(&mut parcel.frame, &mut packet.frame);
            self.one(&mut parcel, latest - self.began)?;
        }
        self.settle(latest - self.began + AFTERWARDS)?;
        for expected in self.expected.values_mut() {
            let difference = expected.end()?;
            tell(self.out, self.order.json, difference)?;
        }
        self.outputs.into_values().try_for_each(Output::finish)?;
        for (port, expected) in &self.expected {
            self.summary.ports[usize::from(*port)].differences = Some(expected.differences());
        }
        let agrees = self.expected.values().all(|expected| expected.differences() == 0);
        let summary = self.summary.with(&self.router);
        match (self.order.summary, self.order.json) {
            (true, true) => writeln!(self.out, "{}", serde_json::to_string(&summary)?)?,
            (true, false) => summary.text(self.out)?,
            (false, _) => {}
        }
        self.out.flush()?;
        Ok(End { agrees, hints: hints(&summary, &self.strangers, network) })
    }

    fn skip(&mut self, number: u64, port: PortIndex, packet: &Packet) -> Result<()> {
        self.summary.skipped += 1;
        if self.order.summary {
            return Ok(());
        }
        let name = &self.ports[usize::from(port)];
        let line = Line::skipped(number, Time(packet.at), name, packet.length, packet.frame.len());
        write_line(self.out, self.order.json, &line, self.began)
    }

    /// One packet, `now` after the first one.
    fn one(&mut self, parcel: &mut Parcel, now: u64) -> Result<()> {
        parcel.port = self.vlans.receive(parcel.port, parcel);
        if !self.order.summary {
            parcel.came.clone_from(&parcel.frame);
        }
        let port = parcel.port;
        self.summary.ports[usize::from(port)].received += 1;
        let fate = if self.order.summary {
            Fate::of(self.router.take(now, port, parcel))
        } else {
            self.router.explain(now, port, parcel)
        };
        self.done(parcel, &fate)?;
        if fate.verdict == Verdict::Hold
            && let Some((parcel, verdict)) = self.router.hold(now, port, std::mem::take(parcel))
        {
            self.done(&parcel, &Fate::of(verdict))?;
        }
        self.settle(now)
    }

    /// Fragments that wait no more.
    fn settle(&mut self, now: u64) -> Result<()> {
        for (_, parcel, verdict) in self.router.settle(now) {
            self.done(&parcel, &Fate::of(verdict))?;
        }
        Ok(())
    }

    /// Says what has become of a packet, and sends it.
    fn done(&mut self, parcel: &Parcel, fate: &Fate) -> Result<()> {
        let Parcel { number, at, came, frame, .. } = parcel;
        let port = usize::from(parcel.port);
        if !self.order.summary {
            let line = Line::of(*number, Time(*at), &self.ports[port], Headers::of(came), came.len());
            let line = line.tell(&self.router, self.ports, fate, came, frame);
            write_line(self.out, self.order.json, &line, self.began)?;
        }
        match fate.verdict {
            Verdict::Forward(output) | Verdict::Route(output) => self.leave(output, parcel)?,
            Verdict::Drop(Drop::OtherHost) => {
                if let Some(ethernet) = Ethernet::parse(frame) {
                    self.strangers[port].get_or_insert((0, ethernet.destination)).0 += 1;
                }
            }
            Verdict::Punt(_) | Verdict::Drop(_) | Verdict::Hold => {}
        }
        Ok(())
    }

    /// What leaves by a tagged network leaves by the port that it is on, too, with its tag.
    fn leave(&mut self, port: PortIndex, parcel: &Parcel) -> Result<()> {
        if let Some(tag) = self.vlans.tag(port) {
            let mut tagged = parcel.clone();
            vlan::put(&mut tagged, tag.id);
            self.leave(tag.port, &tagged)?;
        }
        self.summary.ports[usize::from(port)].sent += 1;
        if let Some(output) = self.outputs.get_mut(&port) {
            output.write(parcel)?;
        }
        if let Some(expected) = self.expected.get_mut(&port) {
            let difference = expected.leaves(parcel.number, &parcel.frame)?;
            tell(self.out, self.order.json, difference)?;
        }
        Ok(())
    }
}

fn write_line(out: &mut impl Write, json: bool, line: &Line<'_>, first: u64) -> Result<()> {
    match json {
        true => {
            // As what it is: nobody may be reading any more, which is no failure.
            serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        false => line.text(out, Time(line.time.0.saturating_sub(first)))?,
    }
    Ok(())
}

fn tell(out: &mut impl Write, json: bool, difference: Option<Difference>) -> Result<()> {
    let Some(difference) = difference else { return Ok(()) };
    match json {
        true => writeln!(out, "{}", serde_json::json!({ "difference": difference }))?,
        false => writeln!(out, "{difference}")?,
    }
    Ok(())
}

/// A port of which nothing was for its own MAC was captured on a machine with another one.
fn hints(summary: &Summary, strangers: &[Option<(u64, Mac)>], network: &Network) -> Vec<String> {
    let mut hints = Vec::new();
    for ((port, strangers), spec) in summary.ports.iter().zip(strangers).zip(network.ports()) {
        let Some((count, mac)) = *strangers else { continue };
        if count == port.received {
            let (name, own, mac) = (&port.name, mac_text(spec.mac), mac_text(mac));
            hints.push(format!(
                "{name}: no packet is to its MAC, {own}, but e.g. to {mac}; expected --mac {name}={mac}?"
            ));
        }
    }
    hints
}

/// Whoever is in a capture becomes known.
fn meet(network: &mut Network, mut capture: Capture) -> Result<()> {
    let mut packet = Packet::default();
    while capture.next(&mut packet)? {
        network.meet_all(&packet.frame);
    }
    Ok(())
}

fn index(config: &Config, option: &str, port: &str) -> Result<PortIndex> {
    network::index(config, port).map_err(|error| anyhow!("{option}: {error}"))
}

/// A thing for each port that is named, at most once.
fn by_port<T>(
    config: &Config,
    option: &str,
    files: &[PortFile],
    open: impl Fn(&str, &Path) -> Result<T>,
) -> Result<BTreeMap<PortIndex, T>> {
    let mut opened = BTreeMap::new();
    for (port, path) in files {
        let index = index(config, option, port)?;
        ensure!(!opened.contains_key(&index), "{option}: {port} is there twice; expected one file a port");
        opened.insert(index, open(port, path)?);
    }
    Ok(opened)
}

/// No file is written that is read.
fn check_outputs(order: &Order) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut taken: Vec<PathBuf> =
        order.inputs.iter().chain(&order.expected).map(|(_, path)| real(path)).collect();
    for (_, path) in &order.outputs {
        let shown = path.display();
        ensure!(!taken.contains(&real(path)), "--out: {shown} is named before; expected a file of its own");
        taken.push(real(path));
    }
    Ok(())
}

/// A capture that is being written: pcap with nanoseconds.
struct Output {
    path: PathBuf,
    writer: PcapWriter<BufWriter<File>>,
}

impl Output {
    fn create(path: &Path) -> Result<Output> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let header = PcapHeader {
            ts_resolution: TsResolution::NanoSecond,
            datalink: DataLink::ETHERNET,
            snaplen: LONGEST as u32,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(BufWriter::new(file), header);
        let writer = writer.with_context(|| path.display().to_string())?;
        Ok(Output { path: path.to_owned(), writer })
    }

    fn write(&mut self, parcel: &Parcel) -> Result<()> {
        let time = std::time::Duration::from_nanos(parcel.at);
        let packet = PcapPacket::new(time, parcel.frame.len() as u32, &parcel.frame);
        self.writer.write_packet(&packet).with_context(|| self.path.display().to_string())?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.writer.into_writer().flush().with_context(|| self.path.display().to_string())
    }
}
