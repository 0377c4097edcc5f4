//! Cycles per packet of the data path on packets that are made for each burst, without a device.
//!
//! A source writes addresses and ports of N flows into the frames of a burst, touching no memory that
//! belongs to a flow; the engine takes the burst from parse to rewrite. Cycles are the thread's CPU time
//! times the time stamp counter's rate, since machines are shared and wall-clock time measures the
//! neighbours. The source's own cost is measured apart and shown beside.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::clock::Tick;
use dataplane::counters::{TrafficCounters, WorkerCounters};
use dataplane::engine::{BURST, Engine, Verdict};
use dataplane::fib::{Adjacency, Fib, PortIndex, Route, Via};
use dataplane::service::{Mode, Protocol, Scheduler, Timeouts};
use dataplane::snapshot::{DestSpec, PortSpec, ServiceSpec, Snapshot};
use dataplane::table::{DestId, HashKey, Table};

/// What to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// Numbers of flows.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000])]
    flows: Vec<u32>,
    /// Rounds; the median, the least and the greatest are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Packets in a round.
    #[arg(long, default_value_t = 4_000_000)]
    packets: usize,
}

const CLIENTS: PortIndex = 0;
const SERVERS: PortIndex = 1;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const FIRST_CLIENT: u32 = 0x0B00_0000;
const PORTS_A_CLIENT: u32 = 16;
const VIRTUAL: &str = "192.0.2.10:80";
const SERVER: &str = "10.0.0.1:8080";
const FRAME: usize = 64;

/// Which way the packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// Measures and prints one table.
pub fn run(arguments: &Arguments) {
    let hz = tsc_hz();
    println!(
        "one thread, {BURST} packets a burst, {FRAME}-byte TCP packets in random order of flows, TSC {:.2} GHz",
        hz / 1e9
    );
    println!(
        "cycles a packet: median (least-greatest) of {} rounds; the source's share is included\n",
        arguments.rounds
    );
    println!("{:<10} {:>10} {:>22} {:>10}", "path", "flows", "cycles", "source");
    for &flows in &arguments.flows {
        for (name, mode, way) in
            [("nat in", Mode::Nat, Way::In), ("nat out", Mode::Nat, Way::Out), ("dr", Mode::Dr, Way::In)]
        {
            let rig = Rig::new(mode, flows);
            let source = median(rounds(arguments, || rig.cycles(hz, arguments.packets, way, false))).1;
            let (least, middle, greatest) =
                median(rounds(arguments, || rig.cycles(hz, arguments.packets, way, true)));
            let spread = format!("{middle:.0} ({least:.0}-{greatest:.0})");
            println!("{name:<10} {flows:>10} {spread:>22} {source:>10.0}");
        }
    }
}

fn rounds(arguments: &Arguments, mut round: impl FnMut() -> f64) -> Vec<f64> {
    (0..arguments.rounds.max(1)).map(|_| round()).collect()
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}

/// A service with one real server, its connections established.
struct Rig {
    engine: Engine,
    counters: Arc<WorkerCounters>,
    snapshot: Snapshot,
    flows: u32,
}

impl Rig {
    fn new(mode: Mode, flows: u32) -> Self {
        let table = Arc::new(Table::new(
            flows as usize,
            HashKey { blind: 0x243F_6A88_85A3_08D3, factor: 0x1319_8A2E_0370_7345 },
        ));
        let counters: Arc<WorkerCounters> = Arc::default();
        let engine = Engine::new(0, table, counters.clone());
        let rig = Rig { engine, counters, snapshot: snapshot(mode), flows };
        let mut frames = [frame(Way::In, SYN); BURST];
        for flow in 0..flows {
            frames[0] = frame(Way::In, SYN);
            address(&mut frames[0], Way::In, flow);
            assert!(matches!(rig.process(CLIENTS, &mut frames[..1])[0], Verdict::Forward(_)), "flow {flow}");
            frames[0] = frame(Way::In, ACK);
            address(&mut frames[0], Way::In, flow);
            rig.process(CLIENTS, &mut frames[..1]);
        }
        rig
    }

    fn process(&self, port: PortIndex, frames: &mut [Packet]) -> [Verdict; BURST] {
        let mut verdicts = [Verdict::Forward(0); BURST];
        self.engine.process(&self.snapshot, Tick(1 << 20), port, frames, &mut verdicts);
        verdicts
    }

    /// CPU cycles a packet, of the source alone or of source and engine.
    fn cycles(&self, hz: f64, packets: usize, way: Way, engine: bool) -> f64 {
        let port = if way == Way::In { CLIENTS } else { SERVERS };
        let mut frames = [frame(way, ACK); BURST];
        let template = frame(way, ACK);
        let mut random = 0x9E37_79B9_7F4A_7C15u64;
        let (before, began) = (forwarded(&self.counters), cpu_time());
        let bursts = packets / BURST;
        for _ in 0..bursts {
            for frame in &mut frames {
                random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                *frame = template;
                address(frame, way, (((random >> 32) * u64::from(self.flows)) >> 32) as u32);
            }
            if engine {
                std::hint::black_box(self.process(port, &mut frames));
            }
            std::hint::black_box(&frames);
        }
        let spent = cpu_time() - began;
        if engine {
            assert_eq!(
                forwarded(&self.counters) - before,
                (bursts * BURST) as u64,
                "every packet was forwarded"
            );
        }
        spent.as_secs_f64() * hz / (bursts * BURST) as f64
    }
}

fn forwarded(counters: &WorkerCounters) -> u64 {
    let traffic = counters.traffic.get();
    traffic.packets_in + traffic.packets_out
}

fn snapshot(mode: Mode) -> Snapshot {
    let socket = |text: &str| -> SocketAddrV4 { text.parse().expect("a constant") };
    let virtual_address = socket(VIRTUAL);
    let mut server = socket(SERVER);
    if mode == Mode::Dr {
        server.set_port(virtual_address.port());
    }
    let dest = DestSpec {
        id: DestId::new(1).expect("not zero"),
        address: server,
        weight: 1,
        last_weight: 1,
        up: true,
        traffic: Arc::new([TrafficCounters::default()]),
        gauge: Arc::default(),
    };
    let spec = ServiceSpec {
        address: virtual_address,
        protocol: Protocol::Tcp,
        mode,
        scheduler: Scheduler::Wlc,
        flags: Vec::new(),
        cursor: Arc::default(),
        timeouts: Timeouts::default(),
        dests: vec![dest],
    };
    let (gateway, address) = (0xC000_02FE, u32::from(*server.ip()));
    let routes = [
        Route { prefix: 0, length: 0, via: Via::Gateway(CLIENTS, gateway) },
        Route { prefix: address & !0xFF, length: 24, via: Via::OnLink(SERVERS) },
    ];
    let neighbours = [
        ((CLIENTS, gateway), Adjacency::new(CLIENTS, 1500, [2; 6], MACS[0])),
        ((SERVERS, address), Adjacency::new(SERVERS, 1500, [4; 6], MACS[1])),
    ];
    Snapshot::new(1, MACS.map(|mac| PortSpec { mac }).to_vec(), &[spec], [], Fib::new(routes, neighbours))
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A frame on the stack, as long as the shortest on the wire.
#[derive(Clone, Copy)]
struct Packet([u8; FRAME]);

impl dataplane::engine::Frame for Packet {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A frame of flow 0.
fn frame(way: Way, flags: u8) -> Packet {
    let (from, to) = if way == Way::In { ("0.0.0.0:0", VIRTUAL) } else { (SERVER, "0.0.0.0:0") };
    let socket = |text: &str| -> SocketAddrV4 { text.parse().expect("a constant") };
    let (from, to) = (socket(from), socket(to));
    let mut bytes = [0; FRAME];
    bytes[..6].copy_from_slice(&MACS[usize::from(way == Way::Out)]);
    bytes[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 6]);
    bytes[26..30].copy_from_slice(&from.ip().octets());
    bytes[30..34].copy_from_slice(&to.ip().octets());
    bytes[34..36].copy_from_slice(&from.port().to_be_bytes());
    bytes[36..38].copy_from_slice(&to.port().to_be_bytes());
    bytes[46] = 0x50;
    bytes[47] = flags;
    Packet(bytes)
}

/// Makes a frame of flow 0 one of another flow, header checksum included.
fn address(packet: &mut Packet, way: Way, flow: u32) {
    let bytes = &mut packet.0;
    let (address, port) = if way == Way::In { (26, 34) } else { (30, 36) };
    bytes[address..address + 4].copy_from_slice(&(FIRST_CLIENT + flow / PORTS_A_CLIENT).to_be_bytes());
    bytes[port..port + 2].copy_from_slice(&(1024 + (flow % PORTS_A_CLIENT) as u16).to_be_bytes());
    let sum = !dataplane::wire::checksum::sum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("Linux has this clock").into()
}

/// The time stamp counter's rate, against the wall clock.
fn tsc_hz() -> f64 {
    let (began, tsc) = (Instant::now(), dpdk::clock::tsc());
    std::thread::sleep(Duration::from_millis(100));
    (dpdk::clock::tsc() - tsc) as f64 / began.elapsed().as_secs_f64()
}
